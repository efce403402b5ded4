"""The compiled CPU kernels on every instruction set, as layers: rows by themselves, saturated gates, long sums."""

from __future__ import annotations

import pytest
import torch
from support import ISAS, KERNELS, build, cells, check, compare, compiled, dtypes, evaluate, random_states, twins, using

import fastrnn
from fastrnn.registry import CELLS

pytestmark = compiled


@pytest.fixture(params=ISAS, autouse=True)
def isa(request):
    """Every instruction set of this machine, in use while the test runs; the backend is forced too."""
    with using(request.param), fastrnn.backend("cpu"):
        yield request.param


@cells
def test_a_row_does_not_depend_on_its_neighbours(cell):
    """Rows are computed in groups; which others share the group changes nothing beyond rounding."""
    module = build(fastrnn, cell, 17, 33)
    x = torch.randn(4, 19, 17)
    together = module(x)[0]
    for b in (0, 7, 18):
        torch.testing.assert_close(module(x[:, b : b + 1])[0], together[:, b : b + 1], rtol=1e-5, atol=1e-6)


@cells
@dtypes
@pytest.mark.parametrize("size", [20.0, 90.0, 800.0, 60000.0])
def test_saturated_gates(cell, dtype, size):
    """sigmoid and tanh of what overflows an exponential are 0 or 1, not NaN; gradients stay finite."""
    ours, theirs, truth = twins(cell, 1, 9, bias=False, dtype=dtype)
    with torch.no_grad():
        for module in (ours, theirs, truth):
            module.weight_ih_l0.copy_(torch.tensor([1.0, -1.0]).repeat(cell.gates * 9)[: cell.gates * 9, None])
            module.weight_hh_l0.zero_()
    x = torch.full((2, 3, 1), size, dtype=dtype)
    results, expected = (evaluate(module, x, dtype=dtype) for module in (ours, theirs))
    for name in expected:
        assert torch.equal(results[name].isfinite(), expected[name].isfinite()), name
    if cell.mode != "RNN_RELU":
        assert all(t.isfinite().all() for t in results.values())
        check(results["output 0"], expected["output 0"], evaluate(truth, x, dtype=dtype)["output 0"])


def test_unknown_instruction_set(isa):
    with pytest.raises(RuntimeError, match=rf"this machine supports {' '.join(ISAS)}; got sse9"):
        KERNELS.set_isa("sse9")
    assert KERNELS.isa() == isa


def test_sums_over_many_units():
    """The gradient of h0 sums over 4 H products. With weights of one sign, one long sum was outside the budget."""
    torch.manual_seed(3)
    modules = twins(CELLS["LSTM"], 16, 1024)
    for module in modules:
        module.load_state_dict({name: p.abs() for name, p in module.state_dict().items()})
    compare(modules, torch.randn(2, 8, 16), random_states(CELLS["LSTM"], 1, 8, 1024))
