"""Packed sequences: every row is computed as if it were alone, and comes back where the caller put it."""

from __future__ import annotations

import copy

import pytest
import torch
from support import build, cells, check, compare, cotangents, device_of, like, random_states, tensors, twins
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

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
def test_each_row_is_as_if_alone(cell, backend):
    """Against torch.nn run on every sequence by itself, without packing: outputs, final states and gradients."""
    lengths = [2, 6, 1, 4]
    device = device_of(backend)
    ours, theirs, truth = twins(cell, 3, 5, 2, bidirectional=True, device=device)
    rows = [torch.randn(length, 3) for length in lengths]
    hx = random_states(cell, 4, len(rows), 5)

    sources = [like(ours, row) for row in rows]
    states = like(ours, hx)
    output, hn = ours(pack_sequence(sources, enforce_sorted=False), states)
    padded, counted = pad_packed_sequence(output)
    assert counted.tolist() == lengths
    final = tensors(hn)
    incoming = {}
    for i, length in enumerate(lengths):
        results = [[padded[:length, i], *(h[:, i] for h in final)]]
        incoming[i] = cotangents(results[0], torch.float32)
        for module in (theirs, truth):
            alone = tuple(h[:, i] for h in tensors(like(module, hx)))
            results.append(tensors(module(like(module, rows[i]), alone if cell.states == 2 else alone[0])))
        for triple in zip(*results, strict=True):
            check(*triple, what=f"row {i}")

    outputs = [t for i, n in enumerate(lengths) for t in [padded[:n, i], *(h[:, i] for h in final)]]
    grads = torch.autograd.grad(outputs, sources, [g for group in incoming.values() for g in group])
    for i, row in enumerate(rows):
        expected = []
        for module in (theirs, truth):
            x = like(module, row)
            alone = tuple(h[:, i] for h in tensors(like(module, hx)))
            results = tensors(module(x, alone if cell.states == 2 else alone[0]))
            expected += torch.autograd.grad(results, x, [g.to(t) for g, t in zip(incoming[i], results)])
        check(grads[i], *expected, what=f"gradient of row {i}")


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
def test_states_come_back_in_the_callers_order(cell, backend):
    """A stretch of zeros as input and no recurrence leave each row's own state: hard to get right by accident."""
    device = device_of(backend)
    module, theirs, truth = twins(cell, 3, 5, bidirectional=True, device=device)
    hx = random_states(cell, 2, 4, 5)
    packed = [pack_padded_sequence(torch.zeros(6, 4, 3), [2, 6, 1, 4], enforce_sorted=False) for _ in range(3)]
    results = [tensors(m(p.to(next(m.parameters())), like(m, hx))[1]) for m, p in zip((module, theirs, truth), packed)]
    for triple in zip(*results, strict=True):
        check(*triple)
    # and not, say, in the sorted order
    order = torch.tensor([1, 3, 0, 2])
    assert not torch.allclose(results[0][0][:, order].cpu().double(), results[2][0], atol=1e-3)


@cells
def test_padding_is_never_read(cell, backend):
    device = device_of(backend)
    module = build(fastrnn, cell, 3, 5, 2, bidirectional=True, device=device)
    clean = torch.randn(6, 4, 3, device=device)
    dirty = clean.clone()
    for row, length in enumerate([2, 6, 1, 4]):
        dirty[length:, row] = float("nan")
    results = [tensors(module(pack_padded_sequence(x, [2, 6, 1, 4], enforce_sorted=False))) for x in (clean, dirty)]
    assert all(torch.equal(a, b) for a, b in zip(*results))


@cells
def test_gradients_stay_in_their_row(cell, backend):
    """A loss on one row alone gives the other rows of the input exactly zero, and the padding too."""
    module = build(fastrnn, cell, 3, 5, 2, bidirectional=True, device=device_of(backend))
    x = like(module, torch.randn(6, 4, 3))
    output, _ = module(pack_padded_sequence(x, [2, 6, 1, 4], enforce_sorted=False))
    pad_packed_sequence(output)[0][:, 3].sum().backward()
    per_row = x.grad.abs().sum((0, 2))
    assert per_row[3] > 0 and per_row[:3].count_nonzero() == 0 and x.grad[4:, 3].count_nonzero() == 0


@cells
def test_training_step(cell, backend):
    """Three steps of SGD on packed batches end where torch's end."""
    modules = twins(cell, 3, 5, 2, bidirectional=True, device=device_of(backend))
    before = copy.deepcopy(modules[0].state_dict())
    batches = [torch.randn(6, 4, 3) for _ in range(3)]
    for module in modules:
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for x in batches:
            optimizer.zero_grad()
            packed = pack_padded_sequence(like(module, x), [2, 6, 1, 4], enforce_sorted=False)
            module(packed)[0].data.square().mean().backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in modules[0].named_parameters())
    for triple in zip(*(module.parameters() for module in modules), strict=True):
        check(*triple)


@cells
def test_batch_sizes_of_another_type(cell, backend):
    packed = pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    packed = PackedSequence(packed.data, packed.batch_sizes.int())
    for space in (nn, fastrnn):
        with pytest.raises(RuntimeError, match=r"Long|int64"):
            build(space, cell, 4, 6).to(device_of(backend))(packed.to(device_of(backend)))
