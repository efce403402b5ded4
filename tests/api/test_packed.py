"""Packed sequences: every row is computed as if it were alone, and comes back where the caller put it."""

from __future__ import annotations

import pytest
import torch
from support import build, cells, compare, device_of, random_states, twins
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fastrnn

LENGTHS = {
    "sorted": [6, 4, 4, 1],
    "unsorted": [2, 6, 1, 4],
    "equal": [3, 3, 3],
    "all of length 1": [1, 1, 1],
    "one row": [5],
    "one long row": [1, 7, 1, 1],
}


@cells
@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("hx", [False, True], ids=["zeros", "hx"])
def test_against_torch(cell, kind, hx, backend):
    lengths = LENGTHS[kind]
    batch, proj = len(lengths), 3 if cell.mode == "LSTM" else 0
    options = {"proj_size": proj} if proj else {}
    modules = twins(cell, 3, 5, 2, bidirectional=True, batch_first=True, device=device_of(backend), **options)
    states = random_states(cell, 4, batch, 5, proj) if hx else None
    compare(modules, torch.randn(batch, max(lengths), 3), states, torch.tensor(lengths))


@cells
def test_result_is_packed_alike(cell, backend):
    """Same batch sizes (int64, on the CPU) and the same index tensors as the input, as in torch."""
    device = device_of(backend)
    module = build(fastrnn, cell, 3, 5, device=device)
    for sort in (True, False):
        lengths = sorted([2, 6, 1, 4], reverse=True) if sort else [2, 6, 1, 4]
        packed = pack_padded_sequence(torch.randn(6, 4, 3, device=device), lengths, enforce_sorted=sort)
        output, _ = module(packed)
        assert type(output) is PackedSequence and output.data.shape == (13, 5)
        assert output.batch_sizes is packed.batch_sizes and output.batch_sizes.dtype == torch.int64
        assert output.batch_sizes.device.type == "cpu"
        assert output.sorted_indices is packed.sorted_indices
        assert output.unsorted_indices is packed.unsorted_indices
        assert (output.unsorted_indices is None) == sort


@cells
def test_batch_sizes_of_another_type(cell, backend):
    packed = pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    packed = PackedSequence(packed.data, packed.batch_sizes.int())
    for space in (nn, fastrnn):
        with pytest.raises(RuntimeError, match=r"Long|int64"):
            build(space, cell, 4, 6).to(device_of(backend))(packed.to(device_of(backend)))
