"""The calls that the tests of lengths, reset_mask and all_states share, and what they mean by the formulas."""

from __future__ import annotations

import pytest
import torch
from emulator import oracle
from support import build, cotangents, device_of, like, random_states, tensors
from torch import Tensor

import fastrnn
from fastrnn.registry import CELLS

T, B = 6, 5
LENGTHS = torch.tensor([4, 0, 6, 1, 5])
RESETS = torch.tensor(
    [[1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0]]
).bool()
ASKED = {
    "lengths": {"lengths": LENGTHS},
    "resets": {"reset_mask": RESETS},
    "both": {"lengths": LENGTHS, "reset_mask": RESETS},
    "no-row": {"lengths": torch.zeros(B, dtype=torch.int64), "reset_mask": RESETS},
    "states": {},
}
KINDS = {
    **{mode: (cell, {}) for mode, cell in CELLS.items()},
    "projected": (CELLS["LSTM"], {"proj_size": 3}),
    "unbiased": (CELLS["GRU"], {"bias": False}),
}
kinds = pytest.mark.parametrize("cell, options", KINDS.values(), ids=KINDS)


def exact_module(cell, backend, *sizes, **options):
    """A module of fastrnn's in both directions and float64, on the device of a backend."""
    device = device_of(backend)
    return build(fastrnn, cell, *sizes, bidirectional=True, dtype=torch.float64, device=device, **options)


def run(module, x: Tensor, hx, lengths=None, reset_mask=None):
    """By the formulas: output, final states, and for every layer its states after every step, time first."""
    if hx is None:
        rows, H = module.num_layers * (1 + module.bidirectional), module.hidden_size
        hx = [x.new_zeros(rows, x.size(1), width) for width in (module.proj_size or H, H)][: CELLS[module.mode].states]
    return oracle.stack(module, x, hx, lengths, reset_mask)


def evaluate(call, module, x: Tensor, hx, dtype: torch.dtype, **asked) -> dict[str, Tensor]:
    """``call(module, x, hx, **asked)``, all its results and their gradients by name, as ``support.evaluate``'s."""
    x, hx = like(module, x), like(module, hx)
    output, hn, sequences = call(module, x, hx, **asked)
    outputs = [output, *hn, *(s for states in sequences for s in states)]
    sources = {"input": x, **{f"state {i}": h for i, h in enumerate(hx or ())}, **dict(module.named_parameters())}
    # Rows without steps hand constants on, which autograd.grad refuses to begin with.
    recorded = [(o, g) for o, g in zip(outputs, cotangents(outputs, dtype)) if o.requires_grad]
    total = sum(((o * g).sum() for o, g in recorded), sum(s.sum() * 0 for s in sources.values()))
    grads = torch.autograd.grad(total, list(sources.values()))
    result = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    return result | {f"gradient of {name}": grad for name, grad in zip(sources, grads)}


def ours(module, x, hx, **asked):
    """In the form of ``plain.run``."""
    asked = {name: value.to(x.device) if isinstance(value, torch.Tensor) else value for name, value in asked.items()}
    two = module.mode == "LSTM"
    output, hn, sequences = module(x, hx if hx is None or two else hx[0], all_states=True, **asked)
    return output, hn if two else [hn], [states if two else [states] for states in sequences]


def states_of(cell, rows, hidden, proj=0):
    return tuple(tensors(random_states(cell, rows, B, hidden, proj)))
