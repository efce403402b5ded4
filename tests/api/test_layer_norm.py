"""Layers with layer normalisation: rows of many units, special values, threads and initial values.

The rest of their tests are those of all cells: test_own_cells, test_own_steps, test_dropping, test_zoneout.
"""

from __future__ import annotations

import pytest
import torch
from emulator.cases import Layer
from emulator.special_values import check_special_values
from support import ISAS, KERNELS, compiled, using
from test_own_cells import precisions

import fastrnn
from fastrnn.registry import OWN_CELLS

layers = pytest.mark.parametrize("kind", [fastrnn.LayerNormLSTM, fastrnn.LayerNormGRU], ids=lambda kind: kind.__name__)
steps = {fastrnn.LayerNormLSTM: fastrnn.LayerNormLSTMCell, fastrnn.LayerNormGRU: fastrnn.LayerNormGRUCell}


@compiled
@layers
@precisions
@pytest.mark.parametrize("shape", [(12, 9, 40, 100), (5, 33, 8, 64)], ids=str)
def test_rows_of_many_units(kind, precision, shape):
    """As test_own_cells, whose rows are short."""
    Layer(OWN_CELLS[kind._mode].index, precision, shape).check(KERNELS)


@compiled
@layers
@precisions
def test_nan_and_infinities(kind, precision):
    for isa in ISAS:
        with using(isa):
            check_special_values(KERNELS, OWN_CELLS[kind._mode].index, precision)


@compiled
@layers
def test_any_number_of_threads(kind):
    """They share rows and directions, never the units of a row; the same number gives the same bits."""
    torch.manual_seed(1)
    for B, D in ((1, 1), (1, 2), (16, 1), (9, 2)):
        module = kind(96, 128, bidirectional=D == 2).double()
        x = torch.randn(12, B, 96, dtype=torch.float64).requires_grad_()
        results = {}
        for count in (1, 2, 3, 2):
            with using(threads=count), fastrnn.backend("cpu"):
                output, _ = module(x)
                found = [output, *torch.autograd.grad(output.square().sum(), [x, *module.parameters()])]
            assert all(map(torch.equal, found, results.setdefault(count, found)))
            torch.testing.assert_close(found, results[1], rtol=1e-9, atol=1e-9)


@layers
def test_initial_values(kind):
    module, step, H = kind(3, 8, 2, bidirectional=True), steps[kind](3, 8), 8
    for name, weight in [*module.named_parameters(), *step.named_parameters()]:
        if "norm" in name:
            assert torch.equal(weight, torch.full_like(weight, float(name.startswith("weight")))), name
            assert weight.shape == (H if "norm_c" in name else H * (4 if kind is fastrnn.LayerNormLSTM else 3),)
        else:
            assert 0 < weight.abs().max() <= H**-0.5, name
