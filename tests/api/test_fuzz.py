"""Random shapes, strides, lengths and options: the compiled CPU kernels against torch.nn in float64."""

from __future__ import annotations

from itertools import count

import torch
from fuzz.kinds import LAYOUTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import cells, compiled, cotangents, tensors, twins
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

pytestmark = compiled

CASES_PER_CELL = 550
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
MAKE = {name: kind.make for name, kind in LAYOUTS.items()} | {"a row for all": lambda t: t[:, :1].expand_as(t)}
profile = settings(
    max_examples=CASES_PER_CELL,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def arguments(draw, cell):
    small = st.integers(1, 6)
    T, B, I = (draw(small) for _ in range(3))
    layers, directions = (draw(st.integers(1, 2)) for _ in range(2))
    H = draw(st.one_of(small, st.sampled_from([15, 16, 17, 33])))
    P = draw(st.integers(0, H - 1)) if cell.mode == "LSTM" and draw(st.booleans()) else 0
    return {
        "sizes": (T, B, I, H, P),
        "layers": layers,
        "directions": directions,
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
        "layout": (draw(st.sampled_from(list(MAKE))), draw(st.sampled_from(list(MAKE)))),
        "lengths": draw(st.none() | st.lists(st.integers(1, T), min_size=B, max_size=B)),
        "hx": draw(st.booleans()),
        "seed": draw(st.integers(0, 999)),
    }


def results(module, x, hx, lengths):
    """Output, states and every gradient."""
    # detach() keeps the strides, so these leaves lie in memory as x and hx do.
    leaves = [t.detach().requires_grad_() for t in (x, *hx)]
    input = leaves[0] if lengths is None else pack_padded_sequence(leaves[0], lengths, enforce_sorted=False)
    state = () if not hx else (leaves[1] if len(hx) == 1 else tuple(leaves[1:]),)
    outputs = tensors(module(input, *state))
    sources = [*leaves, *module.parameters()]
    grads = torch.autograd.grad(outputs, sources, cotangents(outputs, torch.float32))
    return [*(o.detach() for o in outputs), *grads]


@cells
def test_against_torch(cell, capsys):
    number, layouts = count(), set()

    @profile
    @given(arguments(cell))
    def one(case):
        T, B, I, H, P = case["sizes"]
        torch.manual_seed(case["seed"])
        options = {"bidirectional": case["directions"] == 2, "bias": case["bias"], "dtype": case["dtype"]}
        if P:
            options["proj_size"] = P
        ours, _, truth = twins(cell, I, H, case["layers"], **options)
        of_x, of_hx = (MAKE[layout] for layout in case["layout"])
        x, hx = of_x(torch.randn(T, B, I, dtype=case["dtype"])), []
        if case["hx"]:
            rows, widths = case["layers"] * case["directions"], (P or H, H)[: cell.states]
            hx = [of_hx(torch.randn(rows, B, width, dtype=case["dtype"])) for width in widths]
        with fastrnn.backend("cpu"):
            got = results(ours, x, hx, case["lengths"])
        expected = results(truth, x.double(), [h.double() for h in hx], case["lengths"])
        for index, (a, b) in enumerate(zip(got, expected, strict=True)):
            bound = TOLERANCE[case["dtype"]] * max(1, b.abs().max().item())
            assert a.dtype == case["dtype"] and a.shape == b.shape
            assert (a.double() - b).abs().max().item() <= bound, f"result {index}"
        layouts.update((x.stride(), *(h.stride() for h in hx)))
        next(number)

    one()
    done = next(number)
    with capsys.disabled():
        print(f" {done} cases", end="")
    assert done >= CASES_PER_CELL * 0.95 and len(layouts) > 50
