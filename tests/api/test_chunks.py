"""checkpoint_chunks and save: the same results with less kept, measured by what is allocated."""

from __future__ import annotations

import functools

import pytest
import torch
from plain import LENGTHS, B, T, exact_module, kinds
from support import build, cells, device_of, pairs, tensors
from test_dropping import layer
from test_own_cells import ASKED, BACKENDS, check_with_formulas
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.registry import ALL_CELLS, CELLS

SCHEDULES = {name: ASKED[name] for name in ("plain", "lengths", "resets")}
SCHEDULES["both"] = SCHEDULES["lengths"] | SCHEDULES["resets"]
SCHEDULES["no row"] = {"lengths": torch.zeros(4, dtype=torch.int64)} | SCHEDULES["resets"]
LESS = {f"{count} chunks": {"checkpoint_chunks": count} for count in (1, 4, 100, "auto")}
LESS |= {"states": {"save": "states"}}


@pairs(
    cell=ALL_CELLS.values(), asked=SCHEDULES, less=LESS, own_backend=[None, *BACKENDS], proj=[0, 2], bias=[True, False]
)
def test_keeping_less_changes_nothing(cell, asked, less, own_backend, proj, bias):
    proj = proj if cell.mode == "LSTM" or (cell.projects and cell.mode not in CELLS) else 0
    options = {"bias": bias} | ({"proj_size": proj} if proj else {})
    module = layer(cell, 3, 6, 2, 2, **options).double()
    check_with_formulas(module, own_backend, proj, **asked, **less)


@kinds
def test_packed_batches_in_chunks_and_all_their_states(cell, options, own_backend):
    module = exact_module(cell, own_backend, 3, 7, 2, **options)
    x = torch.randn(T, B, 3, dtype=torch.float64, device=device_of(own_backend))
    lengths = LENGTHS.clamp(min=1)
    results = []
    for chunks in (None, 3):
        leaf = x.clone().requires_grad_()
        packed = pack_padded_sequence(leaf, lengths, enforce_sorted=False)
        output, hn, sequences = module(packed, all_states=True, checkpoint_chunks=chunks)
        everything = [output.data, *tensors(hn), *tensors(sequences)]
        sources = [leaf, *module.parameters()]
        results.append([*everything, *torch.autograd.grad(everything, sources, [t.cos() for t in everything])])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    padded = [pad_packed_sequence(s, total_length=T)[0] for layer in sequences for s in as_tuple(layer)]
    _, _, expected = module(x, lengths=lengths.to(x.device), all_states=True)
    torch.testing.assert_close(padded, [s for layer in expected for s in as_tuple(layer)], rtol=1e-12, atol=1e-12)


def as_tuple(states):
    return states if type(states) is tuple else (states,)


def test_chunks_draw_the_same_dropout(own_backend):
    module = fastrnn.LSTM(3, 8, 3, dropout=0.5, device=device_of(own_backend))
    x, results = torch.randn(T, B, 3, device=device_of(own_backend)), []
    for chunks in (None, 3):
        torch.manual_seed(5)
        output, _ = module(x, checkpoint_chunks=chunks)
        results.append([output, *torch.autograd.grad(output.sum(), list(module.parameters()))])
    torch.testing.assert_close(results[0], results[1])


def bytes_left(call) -> int:
    """What ``call`` has allocated and not freed when it returns, its result included."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        result = call()
    events = profiler.profiler.kineto_results.events()
    assert result is not None
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("directions", [1, 2])
def test_chunks_keep_little(directions):
    """Of 400 steps in 20 chunks: the output, and h and c where one chunk ends and another begins."""
    module = fastrnn.LSTM(8, 32, bidirectional=directions == 2)
    x = torch.randn(400, 4, 8, requires_grad=True)
    options = {}, {"checkpoint_chunks": "auto"}, {"save": "states"}
    whole, chunked, states = (bytes_left(functools.partial(module, x, **asked)) for asked in options)
    output, state = 4 * 400 * 4 * 32 * directions, 4 * 4 * 32 * directions
    assert output + 20 * 2 * state <= chunked <= output + 20 * 4 * state
    assert whole - output > 8 * (chunked - output), "more than a chunk's share is kept"
    assert states <= output + 4 * state


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "asked", [{"checkpoint_chunks": 5}, {"checkpoint_chunks": "auto"}, {"save": "states"}], ids=str
)
def test_a_program_has_an_open_length(asked, strict):
    module = fastrnn.LSTM(3, 5)
    shapes = {"input": {0: torch.export.Dim("T", min=2)}, **dict.fromkeys(asked)}
    program = torch.export.export(module, (torch.randn(20, B, 3),), asked, dynamic_shapes=shapes, strict=strict)
    x = torch.randn(37, B, 3)
    torch.testing.assert_close(program.module()(x, **asked), module(x))


@cells
def test_second_derivatives_through_chunks(cell, own_backend):
    module, results = build(fastrnn, cell, 3, 4, dtype=torch.float64, device=device_of(own_backend)), []
    x = torch.randn(9, B, 3, dtype=torch.float64, device=device_of(own_backend), requires_grad=True)
    for chunks in (None, 3):
        output, _ = module(x, checkpoint_chunks=chunks)
        (slope,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), [x, *module.parameters()], allow_unused=True))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
