"""The compiled PTX of the kernels, run by the interpreter in tests/emulator/ptx under the emulator's launches.

Here a part of them, one of every kind and architecture; `make ptx` runs all.
"""

import pytest
import torch

from emulator import build, oracle
from emulator.cases import Layer, prescribe, timed_layers
from emulator.ptx import compiled
from emulator.ptx.executed import Executed
from emulator.ptx.parse import PtxError

pytestmark = [
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with"),
    pytest.mark.skipif(compiled.nvcc() is None, reason="nvcc was not found"),
]

CASES = [
    (90, "update", "float64", "LSTM"),
    (90, "update", "bfloat16", "LSTM"),
    (90, "fma8", "float64", "LSTM"),
    (90, "fma16", "float32", "LSTM"),
    (90, "mma8", "bfloat16", "LSTM"),
    (90, "mma32", "tf32", "LSTM"),
    (90, "cluster8", "float32", "LSTM"),
    (90, "cluster8", "float16", "LSTM"),
    (90, "cluster32", "tf32", "LSTM"),
    (90, "grid8", "bfloat16", "GRU"),
    (90, "grid32", "float16", "GRU"),
    (90, "cta8", "tf32", "SLSTM"),
    (80, "fma8", "float32", "RNN_TANH"),
    (80, "mma8", "float16", "RNN_TANH"),
    (80, "mma32", "bfloat16", "RNN_TANH"),
    (80, "cta8", "float16", "PEEPHOLE_LSTM"),
    (90, "cluster8", "bfloat16", "CIFG_LSTM"),
    (80, "mma8", "float16", "SLSTM_EXP"),
    (90, "update", "float64", "LAYER_NORM_LSTM"),
    (80, "update", "float16", "LAYER_NORM_GRU"),
    (75, "update", "float32", "IND_RNN"),
    (75, "update", "bfloat16", "GRU"),
    (75, "mma8", "float16", "GRU"),
    (75, "cta8", "float16", "LSTM"),
    (75, "grid8", "float32", "RNN_RELU"),
]


def layers(cell, precision):
    yield Layer(cell, precision, (3, 9, 2, 17), 2, packed=True)
    yield Layer(cell, precision, (2, 9, 3, 40))
    yield from list(timed_layers(cell, precision))[:2]


@pytest.mark.parametrize("architecture, form, precision, mode", CASES)
def test_kernels_against_the_formulas(cuda, architecture, form, precision, mode):
    prescribe(cuda, form)
    executed, cell = Executed(cuda, architecture), oracle.MODES.index(mode)
    for layer in layers(cell, precision):
        layer.check(executed)
    assert len(executed.ran) >= 3  # forward, backward, and at least one of moments and offsets


@pytest.mark.parametrize("cell, precision", [(0, "float64"), (5, "float16")])
def test_rebuilt_gates_and_projections(cuda, cell, precision):
    prescribe(cuda, "update")
    executed, layer = Executed(cuda, 90), Layer(cell, precision, (3, 4, 3, 11), 2, packed=True, projection=4)
    layer.check(executed)
    saved_less = layer.backward(executed, *layer.forward(executed, save=2)[::2])
    assert any("rebuild_saved" in name for name in executed.ran)
    assert any("gather_projected" in name for name in executed.ran)
    everything = layer.backward(executed, *layer.forward(executed)[::2])
    assert torch.equal(saved_less[0], everything[0])


@pytest.mark.parametrize("form, order", [("cluster8", "blocks"), ("cluster8", "warps"), ("mma8", "warps")])
def test_no_bit_depends_on_who_runs_ahead(cuda, form, order):
    prescribe(cuda, form)
    results = []
    for executed in (Executed(cuda, 90), Executed(cuda, 90, order)):
        results.append(Layer(0, "float16", (3, 9, 2, 17), 2, packed=True).results(executed))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("head", range(4))
def test_the_weights_of_any_head_may_lie_between_two_vectors(cuda, head):
    prescribe(cuda, "mma8")
    layer = Layer(0, "bfloat16", (2, 9, 3, 40), 4, forwards=4)
    place = head * len(layer.weights) // 4 + 1
    w_hh = layer.weights[place]
    layer.weights[place] = w_hh.new_empty(w_hh.numel() + 1)[1:].view_as(w_hh).copy_(w_hh)
    layer.check(Executed(cuda, 90))


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_turing_gives_up_rather_than_multiply_what_it_cannot(cuda, precision):
    prescribe(cuda, "mma8")
    with pytest.raises(PtxError, match="the kernel gave up"):
        Layer(1, precision, (2, 3, 2, 17)).forward(Executed(cuda, 75))


def test_a_buffer_that_the_launch_does_not_know_is_not_touched(cuda):
    """Here the initial states, which the test hides."""
    prescribe(cuda, "update")
    layer, executed = Layer(0, "float32", (2, 3, 2, 17)), Executed(cuda, 90)
    executed.hidden = {layer.hx[0].untyped_storage().data_ptr(), layer.hx[1].untyped_storage().data_ptr()}
    with pytest.raises(PtxError, match=r"line \d+: ld.global.f32 .*: global address 0x"):
        layer.forward(executed)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_whole_warps_come_to_the_barriers_of_a_cluster(cell):
    """These instructions are for converged warps. A kernel has one such barrier, before its time loop."""
    text = compiled.ptx(f"{cell}_cluster", 90).read_text()
    code = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("//")]
    barriers = [i for i, line in enumerate(code) if line.startswith("barrier.cluster.")]
    assert len(barriers) == 2 * 14
    assert all(code[i - 1].startswith("bar.warp.sync") for i in barriers)
