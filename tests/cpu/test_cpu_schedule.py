"""Lengths, resets, a reverse direction and c of every step in the compiled CPU kernels, against rowwise.py."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from rowwise import Call, evaluate, named
from support import (
    ISAS,
    KERNELS,
    backward_arguments,
    check,
    check_all,
    compiled,
    dtypes,
    flat,
    forward_arguments,
    name_of,
    pairwise,
    using,
)
from torch import Tensor

from fastrnn.registry import CELLS

pytestmark = compiled
LAYERS = {mode: (cell, False) for mode, cell in CELLS.items()} | {"LSTM projected": (CELLS["LSTM"], True)}
layers = pytest.mark.parametrize("layer", LAYERS)
DIRECTIONS = ("forward", "both", "reverse")
SIZES = (1, 3, 17, 33, 65, 127)
GRID = pairwise(
    {
        "T": (1, 2, 5),
        "B": (1, 3, 9, 17),
        "I": SIZES,
        "H": SIZES,
        "directions": DIRECTIONS,
        "bias": (True, False),
        "lengths": ("none", "random", "with zeros", "all zero", "all T"),
        "resets": ("none", "nowhere", "first", "last", "everywhere", "random"),
        "cells": (False, True),
        "padding": (math.nan, math.inf),
    }
)


def draw_lengths(kind: str, T: int, B: int) -> Tensor | None:
    lengths = torch.randint(1, T + 1, (B,))
    if kind == "with zeros":
        lengths[torch.randperm(B)[: (B + 1) // 2]] = 0
    return {"none": None, "all zero": torch.zeros_like(lengths), "all T": torch.full((B,), T)}.get(kind, lengths)


def draw_resets(kind: str, T: int, B: int) -> Tensor | None:
    resets = torch.zeros(B, T, dtype=torch.bool)
    if kind == "random":
        resets = torch.rand(B, T) < 0.3
    elif kind in ("first", "last", "everywhere"):
        resets[:, {"first": slice(1), "last": slice(T - 1, T), "everywhere": slice(T)}[kind]] = True
    return None if kind == "none" else resets


def draw(layer: str, T, B, I, H, directions="forward", bias=True, lengths="none", resets="none", cells=False) -> Call:
    cell, projected = LAYERS[layer]
    D, R = 1 + (directions == "both"), (H + 1) // 2 if projected and H > 1 else H
    scale, rows = 1 / H**0.5, cell.gates * H
    shapes = [(rows, I), (rows, R)] + [(rows,), (rows,)] * bias + [(R, H)] * (R < H)
    weights = [(2 * torch.rand(shape) - 1) * scale for _ in range(D) for shape in shapes]
    hx = [torch.randn(D, B, width) for width in (R, H)[: cell.states]]
    x = torch.randn(T, B, I) * min(1, H / I) ** 0.5  # a larger I would saturate the gates
    if cell.mode == "RNN_RELU":
        # Near the kink rounding decides the gradient: every unit's sums are of one sign.
        signs = 1 - 2 * (torch.arange(rows) % 2)
        weights = [w.abs() * signs.view(-1, *[1] * (w.dim() - 1)) for w in weights]
        x, hx = x.abs(), [h.abs() for h in hx]
    schedule = draw_lengths(lengths, T, B), draw_resets(resets, T, B)
    return Call(cell, x, hx, weights, *schedule, directions, cells and cell.states == 2)


def gradients_for(call: Call, dtype: torch.dtype) -> list[Tensor]:
    """Random gradients of everything that comes out, representable in ``dtype``."""
    T, B, _ = call.x.shape
    D, R, H = call.hx[0].size(0), call.hx[0].size(2), call.hx[-1].size(2)
    shapes = [(T, B, D * R), *(h.shape for h in call.hx)] + [(T, B, D * H)] * call.cells
    return [torch.randn(shape).to(dtype) for shape in shapes]


def options_of(call: Call) -> dict:
    return {"lengths": call.lengths, "resets": call.resets, "forwards": int(call.directions != "reverse")}


def run(call: Call, incoming: list[Tensor], padding: float = 0.0, sizes: Tensor | None = None, needs=(True,) * 3):
    """The kernels' outputs and gradients, as evaluate() gives them; None for gradients that are not needed."""
    padded = sizes is None
    x, incoming = call.x.clone(), [grad.clone() for grad in incoming]
    if padded:
        for tensor in (x, incoming[0], *incoming[3:]):
            tensor[~call.exists()] = padding
    inputs, options = (call.cell.index, x, sizes, call.hx, call.weights), options_of(call)
    arguments = forward_arguments(*inputs, **options, all_states=call.cells)
    output, hn, saved = KERNELS.layer_forward(*arguments)
    unsaved = KERNELS.layer_forward(*forward_arguments(*inputs, 0, **options, all_states=call.cells))
    for got, expected in zip([unsaved[0], *unsaved[1]], [output, *hn]):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    grads = KERNELS.layer_backward(*backward_arguments(arguments, incoming, output, saved, needs))
    grad_x, grad_hx, grad_weights = *grads[:2], grads[2] and [g for g in grads[2] if g is not None]
    if not all(needs):
        return grad_x, grad_hx, grad_weights
    if padded and call.lengths is not None:
        for dead in (output, grad_x, *hn[2:]):
            assert (dead[~call.exists()] == 0).all()
        empty = call.lengths == 0
        for got, given in zip([*hn[: len(grad_hx)], *grad_hx], [*call.hx, *incoming[1:]]):
            assert torch.equal(got[:, empty], given[:, empty])
    return named([output, *hn], [grad_x, *grad_hx, *grad_weights])


def compare(results: list[dict], theirs: dict, truth: dict, of_one_unit: bool) -> None:
    """check_all(), but gradients of one unit are judged together: one sum says nothing of the errors of its terms."""
    for ours in results:
        if not of_one_unit:
            check_all(ours, theirs, truth)
            continue
        parts = [{kind: [t for name, t in r.items() if kind in name] for kind in ("output", "gradient")}
                 for r in (ours, theirs, truth)]  # fmt: skip
        for kind in ("output", "gradient"):
            check(*(torch.cat([t.flatten() for t in part[kind]]) for part in parts), kind)


@layers
@dtypes
def test_error_budget(layer, dtype):
    """Any two values of any two factors meet in GRID."""
    for case in GRID:
        sizes = {name: value for name, value in case.items() if name != "padding"}
        call = draw(layer, **sizes).to(dtype)
        incoming = gradients_for(call, dtype)
        theirs, truth = evaluate(call, incoming), evaluate(call.to(torch.float64), incoming)
        for isa, threads in product(ISAS, (1, 2)):
            with using(isa, threads):
                ours = run(call, incoming, case["padding"])
            try:
                compare([ours], theirs, truth, case["H"] == 1)
            except AssertionError as error:
                raise AssertionError(f"{isa}, {threads} threads, {case}: {error}") from None


@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_two_threads(layer, dtype, directions):
    """Large enough for a second thread; the same bits again every time."""
    call = draw(layer, 8, 16, 96, 128, directions, lengths="with zeros", resets="random", cells=True).to(dtype)
    incoming = gradients_for(call, dtype)
    theirs, truth = evaluate(call, incoming), evaluate(call.to(torch.float64), incoming)
    with using(ISAS[-1], 2):
        first, second = (run(call, incoming, math.nan) for _ in range(2))
    compare([first], theirs, truth, False)
    assert all(torch.equal(first[name], second[name]) for name in first)


@layers
def test_copies_on_several_threads(layer):
    """What is gathered, scattered and cleared around the kernels is the same on two threads."""
    call = draw(layer, 200, 32, 65, 33, "both", lengths="with zeros", resets="random", cells=True)
    incoming = gradients_for(call, torch.float32)
    one = run(call, incoming, math.nan)
    with using(ISAS[-1], 2):
        two = run(call, incoming, math.nan)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-3 * one[name].abs().max().item())


@layers
@dtypes
def test_packed_and_reverse(layer, dtype):
    """Packed data in the one direction, and the same rows by their lengths: the same sums, so the same bits."""
    padded = draw(layer, 6, 9, 17, 33, "reverse", cells=True).to(dtype)
    padded.lengths = torch.randint(1, 7, (9,)).sort(descending=True).values
    padded.lengths[0] = 6
    incoming = gradients_for(padded, dtype)
    exists = padded.exists()
    packed = replace(padded, x=padded.x[exists], lengths=None)
    rows = [incoming[0][exists], *incoming[1:3], *(grad[exists] for grad in incoming[3:])]
    for isa in ISAS:
        with using(isa):
            expected, got = run(padded, incoming), run(packed, rows, sizes=exists.sum(1))
        for name, tensor in got.items():
            whole = expected[name]
            assert torch.equal(tensor, whole[exists] if tensor.shape != whole.shape else whole), (isa, name)
    check_all(expected, evaluate(padded, incoming), evaluate(padded.to(torch.float64), incoming))


@layers
@pytest.mark.parametrize("lengths, resets", [("none", "nowhere"), ("all T", "none"), ("all T", "nowhere")])
def test_what_says_nothing_changes_nothing(layer, lengths, resets):
    call = draw(layer, 5, 9, 17, 33, "both", lengths=lengths, resets=resets)
    incoming = gradients_for(call, torch.float32)
    plain, ours = run(replace(call, lengths=None, resets=None), incoming), run(call, incoming)
    assert all(torch.equal(plain[name], ours[name]) for name in plain)


@layers
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_only_what_is_needed(layer, directions):
    for schedule in ({}, {"lengths": "with zeros"}, {"resets": "random"}, {"lengths": "random", "resets": "random"}):
        call = draw(layer, 5, 9, 17, 33, directions, cells=True, **schedule)
        incoming = gradients_for(call, torch.float32)
        grads = [tensor for name, tensor in run(call, incoming).items() if "gradient" in name]
        states = 1 + len(call.hx)
        full = [grads[:1], grads[1:states], grads[states:]]
        for needs in list(product((False, True), repeat=3))[:-1]:
            for wanted, got, expected in zip(needs, run(call, incoming, needs=needs), full):
                if not wanted:
                    assert got is None
                    continue
                got = [got] if isinstance(got, Tensor) else got
                assert all(torch.equal(a, b) for a, b in zip(got, expected))


@layers
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_reset_stops_what_is_not_finite(layer, directions):
    """In both passes: nothing of step 3 is left from step 5 on, nor of step 6 before step 5, nor in the states."""
    call = draw(layer, 9, 3, 5, 19, directions, resets="nowhere", cells=True)
    call.resets[1, 5] = True
    incoming = gradients_for(call, torch.float32)
    bad = replace(call, x=call.x.clone())
    bad.x[3, 1] = math.nan
    clean, dirty = run(call, incoming), run(bad, incoming)
    for name in ("output 0", *(name for name in clean if call.cells and name == "output 3")):
        assert torch.equal(clean[name][5:], dirty[name][5:])
        assert dirty[name][3, 1].isnan().all()
        assert torch.equal(clean[name][:, [0, 2]], dirty[name][:, [0, 2]])
    incoming[0][6, 1] = math.nan
    grad = run(call, incoming)["gradient 0"]
    assert torch.equal(grad[:5], clean["gradient 0"][:5]) and grad[6, 1].isnan().all()


@layers
def test_arguments_of_any_strides(layer):
    call = draw(layer, 5, 9, 17, 33, "both", lengths="random", resets="random", cells=True)
    incoming = gradients_for(call, torch.float32)

    def spread(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor], -1)[..., 0].transpose(0, -1).contiguous().transpose(0, -1)

    hx, weights = ([spread(t) for t in tensors] for tensors in (call.hx, call.weights))
    schedule = {"lengths": torch.stack([call.lengths] * 2, 1)[:, 0], "resets": call.resets.t().contiguous().t()}
    strided = replace(call, x=spread(call.x), hx=hx, weights=weights, **schedule)
    plain, ours = run(call, incoming), run(strided, [spread(grad) for grad in incoming])
    assert all(torch.equal(plain[name], ours[name]) for name in plain)


def refusals():
    T, B = 5, 3
    yield {"lengths": torch.tensor([1, 6, 2])}, r"lengths must be within 0 \.\. T = 5, got 6 at index 1"
    yield {"lengths": torch.tensor([1, 2, -1])}, r"lengths must be within 0 \.\. T = 5, got -1 at index 2"
    yield {"lengths": torch.ones(B)}, r"lengths must be Long on cpu, got Float on cpu"
    yield {"lengths": torch.ones(B + 1, dtype=torch.long)}, r"lengths must have shape \[3\], got \[4\]"
    yield {"resets": torch.zeros(T, B, dtype=torch.bool)}, r"resets must have shape \[3, 5\], got \[5, 3\]"
    yield {"resets": torch.zeros(B, T)}, r"resets must be Bool on cpu, got Float"


@pytest.mark.parametrize("schedule, message", list(refusals()), ids=[str(i) for i in range(6)])
def test_refusals(schedule, message):
    call = draw("GRU", 5, 3, 2, 4)
    inputs = call.cell.index, call.x, None, call.hx, call.weights
    output, _, saved = KERNELS.layer_forward(*forward_arguments(*inputs))
    error = ValueError if "within" in message else RuntimeError
    with pytest.raises(error, match=f"fastrnn._C.cpu.layer_forward: {message}"):
        KERNELS.layer_forward(*forward_arguments(*inputs, **schedule))
    with pytest.raises(error, match=f"fastrnn._C.cpu.layer_backward: {message}"):
        arguments = backward_arguments(forward_arguments(*inputs, **schedule), [output, *call.hx], output, saved)
        KERNELS.layer_backward(*arguments)


def test_refused_combinations():
    gru, both = draw("GRU", 5, 3, 2, 4), draw("LSTM", 5, 3, 2, 4, "both")
    of_gru = gru.cell.index, gru.x, None, gru.hx, gru.weights
    of_both = both.cell.index, both.x, None, both.hx, both.weights
    with pytest.raises(RuntimeError, match=r"forwards must be in 0 \.\. D = 2, got 3"):
        KERNELS.layer_forward(*forward_arguments(*of_both, forwards=3))
    sizes, lengths = torch.full((5,), 3), torch.full((3,), 5)
    with pytest.raises(RuntimeError, match="lengths and batch_sizes exclude each other"):
        rows = gru.x.flatten(0, 1)
        KERNELS.layer_forward(*forward_arguments(gru.cell.index, rows, sizes, *of_gru[3:], lengths=lengths))
    arguments = forward_arguments(*of_both, all_states=True)
    output, hn, saved = KERNELS.layer_forward(*arguments)
    with pytest.raises(RuntimeError, match=r"grads\[3\] must have shape \[5, 3, 8\], got \[2, 3, 4\]"):
        KERNELS.layer_backward(*backward_arguments(arguments, [output, *hn[:2], hn[1]], output, saved))
    with pytest.raises(RuntimeError, match=r"grads must hold 4 entries .* for LSTM, got 2"):
        KERNELS.layer_backward(*backward_arguments(arguments, [output, *hn[:1]], output, saved))


def replaced(arguments: tuple, place: int, index: int, value) -> list:
    """The arguments with another entry in one of their lists."""
    changed = list(arguments)
    changed[place] = [*changed[place][:index], value, *changed[place][index + 1 :]]
    return changed


def test_refused_lists():
    gru = draw("GRU", 5, 3, 2, 4)
    good = forward_arguments(gru.cell.index, gru.x, None, gru.hx, gru.weights)
    refused = [
        (replaced(good, 4, 0, 7), r"spec must hold 6 numbers and begin with version 2, got \[7, 1, 1, 1, 0, 0\]"),
        (replaced(good, 4, 1, 99), r"cell must be in 0 \.\. .*, got 99"),
        (replaced(good, 4, 1, 1 << 32), r"cell 4294967296 is not loaded"),
        (replaced(good, 4, 2, 3), r"save must be 0 \(nothing\), 1 \(everything\) or 2 \(states\), got 3"),
        (replaced(good, 3, 0, None), "w_ih must be a tensor in every direction, got None"),
        (replaced(good, 3, 1, None), r"w_hh must have shape \(G \* H, R\), got None"),
        (replaced(good, 3, 3, None), "b_hh must be a tensor in every direction, got None"),
        (
            replaced(good, 3, 4, torch.ones(2, 4)),
            "a projection needs a cell without other use of h, and R < H, got GRU",
        ),
        (
            [good[0], [None], *good[2:]],
            r"given must hold 5 entries \(batch_sizes, lengths, resets, operand_mask, seeds\), got 1",
        ),
        ([*good[:3], good[3][:3], *good[4:]], "weights must hold 5 entries for each of 1 directions, got 3"),
        ([*good[:5], [0.5]], "scalars must hold 0 numbers for GRU, and two more with zoneout, got 1"),
    ]
    for arguments, message in refused:
        with pytest.raises(RuntimeError, match=message):
            KERNELS.layer_forward(*arguments)
    output, _, saved = KERNELS.layer_forward(*good)
    unsaved = forward_arguments(gru.cell.index, gru.x, None, gru.hx, gru.weights, 0)
    for arguments, message in [
        (backward_arguments(unsaved, [output, *gru.hx], output, []), "results of a forward call with save > 0"),
        (backward_arguments(good, [output, *gru.hx], output, saved * 2), "results must hold the 2 tensors .*, got 3"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            KERNELS.layer_backward(*arguments)


def test_no_gradient_is_zero():
    lstm = draw("LSTM", 5, 3, 2, 4, "both")
    arguments = forward_arguments(lstm.cell.index, lstm.x, None, lstm.hx, lstm.weights, all_states=True)
    output, states, saved = KERNELS.layer_forward(*arguments)
    given = [torch.randn_like(t) for t in (output, *states)]
    for absent in range(len(given)):
        zero = [torch.zeros_like(g) if i == absent else g for i, g in enumerate(given)]
        none = [None if i == absent else g for i, g in enumerate(given)]
        results = [KERNELS.layer_backward(*backward_arguments(arguments, g, output, saved)) for g in (zero, none)]
        assert all(map(torch.equal, *map(flat, results)))
