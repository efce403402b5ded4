"""The compiled CPU kernels on every instruction set: all that a layer call may be asked for, against the formulas."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from emulator.cases import Layer, flat, resets_of
from support import ISAS, KERNELS, backward_arguments, compiled, pairwise, using
from torch import Tensor

from fastrnn.bench.gate import errors
from fastrnn.registry import CELLS

pytestmark = compiled
LAYERS = {mode: (cell.index, False) for mode, cell in CELLS.items()} | {"LSTM projected": (CELLS["LSTM"].index, True)}
layers = pytest.mark.parametrize("layer", LAYERS)
precisions = pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
DIRECTIONS = ("forward", "both", "reverse")
# In shares of what fastrnn.bench.gate allows where torch's results are the exact ones, rounded.
BUDGET = {"float64": 0.25, "float32": 1.75, "bfloat16": 1.5, "float16": 1.5}
# Of one unit each gradient is a single sum, whose size says nothing of the errors of its terms.
SIZES = (1, 3, 17, 33, 65, 127, 257)
GRID = pairwise(
    {
        "T": (1, 2, 5),
        "B": (1, 3, 9, 17),
        "I": SIZES,
        "H": SIZES[1:],
        "directions": DIRECTIONS,
        "biased": (True, False),
        "rows": ("whole", "packed", "random", "with zeros", "all zero", "all T"),
        "resets": ("none", "nowhere", "ends", "everywhere", "random"),
        "cells": (False, True),
    }
)


def made(layer, precision, shape, directions="both", rows="whole", resets="none", **options) -> Layer:
    cell, projected = LAYERS[layer]
    T, B, I, H = shape
    some = torch.randint(1, T + 1, (B,))
    lengths = {"random": some, "with zeros": some * (torch.randperm(B) > B // 2), "all zero": 0 * some}
    lengths["all T"] = torch.full((B,), T)
    call = Layer(
        cell, precision, shape, 1 + (directions == "both"), rows == "packed", forwards=int(directions != "reverse"),
        lengths=lengths[rows].tolist() if rows in lengths else None,
        resets={"none": None, "nowhere": torch.zeros(B, T).bool()}.get(resets, resets_of(resets, B, T)),
        projection=(H + 1) // 2 if projected else None, **options,
    )  # fmt: skip
    call.x *= min(1, H / I) ** 0.5  # a larger I would saturate the gates, where 1 - y * y has few digits left
    return call


def check(call: Layer, isas=ISAS, threads=(1, 2), case=None) -> None:
    """Results beside those of the formulas, rounded to the type: what is 0 there, as all padding, is 0 exactly."""
    truth, outputs = flat(call.by_the_formulas()), 1 + len(call.hx) + len(call.grad_cells)
    names = [f"{'output' if i < outputs else 'gradient'} {i}" for i in range(len(truth))]
    for isa, count in product(isas, threads):
        with using(isa, count):
            ours = call.results(KERNELS)
            call.check_without_save(KERNELS)
        worst, *_ = errors(names, ours, [t.to(call.dtype) for t in truth], truth)
        where = f"{isa}, {count} threads, {case}"
        assert worst.severity <= BUDGET[call.precision], f"{where}: {worst.severity:.2f} of the budget, {worst}"
        assert not any(mine[exact == 0].any() for mine, exact in zip(ours, truth)), where


@layers
@precisions
def test_error_budget(layer, precision):
    """Any two values of any two factors meet in GRID."""
    for case in GRID:
        options = {name: value for name, value in case.items() if name not in "TBIH"}
        options["biased"] |= layer == "RNN_RELU"  # biases keep it off the kink
        options["resets"] = "none" if case["rows"] == "packed" else case["resets"]
        check(made(layer, precision, tuple(case[axis] for axis in "TBIH"), **options), case=case)


@layers
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_two_threads(layer, precision, directions):
    """Large enough for a second thread; the same bits again every time."""
    call = made(layer, precision, (8, 16, 96, 128), directions, "with zeros", "random", cells=True)
    check(call, ISAS[-1:], [2])
    with using(ISAS[-1], 2):
        assert all(map(torch.equal, call.results(KERNELS), call.results(KERNELS)))


@layers
def test_copies_on_several_threads(layer):
    """What is gathered, scattered and cleared around the kernels is the same on two threads."""
    call = made(layer, "float32", (200, 32, 65, 33), rows="with zeros", resets="random", cells=True)
    one = call.results(KERNELS)
    with using(ISAS[-1], 2):
        for two, expected in zip(call.results(KERNELS), one, strict=True):
            torch.testing.assert_close(two, expected, rtol=1e-4, atol=1e-3 * expected.abs().max().item())


@layers
@precisions
def test_packed_and_reverse(layer, precision):
    """Packed data in the one direction, and the same rows by their lengths: the same sums, so the same bits."""
    packed = made(layer, precision, (6, 9, 17, 33), "reverse", "packed", cells=True)
    padded = copy.copy(packed)
    padded.batch_sizes, padded.schedule = None, {"forwards": 0, "lengths": torch.tensor(packed.lengths)}
    for isa in ISAS:
        with using(isa):
            for whole, rows in zip(padded.results(KERNELS), packed.results(KERNELS), strict=True):
                assert torch.equal(whole if whole.shape == rows.shape else packed.rows(whole), rows), isa


@layers
def test_what_says_nothing_changes_nothing(layer):
    plain, *others = (
        made(layer, "float32", (5, 9, 17, 33), rows=rows, resets=resets).results(KERNELS)
        for rows, resets in [("whole", "none"), ("whole", "nowhere"), ("all T", "none"), ("all T", "nowhere")]
    )
    assert all(all(map(torch.equal, other, plain)) for other in others)


@layers
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_reset_stops_what_is_not_finite(layer, directions):
    """In both passes: nothing of step 3 is left from step 5 on, nor of step 6 before step 5, nor in other rows."""
    call = made(layer, "float32", (9, 3, 5, 19), directions, resets="nowhere", cells=True)
    call.schedule["resets"][1, 5] = True
    output, hn, saved = call.forward(KERNELS)
    clean = call.backward(KERNELS, output, saved)[0]
    call.grad_output[6, 1] = math.nan
    dirty = call.backward(KERNELS, output, saved)[0]
    assert torch.equal(dirty[:5], clean[:5]) and dirty[6, 1].isnan().all()
    call.x[3, 1] = math.nan
    after, states, _ = call.forward(KERNELS)
    for clean, dirty in [(output, after), *list(zip(hn, states))[len(call.hx) :]]:
        assert torch.equal(dirty[5:], clean[5:]) and torch.equal(dirty[:, [0, 2]], clean[:, [0, 2]])
        assert dirty[3, 1].isnan().all()


@layers
@pytest.mark.parametrize("shape", [(5, 9, 17, 33), (40, 30, 64, 33)], ids=str)
@pytest.mark.parametrize("axis", [1, 2])
def test_arguments_of_any_strides(layer, shape, axis):
    def spread(tensor: Tensor) -> Tensor:
        """The values with another axis first in memory; of a vector every second."""
        if tensor.dim() == 1:
            return torch.stack([tensor, tensor], 1)[:, 0]
        last = min(axis, tensor.dim() - 1)
        return tensor.transpose(0, last).contiguous().transpose(0, last)

    call = made(layer, "float32", shape, rows="random", resets="random", cells=True)
    plain, strided = call.results(KERNELS), call.each(spread).results(KERNELS)
    assert all(map(torch.equal, strided, plain))


def test_no_gradient_is_zero():
    call = made("LSTM", "float32", (5, 3, 2, 4), cells=True)
    output, _, saved = call.forward(KERNELS)
    given = [call.grad_output, *call.grad_hn, *call.grad_cells]
    for k, grad in enumerate(given):
        results = []
        for value in (torch.zeros_like(grad), None):
            call.grad_output, *call.grad_hn, grad_cells = [*given[:k], value, *given[k + 1 :]]
            call.grad_cells = [grad_cells]
            results.append(flat(call.backward(KERNELS, output, saved)))
        assert all(map(torch.equal, *results))


GIVEN, HX, WEIGHTS, SPEC, SCALARS = range(1, 6)
# Of the arguments of a GRU with T 5, B 3, I 2, H 4: one, what is replaced in it and by what, and what is said then.
REFUSED = [
    (GIVEN, 1, torch.tensor([1, 6, 2]), r"lengths must be within 0 \.\. T = 5, got 6 at index 1"),
    (GIVEN, 1, torch.tensor([1, 2, -1]), r"lengths must be within 0 \.\. T = 5, got -1 at index 2"),
    (GIVEN, 1, torch.ones(3), r"lengths must be Long on cpu, got Float on cpu"),
    (GIVEN, 1, torch.ones(4, dtype=torch.long), r"lengths must have shape \[3\], got \[4\]"),
    (GIVEN, 2, torch.zeros(5, 3, dtype=torch.bool), r"resets must have shape \[3, 5\], got \[5, 3\]"),
    (GIVEN, 2, torch.zeros(3, 5), r"resets must be Bool on cpu, got Float"),
    (GIVEN, slice(1, None), [],
     r"given must hold 5 entries \(batch_sizes, lengths, resets, operand_mask, seeds\), got 1"),
    (HX, 0, torch.ones(1, 3, 0), r"hx\[0\] must have units, got shape \[1, 3, 0\]"),
    (WEIGHTS, slice(3, None), [], "weights must hold 5 entries for each of 1 directions, got 3"),
    (WEIGHTS, 0, None, "w_ih must be a tensor in every direction, got None"),
    (WEIGHTS, 1, None, r"w_hh must have shape \(G \* H, R\), got None"),
    (WEIGHTS, 3, None, "b_hh must be a tensor in every direction, got None"),
    (WEIGHTS, 4, torch.ones(2, 4), "a projection needs a cell without other use of h, and R < H, got GRU"),
    (SPEC, 0, 7, r"spec must hold 6 numbers and begin with version 2, got \[7, 1, 1, 1, 0, 0\]"),
    (SPEC, 1, 99, r"cell must be in 0 \.\. .*, got 99"),
    (SPEC, 1, 1 << 32, r"cell 4294967296 is not loaded"),
    (SPEC, 2, 3, r"save must be 0 \(nothing\), 1 \(everything\) or 2 \(states\), got 3"),
    (SPEC, 3, 2, r"forwards must be in 0 \.\. D = 1, got 2"),
    (SCALARS, slice(0), [0.5], "scalars must hold 0 numbers for GRU, and two more with zoneout, got 1"),
]  # fmt: skip


@pytest.mark.parametrize("place, index, value, message", REFUSED)
def test_refusals(place, index, value, message):
    call = Layer(CELLS["GRU"].index, "float32", (5, 3, 2, 4))
    output, _, saved = call.forward(KERNELS)
    arguments = [*map(list, call.arguments()[1:])]
    arguments[place - 1][index] = value
    arguments = call.x, *arguments
    error = ValueError if "within" in message else RuntimeError
    with pytest.raises(error, match=f"fastrnn(._C.cpu.layer_forward)?: {message}"):
        KERNELS.layer_forward(*arguments)
    with pytest.raises(error, match=f"fastrnn(._C.cpu.layer_backward)?: {message}"):
        KERNELS.layer_backward(*backward_arguments(arguments, [output, *call.hx], output, saved))


def test_refused_packed_rows():
    call = Layer(CELLS["GRU"].index, "float32", (5, 3, 2, 4), packed=True)
    x, *lists = call.arguments()
    rows = len(x)
    for sizes, message in [
        ([2**62] * 4, f"batch_sizes hold more rows than the {rows} of the input"),  # whose sum is 0 in 64 bits
        ([1] * (rows - 1), f"batch_sizes hold {rows - 1} rows, the input {rows}"),
        ([1, 2], "batch_sizes must be positive and must not increase, got 2 at index 1 after 1"),
    ]:
        given = [torch.tensor(sizes), *lists[0][1:]]
        with pytest.raises(RuntimeError, match=message):
            KERNELS.layer_forward(x, given, *lists[1:])
    call.schedule["lengths"] = torch.tensor(call.lengths)
    with pytest.raises(RuntimeError, match="lengths and batch_sizes exclude each other"):
        call.forward(KERNELS)


def test_lengths_are_not_read_before_the_device_is_known():
    """The memory of tensors on other devices is not this process's to read."""
    call = Layer(CELLS["GRU"].index, "float32", (5, 3, 2, 4))
    given = [None, torch.empty(3, dtype=torch.long), torch.empty(3, 5, dtype=torch.bool), None, None]
    x, _, *lists, spec, scalars = call.arguments()
    meta = [[t if t is None else t.to("meta") for t in tensors] for tensors in (given, *lists)]
    with pytest.raises(RuntimeError, match="x must be on the CPU, got meta"):
        KERNELS.layer_forward(x.to("meta"), *meta, spec, scalars)


def test_refused_gradients_and_results():
    call = Layer(CELLS["LSTM"].index, "float32", (5, 3, 2, 4), 2, cells=True)
    output, states, saved = call.forward(KERNELS)
    for save, grads, results, message in [
        (1, [*states[:2], states[1]], saved, r"grads\[3\] must have shape \[5, 3, 8\], got \[2, 3, 4\]"),
        (1, states[:1], saved, "grads must hold 4 entries .* for LSTM, got 2"),
        (0, states, [], r"results of a forward call with save > 0"),
        (1, states, saved * 2, f"results must hold the {1 + len(saved)} tensors .*, got {1 + 2 * len(saved)}"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            KERNELS.layer_backward(*backward_arguments(call.arguments(save), [output, *grads], output, results))
