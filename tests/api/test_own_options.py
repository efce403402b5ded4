"""What layers do alike with ``recurrent_dropout``, ``weight_dropout``, ``zoneout`` and ``num_heads``."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support import check_compiled, check_exported, check_layouts, given, tensors
from test_dropping import layer, seeded
from test_own_cells import states_of
from torch.autograd import gradgradcheck

import fastrnn
from fastrnn.registry import ALL_CELLS

OPTIONS = {
    "dropping": {"recurrent_dropout": 0.4, "weight_dropout": 0.3},
    "zoneout": {"zoneout": (0.3, 0.6)},
    "heads": {"num_heads": 2},
}
CASES = [
    pytest.param(cell, options, id=f"{cell.mode}-{name}")
    for cell in ALL_CELLS.values()
    for name, options in OPTIONS.items()
    if name != "heads" or (cell.recurrent and not cell.statistics)
]
each_option = pytest.mark.parametrize("cell, options", CASES)
# Any cell's operators are one code to what follows them: each cell with one option, each option with several cells.
some_option = pytest.mark.parametrize("cell, options", CASES[::4])


@each_option
@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_and_transforms(cell, options, training):
    """The first derivatives are compared with the formulas' where each option is tested."""
    module, hx = layer(cell, 2, 4, **options).double().train(training), states_of(cell, 1, 2, 4, torch.float64)
    inputs = [t.requires_grad_() for t in (torch.randn(3, 2, 2, dtype=torch.float64), *hx)]

    def loss(x, *hx):
        return seeded(module, x, given(hx))[0]

    assert gradgradcheck(loss, inputs, fast_mode=True)
    ones = torch.ones_like(inputs[0])
    value, tangent = torch.func.jvp(lambda x: loss(x, *hx), (inputs[0],), (ones,))
    torch.testing.assert_close(value, loss(*inputs))
    expected = torch.autograd.functional.jvp(lambda x: loss(x, *hx), inputs[0], ones)[1]
    torch.testing.assert_close(tangent, expected)
    batch, plain = torch.randn(3, 3, 2, 2, dtype=torch.float64), given([h.detach() for h in hx])
    found = torch.vmap(lambda x: seeded(module, x, plain)[0], randomness="same")(batch)
    torch.testing.assert_close(found, torch.stack([seeded(module, x, plain)[0] for x in batch]))


@each_option
def test_packed_rows_and_batch_first(cell, options):
    module, x = layer(cell, 3, 8, 2, 2, **options), torch.randn(5, 4, 3)
    check_layouts(module, layer(cell, 3, 8, 2, 2, batch_first=True, **options), x, call=seeded)
    module.eval()
    torch.testing.assert_close(module(x[:, 0])[0], module(x)[0][:, 0])


@some_option
def test_graphs(cell, options):
    module, x = layer(cell, 3, 8, 2, 2, **options), torch.randn(5, 4, 3)
    check_compiled(module, x, call=seeded)
    check_exported(module.eval(), x)
    torch.testing.assert_close(tensors(fastrnn.freeze(module)(x)), tensors(module(x)))


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
