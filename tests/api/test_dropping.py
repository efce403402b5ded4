"""What layers drop in training: features of h by ``recurrent_dropout``, recurrent weights by ``weight_dropout``."""

from __future__ import annotations

import pytest
import torch
from emulator.cases import masked_layers
from support import given, pairs
from test_own_cells import ASKED, BACKENDS, KERNELS, backends, check_with_formulas, compiled, make, states_of
from torch.nn import functional as F

import fastrnn
from fastrnn.registry import ALL_CELLS

each_cell = pytest.mark.parametrize("cell", ALL_CELLS.values(), ids=lambda cell: cell.mode)
HEADED = [cell for cell in ALL_CELLS.values() if cell.recurrent and not cell.statistics]
"""The cells whose units can be divided into heads."""
P = 0.4


def layer(cell, *args, **options):
    if cell.nonlinearity:
        options["nonlinearity"] = cell.nonlinearity
    return make(cell, *args, **options)


def seeded(module, *args, seed=5, **asked):
    torch.manual_seed(seed)
    return module(*args, **asked)


@compiled
def test_a_mask_that_does_not_fit_is_refused():
    case, *_ = masked_layers(0, "float32")
    case.schedule["mask"] = case.schedule["mask"][:, :, :5]
    with pytest.raises(RuntimeError, match=r"operand_mask must have shape \[2, 9, 17\], got \[2, 9, 5\]"):
        case.forward(KERNELS)
    case.schedule["mask"] = torch.ones(2, 9, 17, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="operand_mask must be Float on cpu like x, got Double"):
        case.forward(KERNELS)


@pairs(cell=ALL_CELLS.values(), backend=BACKENDS, asked=ASKED)
def test_recurrent_dropout_is_one_mask_a_sequence(cell, backend, asked):
    module, ones = layer(cell, 3, 6, 2, 2, recurrent_dropout=P).double(), torch.ones(4, 4, 6, dtype=torch.float64)
    check_with_formulas(module, backend, draws=lambda: {"masks": F.dropout(ones, P)}, **asked)


def test_statistics_of_the_masks():
    module = fastrnn.LSTM(2, 100, 2, bidirectional=True, recurrent_dropout=P)
    masks = seeded(module._drops, torch.zeros(4, 200, 100), None).mask
    kept = masks != 0
    torch.testing.assert_close(masks[kept], torch.full((int(kept.sum()),), 1 / (1 - P)))
    assert abs(kept.double().mean() - (1 - P)) < 4 * (P * (1 - P) / kept.numel()) ** 0.5
    for dim in range(3):  # layers and directions, rows, features: none is like its neighbour
        a, b = kept.unflatten(dim, (-1, 2)).unbind(dim + 1)
        assert abs((a == b).double().mean() - (P**2 + (1 - P) ** 2)) < 0.02
    again, other = (seeded(module._drops, torch.zeros(4, 200, 100), None, seed=seed).mask for seed in (5, 6))
    assert torch.equal(masks, again) and not torch.equal(masks, other)


@each_cell
def test_nothing_is_dropped_in_evaluation_and_everything_at_a_rate_of_one(cell):
    plain, x = layer(cell, 3, 6, 2, 2), torch.randn(5, 4, 3)
    for rates in ({"recurrent_dropout": P}, {"weight_dropout": P}):
        module = layer(cell, 3, 6, 2, 2, **rates)
        module.load_state_dict(plain.state_dict())
        assert not torch.equal(seeded(module, x)[0], plain(x)[0])
        assert not torch.equal(seeded(module, x)[0], seeded(module, x, seed=6)[0])
        assert torch.equal(seeded(module, x)[0], seeded(module, x)[0])
        torch.testing.assert_close(module.eval()(x)[0], plain(x)[0])
    results = []
    for rates in ({"recurrent_dropout": 1.0}, {"weight_dropout": 1}):
        module = layer(cell, 3, 6, 2, 2, **rates)
        module.load_state_dict(plain.state_dict())
        results.append(module(x)[0])
    torch.testing.assert_close(*results)


@each_cell
@backends
def test_weight_dropout_drops_weights_once_a_call(cell, backend):
    module = layer(cell, 3, 6, 2, 2, weight_dropout=P).double()
    x, hx = torch.randn(5, 4, 3, dtype=torch.float64), given(states_of(cell, 4, 4, 6, torch.float64))
    with fastrnn.backend(backend):
        output, _ = seeded(module, x, hx)
        found = torch.autograd.grad(output.sum(), list(module.parameters()))
        torch.manual_seed(5)
        names = {name: F.dropout(w, P) for name, w in module.named_parameters() if "weight_hh" in name}
        expected, _ = torch.func.functional_call(module.eval(), names, (x, hx))
        grads = torch.autograd.grad(expected.sum(), list(module.parameters()))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, grads)


@each_cell
def test_rates_that_are_none_are_refused(cell):
    for rate in (-0.1, 1.1, True, "0.5", None):
        for name in ("recurrent_dropout", "weight_dropout"):
            with pytest.raises(ValueError, match=rf"{cell.layer}: {name} must be a number in \[0, 1\], got {rate!r}"):
                layer(cell, 3, 6, **{name: rate})


def test_torch_is_asked_for_dropped_weights_alone():
    x = torch.randn(5, 4, 3)
    module = fastrnn.LSTM(3, 6, recurrent_dropout=P)
    with fastrnn.backend("aten"), pytest.raises(RuntimeError, match="recurrent_dropout, zoneout or heads"):
        module(x)
    assert "aten" in fastrnn.explain(module, x).reasons
    with fastrnn.backend("aten"):
        module.eval()(x)
        fastrnn.LSTM(3, 6, weight_dropout=P)(x)
    assert fastrnn.revert_(module).skipped == {"": "torch.nn has no recurrent_dropout"}
    assert type(module) is fastrnn.LSTM
