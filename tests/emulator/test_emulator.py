"""The CUDA kernels and their bindings, run on the CPU by the emulator, against formulas in float64."""

import itertools

import pytest
import torch

from emulator import build
from emulator.cases import (
    DTYPE_NUMBER,
    DTYPES,
    KERNELS,
    RESIDENT,
    Layer,
    check_saved_shapes,
    check_unread_states,
    fp32_precision,
    masked_layers,
    parameters,
    prescribe,
    small_layers,
    timed_layers,
    zoned_layers,
)
from emulator.oracle import CELLS, FUSED, MODES, NORMED, PROJECTED
from emulator.special_values import check_special_values

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")

CASES = parameters(KERNELS)
EVERY_KERNEL = [*CASES, *parameters(RESIDENT)]
SECOND_CASES = [*parameters(KERNELS, every=2), *parameters(RESIDENT, every=2)]
# A precision or two of each kernel.
FEW_PRECISIONS = parameters(
    [(name, kernel, [p for p in precisions if p in ("float32", "tf32")]) for name, kernel, precisions in KERNELS]
    + [(name, kernel, ["bfloat16"]) for name, kernel, _ in RESIDENT]
)


def projections(cell, kernel):
    """None, and a size of h, if there are such layers on this kernel."""
    return [None, 5] if cell in PROJECTED and "tier" not in kernel else [None]


@pytest.mark.parametrize("cell, kernel, precision", EVERY_KERNEL)
def test_every_kernel_against_the_formulas(cuda, cell, kernel, precision):
    prescribe(cuda, kernel)
    for layer in small_layers(cell, precision, kernel=kernel):
        layer.check(cuda)
    # Seed 1: a relu's sums without biases do not come near zero.
    for projection, packed in itertools.product(projections(cell, kernel), (False, True)):
        layer = Layer(cell, precision, (3, 5, 3, 17), 2, packed, biased=packed, projection=projection, seed=1)
        layer.check(cuda)


@pytest.mark.parametrize("cell, kernel, precision", SECOND_CASES)
def test_every_kernel_with_lengths_resets_and_one_direction(cuda, cell, kernel, precision):
    prescribe(cuda, kernel)
    for projection in projections(cell, kernel):
        for layer in timed_layers(cell, precision, projection=projection):
            layer.check(cuda)
    check_unread_states(cuda, cell, precision)


@pytest.mark.parametrize("cell, kernel, precision", SECOND_CASES)
def test_every_kernel_with_an_operand_mask(cuda, cell, kernel, precision):
    prescribe(cuda, kernel)
    for projection in projections(cell, kernel):
        for layer in masked_layers(cell, precision, projection=projection):
            layer.check(cuda)


@pytest.mark.parametrize("cell, kernel, precision", SECOND_CASES)
def test_every_kernel_with_zoneout(cuda, cell, kernel, precision):
    prescribe(cuda, kernel)
    for layer in zoned_layers(cell, precision):
        layer.check(cuda)


@pytest.mark.parametrize("cell, kernel, precision", SECOND_CASES)
def test_nan_and_infinities_with_every_kernel(cuda, cell, kernel, precision):
    prescribe(cuda, kernel)
    check_special_values(cuda, cell, precision)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cell", [MODES.index(mode) for mode in NORMED])
def test_norms_of_more_units_than_a_block_has_threads(cuda, cell, precision):
    Layer(cell, precision, (2, 3, 2, 270), 2, packed=True).check(cuda)


@pytest.mark.parametrize("cell, kernel, precision", FEW_PRECISIONS)
def test_nothing_is_overwritten_and_no_bit_depends_on_what_is_saved_or_asked_for(cuda, cell, kernel, precision):
    prescribe(cuda, kernel)
    layers = [Layer(cell, precision, (3, 9, 2, 17), 2, packed=True)]
    for projection in projections(cell, kernel):
        layers += list(timed_layers(cell, precision, projection=projection))[:3]
    for layer in layers:
        layer.check_nothing_overwritten(cuda)
        layer.check_needs(cuda)
        (output, hn, _), (again, hn_again, nothing) = layer.forward(cuda), layer.forward(cuda, save=0)
        assert torch.equal(output, again) and all(map(torch.equal, hn, hn_again)) and nothing == []


@pytest.mark.parametrize("cell, projection", [*((cell, None) for cell in CELLS), *((cell, 2) for cell in PROJECTED)])
def test_full_lengths_change_no_bit_and_lengths_out_of_range_are_clamped(cuda, cell, projection):
    def bits(**schedule):
        layer = Layer(cell, "float32", (3, 3, 2, 7), 2, projection=projection)
        layer.schedule = {name: torch.tensor(value) for name, value in schedule.items()}
        return layer.results(cuda)

    for fused in (False, True):
        cuda.override_plan(fused=fused, rows=8 if fused else 0)
        none = [[False] * 3] * 3
        for schedule in ({"lengths": [3, 3, 3]}, {"resets": none}, {"lengths": [3, 3, 3], "resets": none}):
            assert all(map(torch.equal, bits(**schedule), bits()))
        wild, tame = ([-(2**63), 2**63 - 1, 2], [0, 3, 2])
        assert all(map(torch.equal, bits(lengths=wild), bits(lengths=tame)))


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_saved_has_the_shapes_that_graphs_are_told(cuda, cell):
    check_saved_shapes(cuda, cell, rebuilds_gates=True)


def test_saved_tensors_of_another_call_are_refused(cuda):
    layer, other = (Layer(0, "float32", (3, B, 2, 7)) for B in (4, 5))
    output, saved = layer.forward(cuda)[0], other.forward(cuda)[2]
    with pytest.raises(RuntimeError, match=r"saved gates must have shape \[1, 12, 4, 7\], got \[1, 15"):
        layer.backward(cuda, output, saved)


def test_any_strides_are_welcome(cuda):
    plain = Layer(1, "float64", (3, 4, 5, 6))
    strided = Layer(1, "float64", (3, 4, 5, 6))
    for name in ("x", "grad_output"):
        setattr(strided, name, getattr(plain, name).permute(2, 1, 0).contiguous().permute(2, 1, 0))
    strided.weights = [w.t().contiguous().t() if w.dim() == 2 else w for w in plain.weights]
    assert not strided.x.is_contiguous()
    strided.check(cuda)


def test_a_call_that_makes_no_sense_says_why(cuda):
    def message(change):
        layer = Layer(0, "float64", (3, 4, 5, 6), packed=True)
        change(layer)
        with pytest.raises(RuntimeError) as caught:
            layer.forward(cuda)
        return str(caught.value)

    def set_size(index, value):
        return lambda layer: layer.batch_sizes.__setitem__(index, value)

    assert "batch_sizes must be positive and must not increase, got 9 at index 1" in message(set_size(1, 9))
    assert "batch_sizes hold more rows than the 7 of the input" in message(set_size(0, 6))
    assert "hx must hold 2 tensors for LSTM, got 1" in message(lambda layer: layer.hx.pop())
    assert "w_hh must have shape" in message(lambda layer: layer.weights.__setitem__(1, torch.ones(24, 5)))
    assert f"cell must be in 0 .. {len(MODES) - 1}, got 99" in message(lambda layer: setattr(layer, "cell", 99))


@pytest.mark.parametrize("cell", FUSED)
@pytest.mark.parametrize("steps", [1, 2])
def test_one_step_is_rounded_to_tf32_only_where_matmul_is(cuda, cell, steps):
    """It may be a cell's, and torch's cells multiply as matmul does."""
    layer = Layer(cell, "float32", (steps, 20, 24, 40))

    def output(rnn, matmul):
        with fp32_precision(rnn, matmul):
            return cuda.layer_forward(*layer.arguments(0))[0]

    exact, rounded = output("ieee", "ieee"), output("tf32", "tf32")
    assert not torch.equal(exact, rounded)
    assert torch.equal(output("ieee", "tf32"), exact)
    assert torch.equal(output("tf32", "ieee"), exact if steps == 1 else rounded)


def test_a_refused_launch_is_reported_with_kernel_and_shape(cuda):
    cuda.override_plan(fused=True, tensor_cores=True, rows=24)
    with pytest.raises(RuntimeError, match=r"LSTM forward step \(fused mma, 24 rows a block, bfloat16\).*B = 4, H = 6"):
        Layer(0, "bfloat16", (3, 4, 5, 6)).forward(cuda)


PLAN = {"cell": 0, "dtype": 2, "tf32": False, "backward": False}
PLAN |= {"batch": 16, "hidden": 512, "recurrent": 512, "directions": 1}


@pytest.mark.parametrize(
    "change, want",
    [
        ({}, {"fused": True, "tensor_cores": True, "rows": 32}),
        ({"batch": 8}, {"fused": True, "tensor_cores": True, "rows": 8}),
        ({"batch": 1024, "hidden": 2048, "recurrent": 2048}, {"fused": False, "tensor_cores": False, "rows": 0}),
        ({"dtype": 1}, {"fused": True, "tensor_cores": False, "rows": 16}),
        ({"dtype": 1, "tf32": True}, {"fused": True, "tensor_cores": True, "rows": 32}),
        ({"dtype": 1, "tf32": True, "capability": 75}, {"fused": True, "tensor_cores": False, "rows": 16}),
        ({"dtype": 0}, {"fused": True, "tensor_cores": False, "rows": 8}),
        ({"capability": 75}, {"fused": False, "tensor_cores": False, "rows": 0}),
        ({"dtype": 3, "capability": 75}, {"fused": True, "tensor_cores": True, "rows": 32}),
        ({"recurrent": 64, "backward": True}, {"fused": False, "tensor_cores": False, "rows": 0}),
        ({"recurrent": 64}, {"fused": True, "tensor_cores": True, "rows": 32}),
        ({"masked": True}, {"fused": False, "tensor_cores": False, "rows": 0}),
        ({"masked": True, "backward": True}, {"fused": True, "tensor_cores": True, "rows": 32}),
        ({"cell": MODES.index("IND_RNN")}, {"fused": False, "tensor_cores": False, "rows": 0}),
        ({"cell": MODES.index("LAYER_NORM_GRU"), "batch": 8}, {"fused": False, "tensor_cores": False, "rows": 0}),
    ],
)
def test_plan(cuda, change, want):
    assert cuda.plan(**{**PLAN, "capability": 90, **change}) == want


def test_plan_only_chooses_kernels_that_exist(cuda):
    exist = {
        (form["fused"], form.get("tensor_cores", False), form.get("rows", 0), DTYPE_NUMBER[DTYPES[precision]], tf32)
        for _, form, precisions in KERNELS
        for precision in precisions
        for tf32 in ({True} if precision == "tf32" else {False, True})
    }
    sizes = itertools.product(CELLS, range(4), (False, True), (1, 8, 9, 64, 4096), (1, 33, 512, 4096), (75, 80, 120))
    for cell, dtype, tf32, batch, hidden, capability in sizes:
        kernel = cuda.plan(cell, dtype, tf32, False, batch, hidden, hidden, 2, capability)
        assert (*kernel.values(), dtype, tf32) in exist
