"""Cells of the user's own and what they must give: for the CPU, the emulator and a GPU alike."""

from __future__ import annotations

import copy
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from emulator import oracle
from emulator.cases import DTYPES, check_error
from support import tensors

import fastrnn
from fastrnn._kernels import cell_library, ops

ROOT = Path(__file__).resolve().parents[1]


def lacking() -> str | None:
    """What a cell cannot be compiled without."""
    try:
        cell_library.find_compiler()
    except RuntimeError as error:
        return str(error)
    return ops.missing("cpu")


compiled = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))

SCALED = re.search(r'r"""(.*?)"""', (ROOT / "docs/own_cells.md").read_text(encoding="utf-8"), re.DOTALL)[1]

# Every operation, h unit by unit, states with values to begin from, one that no gradient reads.
EVERYTHING = """
#pragma once
#include <cstddef>
struct Helper { static constexpr double half = 0.5; };
struct Everything {
  static constexpr const char* kGates[] = {"a", "b", "c"};
  static constexpr fastrnn::State kStates[] = {{"h", 0}, {"c", 0.5}, {"m", -1}, {"sum", 2}};
  static constexpr const char* kParams[] = {"scale", "shift"};
  template <class A>
  static FASTRNN_CELL void forward(const fastrnn::In<A>& in, A* next) {
    const A a = in.x[0] + in.h[0] + in.params[0] * in.prev[1];
    const A b = tanh_(in.x[1]) * in.h[1] - in.params[1];
    next[2] = max_(a, in.prev[2] + b);
    const A keep = exp_(a - next[2]), d = in.x[2] - in.h[2];
    next[1] = keep * in.prev[1] + A(Helper::half) * sigmoid_(b) + log_sigmoid_(in.h[2]) * in.prev[0];
    const A sum = log_(A(3) + next[1] * next[1] + d * d) + next[2] * a;
    next[0] = tanh_(relu_(quotient(next[1], A(2) + keep) + sum) * in.x[2]);
    next[3] = in.prev[3] + in.x[2];
  }
};
"""


ADDER = """
struct Adder {
  static constexpr const char* kGates[] = {"a", "b"};
  static constexpr fastrnn::State kStates[] = {{"h", 0}, {"sum", 0}};
  template <class A>
  static FASTRNN_CELL void forward(const fastrnn::In<A>& in, A* next) {
    next[1] = in.prev[1] + in.x[0] + in.h[0];
    next[0] = next[1] + tanh_(in.x[1] + in.h[1]);
  }
};
"""


def janet(x, h, state, params):
    s, candidate = (x + h).chunk(2)
    keep, take = torch.sigmoid(s), 1 - torch.sigmoid(s - 1)
    return (keep * state[0] + take * torch.tanh(candidate),)


def fastgrnn(x, h, state, params):
    z = torch.sigmoid(x + h + params["bias_z"])
    candidate = torch.tanh(x + h + params["bias_c"])
    zeta, nu = torch.sigmoid(params["zeta"]), torch.sigmoid(params["nu"])
    return ((zeta * (1 - z) + nu) * candidate + z * state[0],)


def scaled(x, h, state, params):
    f, g = (x + h).chunk(2)
    f = torch.sigmoid(f)
    c = f * state[1] + (1 - f) * torch.tanh(g) * params["weight_scale"]
    return c, c


def everything(x, h, state, params):
    (x_a, x_b, x_c), (h_a, h_b, h_c) = x.chunk(3), h.chunk(3)
    a = x_a + h_a + params["scale"] * state[1]
    b = torch.tanh(x_b) * h_b - params["shift"]
    m = torch.where(a > state[2] + b, a, state[2] + b)
    keep, d = torch.exp(a - m), x_c - h_c
    c = keep * state[1] + 0.5 / (1 + torch.exp(-b)) - torch.log(1 + torch.exp(-h_c)) * state[0]
    h = torch.tanh(torch.clamp(c / (2 + keep) + torch.log(3 + c * c + d * d) + m * a, min=0) * x_c)
    return h, c, m, state[3] + x_c


TEXTS = {name: (ROOT / f"examples/cells/{name}.h").read_text() for name in ("janet", "fastgrnn")}
TEXTS |= {"scaled": SCALED, "everything": EVERYTHING, "adder": ADDER}
TEXTS["named"] = SCALED.replace("weight_scale", "weight_hh_scale").replace("JanetScaled", "Named")
STEPS = {"janet": janet, "fastgrnn": fastgrnn, "scaled": scaled, "everything": everything}


KEPT = os.path.join(tempfile.gettempdir(), f"fastrnn-test-cells-{os.getuid()}")
"""Where libraries outlive a run, for they are kept by what they are made of."""
_headers = tempfile.TemporaryDirectory()


def load(name: str):
    """A cell of TEXTS: two as users compile them, the others less optimised, in half the time."""
    header = Path(_headers.name, f"{name}.h")
    header.write_text(TEXTS[name])
    flags = cell_library._FLAGS if name in ("scaled", "everything") else ("-O1", *cell_library._FLAGS[1:])
    with mock.patch.dict(os.environ, FASTRNN_CACHE_DIR=KEPT), mock.patch.object(cell_library, "_FLAGS", flags):
        return fastrnn.load_cell(header, "Everything" if name == "everything" else None)


def states_of(cell, rows, B, H, dtype=torch.float32, P=0):
    hx = [value + torch.rand(rows, B, H, dtype=dtype) for value in cell.initial]
    hx[0] = hx[0][..., : P or H].contiguous()
    return tuple(hx) if cell.states > 1 else hx[0]


def make(cell, *sizes, **options):
    """A layer whose parameters are large enough to matter."""
    module = fastrnn.Layer(cell, *sizes, **options)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(2)
    return module


RESETS = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.4
SCHEDULES = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([5, 0, 3, 1])},
    "resets": {"reset_mask": RESETS},
    "both": {"reset_mask": RESETS, "lengths": torch.tensor([5, 2, 3, 4])},
}


def evaluate(run, module, x, hx) -> dict[str, torch.Tensor]:
    """Outputs and gradients by name, as support.check_all takes them."""
    inputs = [t.detach().requires_grad_() for t in (x, *tensors(hx))]
    states = tuple(inputs[1:]) if len(inputs) > 2 else inputs[1]
    outputs = tensors(run(module, inputs[0], states))
    grads = [torch.randn(t.shape, generator=torch.Generator().manual_seed(k)).to(t) for k, t in enumerate(outputs)]
    sources = [*inputs, *module.parameters()]
    found = torch.autograd.grad(outputs, sources, grads)
    results = {f"output {k}": t.detach() for k, t in enumerate(outputs)}
    return results | {f"gradient {k}": t for k, t in enumerate(found)}


def loop_of(cell, step, schedule="plain"):
    """The layer of a cell as a loop in torch: the oracle's."""

    def loop(module, x, hx):
        formula = oracle.of_gates(cell.initial, cell.params, step)
        return oracle.stack(module, x, tensors(hx), cell=formula, **SCHEDULES[schedule])[:2]

    return loop


def check_within_the_budget(cell, step, schedule, precision, device="cpu", P=0):
    """Two layers in both directions on what is in force there, with all gradients, against a loop in float64."""
    dtype = DTYPES[precision]
    module, x = make(cell, 3, 17, 2, bidirectional=True, proj_size=P).to(dtype), torch.randn(5, 4, 3).to(dtype)
    hx = [state.to(dtype) for state in tensors(states_of(cell, 4, 4, 17, P=P))]
    truth = evaluate(
        loop_of(cell, step, schedule), copy.deepcopy(module).double(), x.double(), [h.double() for h in hx]
    )
    there = {name: t.to(device) for name, t in SCHEDULES[schedule].items()}
    found = evaluate(
        lambda *given: given[0](*given[1:], **there), module.to(device), x.to(device), [h.to(device) for h in hx]
    )
    # Within rounding of a maximum's kink its gradient is a matter of luck.
    kinked = step is everything and precision not in ("float64", "float32")
    for name, want in truth.items():
        assert found[name].dtype == dtype
        if kinked and name.startswith("gradient"):
            continue
        check_error(name, found[name].cpu(), want, precision, slack=4 if step is everything else 2)
