"""Random shapes, strides, lengths and options: the compiled CPU kernels against the reference in float64."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import build, cotangents, name_of, tensors
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn._kernels import ops
from fastrnn.registry import CELLS

pytestmark = pytest.mark.skipif(ops.missing("cpu") is not None, reason=str(ops.missing("cpu")))

CASES_PER_CELL = 550
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded", "offset")
profile = settings(
    max_examples=CASES_PER_CELL,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def cases(draw, cell):
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
        "layout": (draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))),
        "lengths": draw(st.none() | st.lists(st.integers(1, T), min_size=B, max_size=B)),
        "hx": draw(st.booleans()),
        "seed": draw(st.integers(0, 999)),
    }


def laid_out(t: torch.Tensor, layout: str) -> torch.Tensor:
    """A three-dimensional tensor with the values of ``t`` in other strides (expanded: its first row's, repeated)."""
    if layout == "transposed":
        return t.transpose(0, 2).contiguous().transpose(0, 2)
    if layout == "sliced":
        return torch.stack((t, t.flip(-1)), -1).flatten(-2)[..., ::2]
    if layout == "expanded":
        return t[:, :1].expand_as(t)
    if layout == "offset":
        flat = torch.cat((t.new_zeros(1), t.flatten()))
        return flat[1:].view(t.shape)
    return t


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


@pytest.mark.parametrize("cell", CELLS.values(), ids=name_of)
def test_against_the_reference(cell, capsys):
    done, layouts = count(), set()

    @profile
    @given(cases(cell))
    def one(case):
        T, B, I, H, P = case["sizes"]
        torch.manual_seed(case["seed"])
        options = {"bidirectional": case["directions"] == 2, "bias": case["bias"], "dtype": case["dtype"]}
        if P:
            options["proj_size"] = P
        ours = build(fastrnn, cell, I, H, case["layers"], **options)
        truth = build(fastrnn, cell, I, H, case["layers"], **options).double()
        truth.load_state_dict(ours.state_dict())
        rows = case["layers"] * case["directions"]
        x = laid_out(torch.randn(T, B, I, dtype=case["dtype"]), case["layout"][0])
        hx = []
        if case["hx"]:
            hx = [torch.randn(rows, B, width, dtype=case["dtype"]) for width in (P or H, H)[: cell.states]]
            hx = [laid_out(h, case["layout"][1]) for h in hx]
        torch.set_num_threads(1 + next(done) % 2)
        with fastrnn.backend("cpu"):
            got = results(ours, x, hx, case["lengths"])
        torch.set_num_threads(1)
        with fastrnn.backend("reference"):
            expected = results(truth, x.double(), [h.double() for h in hx], case["lengths"])
        for index, (a, b) in enumerate(zip(got, expected)):
            bound = TOLERANCE[case["dtype"]] * max(1, b.abs().max().item())
            assert a.dtype == case["dtype"] and a.shape == b.shape
            assert (a.double() - b).abs().max().item() <= bound, f"result {index}"
        layouts.update((x.stride(), *(h.stride() for h in hx)))

    one()
    number = next(done)
    with capsys.disabled():
        print(f" {number} cases", end="")
    assert number >= CASES_PER_CELL * 0.95 and len(layouts) > 50
