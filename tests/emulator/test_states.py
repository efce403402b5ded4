"""CUDA layers that save their states alone and rebuild the gates in backward, in the emulator."""

import pytest
import torch

from emulator import build, oracle
from emulator.cases import Layer, prescribe, timed_layers
from fastrnn.registry import BY_NUMBER

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")

CELLS = oracle.CELLS
FORMS = [
    ("update", ["float64", "float32", "bfloat16"]),
    ("fma8", ["float64", "float32"]),
    ("mma8", ["bfloat16"]),
    ("cluster8", ["float32", "bfloat16"]),
]
CASES = [(name, precision) for name, precisions in FORMS for precision in precisions]


def layers(cell, precision, **options):
    options["save"] = 2
    yield Layer(cell, precision, (3, 9, 2, 17), 2, packed=True, **options)
    yield from list(timed_layers(cell, precision, **options))[:2]  # lengths and resets, in both directions and back
    yield Layer(cell, precision, (3, 4, 3, 11), packed=True, biased=False, forwards=0, **options)
    yield Layer(cell, precision, (3, 4, 3, 11), 2, packed=True, masked=True, **options)
    if not options.get("projection"):
        yield Layer(cell, precision, (3, 4, 3, 11), 2, packed=True, rates=(0.5, 0.4), **options)


def total_bytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("form, precision", CASES)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_against_the_formulas(cuda, cell, form, precision):
    prescribe(cuda, form)
    for layer in layers(cell, precision):
        layer.check(cuda)


@pytest.mark.parametrize("form, precision", [case for case in CASES if case[0] != "cluster8"])
def test_gradients_of_a_projected_lstm_against_the_formulas(cuda, form, precision):
    prescribe(cuda, form)
    for layer in layers(0, precision, projection=2):
        layer.check(cuda)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "cell, projection",
    [(0, None), (0, 2), (1, None), (4, None), (4, 2), (5, None), (6, None), (7, 2), (9, None), (9, 2), (10, None)],
)
def test_gates_rebuilt_by_the_products_that_forward_made_are_the_same_to_the_bit(cuda, cell, projection, precision):
    prescribe(cuda, "update")
    for layer in layers(cell, precision, projection=projection):
        assert all(map(torch.equal, layer.results(cuda, save=2), layer.results(cuda, save=1)))


@pytest.mark.parametrize("form, precision", [("update", "float64"), ("mma8", "float16"), ("cluster8", "bfloat16")])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_overwritten_and_every_choice_of_gradients_agrees(cuda, cell, form, precision):
    prescribe(cuda, form)
    for layer in list(layers(cell, precision))[:2]:
        layer.check_nothing_overwritten(cuda)
        layer.check_needs(cuda)


@pytest.mark.parametrize("form", ["update", "fma8", "cluster8"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_results_are_the_same_and_the_gates_are_not_kept(cuda, cell, form):
    prescribe(cuda, form)
    for layer in layers(cell, "float32"):
        output, hn, saved = layer.forward(cuda)
        everything, hn_again, kept = layer.forward(cuda, save=1)
        assert torch.equal(output, everything) and all(map(torch.equal, hn, hn_again))
        gates = "RNN" not in oracle.MODES[cell]
        assert [t.shape for t in saved] == [t.shape for t in kept[gates:]]
        given = "rates" in layer.schedule and BY_NUMBER[cell].read_next > 0  # what zoneout keeps besides
        assert len(saved) == (oracle.STATES[cell] > 1) + given + (oracle.MODES[cell] in oracle.NORMED)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_lstm_keeps_less_than_half_of_the_bytes(cuda, precision):
    layer = Layer(0, precision, (5, 4, 3, 16), 2, packed=True)
    states, everything = ([output, *saved] for output, _, saved in (layer.forward(cuda, save) for save in (2, 1)))
    assert total_bytes(states) <= 0.45 * total_bytes(everything)
    projected = Layer(0, precision, (5, 4, 3, 16), projection=4)
    assert [tuple(t.shape) for t in projected.forward(cuda, save=2)[2]] == [(1, 20, 1, 16), (1, 20, 16)]


def test_a_number_that_is_no_mode_and_tensors_of_no_mode_are_refused(cuda):
    layer, larger = (Layer(0, "float32", (3, B, 2, 7), save=2) for B in (4, 5))
    for save in (-1, 3):
        with pytest.raises(RuntimeError, match=rf"save must be 0 .*, 1 .* or 2 \(states\), got {save}"):
            layer.forward(cuda, save)
    output, _, saved = layer.forward(cuda)
    for wrong in ([], saved * 3):
        message = f"results must hold the 2 tensors .* of a forward call with save = 2, got {1 + len(wrong)}"
        with pytest.raises(RuntimeError, match=message):
            layer.backward(cuda, output, wrong)
    with pytest.raises(RuntimeError, match=r"saved states must have shape \[1, 12, 1, 7\], got \[1, 15"):
        layer.backward(cuda, output, larger.forward(cuda)[2])
