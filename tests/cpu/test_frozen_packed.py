"""The packed weights of frozen layers: what the kernels take, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from support import compiled
from torch import nn

import fastrnn
from fastrnn._kernels import ext

pytestmark = compiled


def test_packed_weights_of_something_else():
    kernels = ext.load().cpu
    frozen = fastrnn.freeze(nn.GRU(3, 4))
    for wrong in (torch.zeros(500, dtype=torch.uint8), frozen._packed[:-1], frozen._packed[64:]):
        with pytest.raises(RuntimeError, match="expected the weights that pack_frozen returned"):
            kernels.frozen_forward(wrong, torch.zeros(1, 1, 3), None, None, None, False)
    for place in range(56):  # in the header: a constant, version, lanes, the shape
        wrong = frozen._packed.clone()
        wrong[place] = 255 - wrong[place]
        with pytest.raises(RuntimeError, match="expected the weights that pack_frozen returned"):
            kernels.frozen_forward(wrong, torch.zeros(1, 1, 3), None, None, None, False)
    for cell in (2, 1 << 32):
        with pytest.raises(RuntimeError, match=f"no kernels for cell {cell}"):
            kernels.pack_frozen(cell, 2, [1, 1, 3, 4, 4], [None] * 7)


def test_sums_of_int8_fit_their_type():
    most = 2**31 // (255 * 127)
    fastrnn.freeze(nn.GRU(most, 1), torch.int8)
    with pytest.raises(RuntimeError, match=f"at most {most} inputs, got {most + 1}"):
        fastrnn.freeze(nn.GRU(most + 1, 1), torch.int8)


def test_an_int8_weight_beyond_the_scale_is_refused():
    """Its magnitude, 128, is no int8: AVX2 multiplied with the wrong sign."""
    frozen = fastrnn.freeze(nn.GRU(3, 4), torch.int8)
    before, changed = frozen(torch.ones(2, 1, 3))[0], frozen.state_dict()
    changed["weight_hh_l0"] = torch.full_like(changed["weight_hh_l0"], -128)
    with pytest.raises(RuntimeError, match=r"weight_hh_l0 of the frozen layer holds int8 weights, .*, got -128"):
        frozen.load_state_dict(changed)
    assert torch.equal(frozen(torch.ones(2, 1, 3))[0], before) and frozen.weight_hh_l0.min() > -128
    slots = [frozen._buffers.get(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    slots[1] = changed["weight_hh_l0"]
    scales = [None, *(frozen._buffers[f"{name}_l0_scale"] for name in ("weight_ih", "weight_hh"))]
    with pytest.raises(ValueError, match=r"int8 weights must be within -127 \.\. 127, got -128 in weight 1"):
        ext.load().cpu.pack_frozen(1, 2, [1, 1, 3, 4, 4], [*slots, *scales])
