"""``num_heads``: groups of units that share the input and know nothing of each other's states."""

from __future__ import annotations

import pytest
import torch
from emulator import oracle
from support import name_of, pairs, tensors, using
from test_dropping import HEADED, layer, seeded
from test_own_cells import ASKED, BACKENDS, check_with_formulas
from torch import nn

import fastrnn


@pairs(cell=HEADED, backend=BACKENDS, asked=ASKED, heads=[2, 3])
def test_heads_are_a_block_diagonal_matrix(cell, backend, asked, heads):
    check_with_formulas(layer(cell, 3, 6, 2, 2, num_heads=heads).double(), backend, **asked)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_same_blocks_in_a_layer_of_torch(kind):
    ours = getattr(fastrnn, kind)(5, 12, 2, bidirectional=True, num_heads=3)
    theirs, gates = getattr(nn, kind)(5, 12, 2, bidirectional=True), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    weights = ours.state_dict()
    for name, weight in weights.items():
        if name.startswith("weight_hh"):
            assert weight.shape == (3, gates * 4, 4)
            weights[name] = torch.cat([torch.block_diag(*weight[:, g * 4 : g * 4 + 4]) for g in range(gates)])
    theirs.load_state_dict(weights)
    x = torch.randn(7, 4, 5)
    torch.testing.assert_close(tensors(ours(x)), tensors(theirs(x)))


@pytest.mark.parametrize("heads", [2, 3, 4, 6])
def test_threads_share_out_heads(heads):
    """Teams of threads take as many heads each as there are, or all heads one after another."""
    module, x = fastrnn.LSTM(5, 48, 2, bidirectional=True, num_heads=heads).double(), torch.randn(6, 3, 5).double()
    found = []
    for threads in (1, 2, 3, 4):
        with using(threads=threads):
            output, _ = module(x)
            found.append([output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))])
    expected = tensors(oracle.stack(module, x, [torch.zeros(4, 3, 48).double()] * 2))[0]
    torch.testing.assert_close(found[0][0], expected, rtol=1e-9, atol=1e-9)
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cell", HEADED, ids=name_of)
def test_backends_drop_the_same(cell):
    module, x = (
        layer(cell, 3, 8, 2, 2, zoneout=0.3, recurrent_dropout=0.4, weight_dropout=0.2, num_heads=2),
        torch.randn(5, 4, 3),
    )
    with fastrnn.backend("reference"):
        expected = tensors(seeded(module, x))
    torch.testing.assert_close(tensors(seeded(module, x)), expected)


def test_what_does_not_divide_is_refused():
    for heads in (0, -1, 4, True, 2.0, "2", None):
        with pytest.raises(ValueError, match="GRU: num_heads must be a divisor of hidden_size = 6, got"):
            fastrnn.GRU(3, 6, num_heads=heads)
    with pytest.raises(ValueError, match="LSTM: num_heads must be at most 16, got 32"):
        fastrnn.LSTM(3, 64, num_heads=32)
    with pytest.raises(ValueError, match="LSTM: num_heads must be at most 8 of both directions, got 16"):
        fastrnn.LSTM(3, 64, num_heads=16, bidirectional=True)
    with pytest.raises(ValueError, match="LSTM: num_heads and proj_size exclude each other"):
        fastrnn.LSTM(3, 6, num_heads=2, proj_size=2)
    with pytest.raises(ValueError, match="IndRNN: num_heads must be 1, got 2: each unit is a head of its own"):
        fastrnn.IndRNN(3, 6, num_heads=2)
    with pytest.raises(ValueError, match="num_heads must be 1, got 2: all units of a row are normalised together"):
        fastrnn.LayerNormGRU(3, 6, num_heads=2)
    assert fastrnn.LSTM(3, 6, num_heads=1).weight_hh_l0.shape == (24, 6)
    module = fastrnn.LSTM(3, 6, num_heads=2)
    assert fastrnn.revert_(module).skipped == {"": "torch.nn has no num_heads"}
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        module.load_state_dict(nn.LSTM(3, 6).state_dict())
