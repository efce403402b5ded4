"""What layers do alike: those of cells that torch does not have, and all with ``recurrent_dropout``,
``weight_dropout``, ``zoneout`` and ``num_heads``."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from emulator.cases import masked_layers, zoned_layers
from support import KERNELS, check_compiled, check_exported, check_layouts, compiled, given, tensors
from test_dropping import HEADED, each_cell, layer, seeded
from test_own_cells import backends, precisions, states_of
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import fastrnn
from fastrnn.registry import ALL_CELLS, OWN_CELLS

OPTIONS = {
    "dropping": {"recurrent_dropout": 0.4, "weight_dropout": 0.3},
    "zoneout": {"zoneout": (0.3, 0.6)},
    "heads": {"num_heads": 2},
}
PLAIN = [pytest.param(cell, {}, id=cell.mode) for cell in OWN_CELLS.values()]
CASES = [
    pytest.param(cell, options, id=f"{cell.mode}-{name}")
    for cell in ALL_CELLS.values()
    for name, options in OPTIONS.items()
    if name != "heads" or cell in HEADED
]
each_option = pytest.mark.parametrize("cell, options", PLAIN + CASES)
# Any cell's operators are one code to what follows them: each cell with one option, each option with several cells.
some_option = pytest.mark.parametrize("cell, options", PLAIN + CASES[::4])


@compiled
@each_cell
@precisions
@pytest.mark.parametrize("family", [masked_layers, zoned_layers], ids=["masked", "zoned"])
def test_kernels_against_the_formulas(cell, precision, family):
    cases = list(family(cell.index, precision))
    if cell.projects and family is masked_layers:
        cases += family(cell.index, precision, projection=5)
    cases[0].check_nothing_overwritten(KERNELS)
    cases[0].check_needs(KERNELS)
    for case in cases:
        case.check(KERNELS)


@each_option
@pytest.mark.parametrize("training", [True, False])
def test_derivatives_of_any_order_and_transforms(cell, options, training):
    module, hx = layer(cell, 2, 4, **options).double().train(training), states_of(cell, 1, 2, 4, torch.float64)
    names = [name for name, _ in module.named_parameters()]
    inputs = [torch.randn(3, 2, 2, dtype=torch.float64), *hx, *(w.detach() for w in module.parameters())]
    x, *rest = [t.requires_grad_() for t in inputs]

    def call(x, *rest):
        torch.manual_seed(5)
        weights = dict(zip(names, rest[cell.states :], strict=True))
        return functional_call(module, weights, (x, given(rest[: cell.states])))[0]

    assert gradcheck(call, (x, *rest), fast_mode=True, check_batched_grad=True)
    assert gradgradcheck(call, (x, *rest), fast_mode=True)
    ones = torch.ones_like(x)
    value, tangent = torch.func.jvp(lambda x: call(x, *rest), (x,), (ones,))
    torch.testing.assert_close(value, call(x, *rest))
    expected = torch.autograd.functional.jvp(lambda x: call(x, *rest), x, ones)[1]
    torch.testing.assert_close(tangent, expected)
    batch, plain = torch.randn(3, 3, 2, 2, dtype=torch.float64), [t.detach() for t in rest]
    found = torch.vmap(lambda x: call(x, *plain), randomness="same")(batch)
    torch.testing.assert_close(found, torch.stack([call(x, *plain) for x in batch]))


@each_option
@backends
def test_packed_rows_and_layouts(cell, options, backend):
    module, first = (layer(cell, 3, 8, 2, 2, batch_first=b, **options).double() for b in (False, True))
    x, hx = torch.randn(5, 4, 3, dtype=torch.float64), states_of(cell, 4, 4, 8, torch.float64)
    with fastrnn.backend(backend):
        check_layouts(module, first, x, given(hx), call=seeded)
        module.eval()
        alone = module(x[:, 1], given([h[:, 1] for h in hx]))[0]
        torch.testing.assert_close(alone, module(x, given(hx))[0][:, 1])
        initial = given([torch.full_like(h, value) for h, value in zip(hx, cell.initial)])
        torch.testing.assert_close(module(x)[0], module(x, initial)[0])


@some_option
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_graphs(cell, options):
    module, x, hx = layer(cell, 3, 8, 2, 2, **options), torch.randn(5, 4, 3), given(states_of(cell, 4, 4, 8))
    check_compiled(module, x, hx, call=seeded)
    assert check_exported(module.eval(), x, hx) == [cell.index] * 2
    torch.testing.assert_close(tensors(fastrnn.freeze(module)(x, hx)), tensors(module(x, hx)))
    traced = torch.jit.trace(module, (x, hx), check_trace=False)
    torch.testing.assert_close(tensors(traced(2 * x, hx)), tensors(module(2 * x, hx)))


@each_option
def test_autocast_copies_and_other_tools(cell, options):
    module, x = layer(cell, 3, 8, 2, 2, **options), torch.randn(5, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = seeded(module, x)
        output.float().sum().backward()
    expected = seeded(module, x)[0]
    assert (output.float() - expected).norm() < 0.05 * expected.norm()
    again = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    assert torch.equal(seeded(again, x)[0], expected) and again.own_options == module.own_options == options
    assert ", ".join(f"{name}={value}" for name, value in options.items()) in repr(again)
    module.flatten_parameters()
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot compile fastrnn"):
        torch.jit.script(module)
    if "weight_dropout" not in options:
        with fastrnn.backend("aten"), pytest.raises(RuntimeError, match="torch has no"):
            module(x)
    call = fastrnn.explain(module, x).call
    assert call.directions == 2 * options.get("num_heads", 1)
