"""What the CPU kernels keep for backward: no more than torch.nn, and nothing where no gradient is wanted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from cases import GRIDS
from support import compiled, forward_arguments, is_bfloat16_in_onednn
from torch import nn

import fastrnn
from fastrnn._kernels import ops
from fastrnn.bench.case import Side, build, make_inputs, make_weights
from fastrnn.bench.memory import saved_bytes
from fastrnn.registry import CELLS

pytestmark = compiled


def scaled(case):
    """A grid's case with fewer steps and units: what is kept grows with either as the full case's does."""
    wide = max(case.I, case.H) > 300
    return dataclasses.replace(
        case, T=min(case.T, 7), B=min(case.B, 20), I=case.I // 8 if wide else case.I, H=case.H // 8 if wide else case.H
    )


CASES = sorted({scaled(case) for case in GRIDS["cpu"] if case.mode == "training"}, key=str)
PACKED = [
    dataclasses.replace(CASES[0], cell=cell, T=5, B=4, layers=2, directions=2, packed=True)
    for cell in ("LSTM", "GRU", "RNN")
]


@pytest.mark.parametrize("case", [*CASES, *PACKED], ids=str)
def test_kept_for_backward(case):
    weights = make_weights(case)
    counts = {}
    for name, space in (("ours", fastrnn), ("torch", nn)):
        side = Side(build(getattr(space, case.cell), case, "cpu", weights), case)
        with fastrnn.backend("cpu"):
            counts[name] = saved_bytes(side, make_inputs(case, "cpu")[0])
    # Without oneDNN torch's LSTM keeps h and c as they enter each step; the kernels keep what leaves the last one, too.
    plain = case.cell == "LSTM" and case.dtype == "bfloat16" and not is_bfloat16_in_onednn()
    ends = 4 * case.layers * case.directions * case.B * case.H if plain else 0
    assert 0 < counts["ours"] <= counts["torch"] + ends, counts


@pytest.mark.parametrize("mode", CELLS)
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_nothing_without_gradient(mode, grad):
    """Neither through autograd, nor in the kernels' own buffers: they return no saved tensor."""
    cell = CELLS[mode]
    options = {"nonlinearity": cell.nonlinearity} if cell.nonlinearity else {}
    module = getattr(fastrnn, cell.layer)(5, 6, 2, bidirectional=True, **options)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with fastrnn.backend("cpu"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with grad():
            output, _ = module(torch.randn(4, 3, 5))
        assert output.grad_fn is None and kept == []
        module(torch.randn(4, 3, 5))
        assert kept  # the hook does see what is saved
    hx = [torch.randn(1, 3, 6) for _ in range(cell.states)]
    weights = [torch.randn(cell.gates * 6, 5), torch.randn(cell.gates * 6, 6)]
    arguments = forward_arguments(cell.index, torch.randn(4, 3, 5), None, hx, weights, 0)
    assert ops.layer_ops("cpu").layer_forward(*arguments)[2] == []
