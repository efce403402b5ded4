"""What lengths, reset_mask and all_states mean, in torch's own layers: every row by itself, every step by itself.

And the calls that the tests of these arguments share.
"""

from __future__ import annotations

import pytest
import torch
from support import build, cotangents, device_of, like, random_states, tensors
from torch import Tensor, nn

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


_STEP = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}


def _one_step(mode: str, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
    """x (I,), the states (R,) and (H,); by torch's layer on one step of one row."""
    hx = [s.view(1, 1, -1) for s in state]
    biased = len(weights) >= 4
    _, *hn = _STEP[mode](x.view(1, 1, -1), hx if len(hx) > 1 else hx[0], weights, biased, 1, 0.0, False, False, False)
    return [h.view(-1) for h in hn]


def _row(mode: str, x: Tensor, state: list[Tensor], weights, resets: list[bool], reverse: bool):
    """One row of its own length in one direction: the states after every step, and the last ones."""
    states: list = [None] * x.size(0)
    for t in range(x.size(0))[:: -1 if reverse else 1]:
        # The edge crossed on the way into step t; a reverse direction begins with none.
        edge = t + 1 if reverse else t
        if edge < x.size(0) and resets[edge]:
            state = [torch.zeros_like(s) for s in state]
        states[t] = state = _one_step(mode, x[t], state, weights)
    return states, state


def run(module: nn.RNNBase, x: Tensor, hx, lengths=None, reset_mask=None):
    """x (T, B, I) -> output, final states, and for every layer its states after every step, time first."""
    cell = CELLS[module.mode]
    T, B, _ = x.shape
    D, H = 1 + module.bidirectional, module.hidden_size
    widths = [module.proj_size or H, H][: cell.states]
    hx = [x.new_zeros(module.num_layers * D, B, width) for width in widths] if hx is None else list(hx)
    lengths = [T] * B if lengths is None else lengths.tolist()
    resets = [[False] * T] * B if reset_mask is None else reset_mask.tolist()
    finals, sequences = [], []
    for layer in range(module.num_layers):
        directions = []
        for d in range(D):
            suffix = f"_l{layer}{'_reverse' if d else ''}"
            names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
            weights = [
                getattr(module, name + suffix) for name in [*names, *(["weight_hr"] if module.proj_size else [])]
            ]
            rows, final = [], []
            for b in range(B):
                start = [h[layer * D + d, b] for h in hx]
                states, last = _row(module.mode, x[: lengths[b], b], start, weights, resets[b], d == 1)
                pad = [[x.new_zeros(width) for width in widths]] * (T - lengths[b])
                rows.append([torch.stack(steps) for steps in zip(*(states + pad))])
                final.append(last)
            directions.append([torch.stack(state, 1) for state in zip(*rows)])
            finals.append([torch.stack(state) for state in zip(*final)])
        sequences.append([torch.cat(parts, -1) for parts in zip(*directions)])
        x = sequences[-1][0]
    return x, [torch.stack(state) for state in zip(*finals)], sequences


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
