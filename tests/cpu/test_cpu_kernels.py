"""The compiled CPU kernels on every instruction set: error budget, determinism, what is not finite."""

from __future__ import annotations

import pytest
import torch
from support import (
    ISAS,
    KERNELS,
    build,
    cells,
    check,
    check_all,
    compare,
    compiled,
    dtypes,
    evaluate,
    like,
    off_the_kink,
    pairwise,
    random_states,
    twins,
    using,
)

import fastrnn
from fastrnn.registry import CELLS

pytestmark = compiled

SIZES = (1, 3, 17, 31, 33, 65, 127, 257)
GRID = pairwise(
    {
        "T": (1, 2, 5),
        "B": (1, 3, 9, 17),
        "I": SIZES,
        "H": SIZES,
        "bidirectional": (False, True),
        "bias": (True, False),
        "packed": (False, True),
        "projected": (False, True),
    }
)


@pytest.fixture(params=ISAS, autouse=True)
def isa(request):
    """Every instruction set of this machine, in use while the test runs; the backend is forced too."""
    with using(request.param), fastrnn.backend("cpu"):
        yield request.param


def compare_units(modules, x, hx, lengths):
    """support.compare(), but the gradients of a layer of one unit are judged together.

    Each is then a single sum whose terms may cancel: its own size says nothing about the rounding errors in it.
    """
    if modules[0].hidden_size > 1:
        return compare(modules, x, hx, lengths)
    dtype = modules[0].weight_ih_l0.dtype
    x, hx = x.to(dtype), like(modules[0], hx)
    results = [evaluate(module, x, hx, lengths, dtype) for module in modules]
    gradients = [torch.cat([r.pop(name).flatten() for name in list(r) if "gradient" in name]) for r in results]
    check_all(*results)
    check(*gradients, "gradients")


@cells
@dtypes
@pytest.mark.parametrize("part", range(8))
def test_error_budget(cell, dtype, part):
    """Any two values of any two factors meet in GRID; a part of it per test keeps failures readable."""
    for case in GRID[part::8]:
        T, B, I, H = (case[letter] for letter in "TBIH")
        options = {"bidirectional": case["bidirectional"], "bias": case["bias"]}
        proj = (H + 1) // 2 if case["projected"] and cell.mode == "LSTM" and H > 1 else 0
        if proj:
            options["proj_size"] = proj
        modules = twins(cell, I, H, dtype=dtype, **options)
        hx = random_states(cell, 2 if case["bidirectional"] else 1, B, H, proj)
        lengths = torch.randint(1, T + 1, (B,)) if case["packed"] else None
        # Torch's weights are drawn for I = H. A larger I would saturate the gates, where 1 - y * y has few digits left.
        x = torch.randn(T, B, I) * min(1, H / I) ** 0.5
        if cell.mode == "RNN_RELU" and dtype.itemsize == 2:
            x, hx = off_the_kink(modules, x, hx)
        try:
            compare_units(modules, x, hx, lengths)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from None


@cells
@dtypes
def test_same_bits_every_time(cell, dtype):
    module = build(fastrnn, cell, 17, 33, 2, bidirectional=True, dtype=dtype)
    x, hx = torch.randn(5, 9, 17), random_states(cell, 4, 9, 33)
    first = evaluate(module, x, hx, dtype=dtype)
    for _ in range(3):
        again = evaluate(module, x, hx, dtype=dtype)
        assert all(torch.equal(first[name], again[name]) for name in first)


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
