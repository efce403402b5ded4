"""What only a GPU can show of the CUDA kernels; what a CPU can show of them is in test_emulator.py."""

import pytest
import torch
from emulator import cases, oracle
from emulator.cases import (
    KERNELS,
    RESIDENT,
    Layer,
    check_unread_states,
    fp32_precision,
    parameters,
    small_layers,
    timed_layers,
)
from on_gpu import ON_GPU, captured

import fastrnn
from fastrnn._backends import autograd, dispatch
from fastrnn.verdict import proof, prove

pytestmark = ON_GPU
DEVICE = "cuda"
CELLS = oracle.CELLS
CASES = [*parameters(KERNELS), *parameters(RESIDENT)]
EACH_TIER = pytest.mark.parametrize("wish", [wish for _, wish, _ in RESIDENT], ids=[name for name, *_ in RESIDENT])

# H for each tier. Members of clusters and grids have eight units.
FIRST = {"step": 64, "cta": 32, "cluster-8": 64, "cluster-16": 128, "grid": 64}


@pytest.fixture(scope="module")
def cuda():
    from fastrnn._kernels import ext

    assert ext.why_no_cuda() is None, ext.why_no_cuda()
    return ext.load().cuda


@pytest.fixture(autouse=True)
def restored(cuda):
    """A launch a step, by the plan, unless a test asks for something else."""
    cuda.follow_plan()
    yield
    cuda.follow_plan()


def prescribe(cuda, kernel, precision="float16"):
    """Has this one of KERNELS or RESIDENT serve all calls, or skips where the device cannot have it."""
    capability, tier = torch.cuda.get_device_capability(), kernel.get("tier")
    if capability < {"cta": (7, 5), "grid": (8, 0), "cluster": (9, 0)}.get(tier, (0, 0)):
        pytest.skip(f"tier {tier} needs a newer device than compute capability {capability}")
    if capability < (8, 0) and precision in ("tf32", "bfloat16") and (tier or kernel.get("tensor_cores")):
        pytest.skip("Turing's tensor cores know float16 alone")
    cases.prescribe(cuda, kernel)


class OnGpu(Layer):
    """A layer on the GPU, whose expected values are computed on the CPU."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.to(DEVICE)

    def expected(self):
        self.to("cpu")
        wanted = super().expected()
        self.to(DEVICE)
        return [v.to(DEVICE) if isinstance(v, torch.Tensor) else [t.to(DEVICE) for t in v] for v in wanted]


def check_capture(cuda, layer, other):
    """A graph captured with one layer's arguments gives the other's results once its inputs are copied in."""
    graph, results = captured(lambda: layer.results(cuda))
    for name in ("lengths", "resets"):
        if name in layer.schedule:
            layer.schedule[name].copy_(other.schedule[name])
    layer.x.copy_(other.x)
    for mine, others in zip(
        [layer.grad_output, *layer.grad_cells], [other.grad_output, *other.grad_cells], strict=True
    ):
        mine.copy_(others)  # other values lie in padding
    graph.replay()
    assert all(map(torch.equal, results, layer.results(cuda)))


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("name", FIRST)
def test_four_steps(cuda, name, precision):
    """What a new device is asked first, in a process for each tier, and what the sanitizers look at."""
    tier = name.partition("-")[0]
    if tier != "step":
        prescribe(cuda, {"tier": tier} | ({} if tier == "cta" else {"rows": 8, "units": 8}))
    for cell in (0, 1):
        OnGpu(cell, precision, (4, 9, 16, FIRST[name]), 1).check(cuda)


@pytest.mark.parametrize("cell, kernel, precision", CASES)
def test_every_kernel_against_the_formulas(cuda, cell, kernel, precision):
    prescribe(cuda, kernel, precision)
    for layer in small_layers(cell, precision, OnGpu, kernel):
        layer.check(cuda)


@pytest.mark.parametrize("cell, kernel, precision", CASES)
def test_every_kernel_with_lengths_resets_and_one_direction(cuda, cell, kernel, precision):
    prescribe(cuda, kernel, precision)
    for layer in timed_layers(cell, precision, OnGpu):
        layer.check(cuda)
    check_unread_states(cuda, cell, precision, OnGpu)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_projected_lstm_with_lengths_resets_and_one_direction(cuda, precision):
    for layer in timed_layers(0, precision, OnGpu, projection=2):
        layer.check(cuda)


@pytest.mark.parametrize("cell, kernel, precision", CASES)
def test_rebuilt_gates_with_every_kernel(cuda, cell, kernel, precision):
    prescribe(cuda, kernel, precision)
    OnGpu(cell, precision, (5, 9, 24, 40), 2, packed=True, save=2).check(cuda)
    for layer in timed_layers(cell, precision, OnGpu, save=2):
        layer.check(cuda)


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_rebuilt_gates_of_a_projected_lstm(cuda, precision):
    OnGpu(0, precision, (5, 9, 3, 33), 2, packed=True, projection=17, save=2).check(cuda)
    for layer in timed_layers(0, precision, OnGpu, projection=2, save=2):
        layer.check(cuda)


@pytest.mark.parametrize("cell", CELLS)
def test_rebuilt_gates_captured_in_a_graph_and_in_twenty_runs(cuda, cell):
    check_capture(cuda, *(masked(cell, "float16", seed, 64, save=2) for seed in (3, 7)))
    layer, other = (OnGpu(cell, "float16", (50, 33, 24, 200), 2, packed=True, seed=seed, save=2) for seed in (0, 7))
    check_capture(cuda, layer, other)
    first = layer.results(cuda)
    for _ in range(20):
        assert all(map(torch.equal, first, layer.results(cuda)))


@pytest.mark.parametrize("H", [64, 128, 256, 512, 768, 1024, 2048])
@pytest.mark.parametrize("tier", ["cta", "cluster", "grid"])
def test_resident_kernels_at_real_sizes_agree_with_the_step_kernels(cuda, tier, H):
    layers = [OnGpu(cell, "float16", (20, 70, 16, H), 2, packed=True) for cell in oracle.FUSED]
    want, served = [layer.results(cuda) for layer in layers], 0
    prescribe(cuda, {"tier": tier})
    for layer, expected in zip(layers, want, strict=True):
        try:
            got = layer.results(cuda)
        except RuntimeError as error:
            assert "cannot serve" in str(error)
            continue
        served += 1
        for g, w in zip(got, expected, strict=True):
            assert (g.float() - w.float()).norm() <= 1e-2 * w.float().norm() + 1e-3
    assert served == len(layers) or H > 64  # which every tier has room for


@EACH_TIER
@pytest.mark.parametrize("cell", CELLS)
def test_twenty_runs_of_a_resident_kernel_agree_bit_for_bit(cuda, cell, wish):
    prescribe(cuda, wish)
    layer = OnGpu(cell, "float16", (50, 33, 24, 60), 2, packed=True)
    first = layer.results(cuda)
    for _ in range(20):
        assert all(map(torch.equal, first, layer.results(cuda)))


@EACH_TIER
def test_a_resident_kernel_captured_in_a_graph(cuda, wish):
    prescribe(cuda, wish)
    layer, other = (OnGpu(0, "float16", (7, 9, 24, 40), 2, packed=True, seed=seed) for seed in (0, 7))
    check_capture(cuda, layer, other)


def masked(cell, precision, seed, H, **options):
    lengths = torch.arange(9).add(seed).mul(5).remainder(8)
    resets = torch.arange(63).add(seed).mul(11).remainder(7).reshape(9, 7) == 0
    schedule = {"lengths": lengths.tolist(), "resets": resets, "cells": True}
    return OnGpu(cell, precision, (7, 9, 24, H), 2, seed=seed, **schedule, **options)


@EACH_TIER
@pytest.mark.parametrize("cell", CELLS)
def test_a_resident_kernel_with_other_lengths_and_resets_captured_in_a_graph(cuda, cell, wish):
    prescribe(cuda, wish)
    check_capture(cuda, masked(cell, "float16", 3, 40), masked(cell, "float16", 7, 40))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_other_lengths_and_resets_captured_in_a_graph(cuda, cell, fused):
    cuda.override_plan(fused=fused, rows=8 if fused else 0)
    check_capture(cuda, masked(cell, "float32", 3, 64), masked(cell, "float32", 7, 64))


@pytest.mark.parametrize("precision", ["float64", "float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("cell", CELLS)
def test_what_the_plan_chooses_against_the_formulas(cuda, cell, precision):
    cuda.override_tier("measured")  # the default
    for shape, packed in (((12, 5, 24, 160), True), ((3, 70, 16, 96), False), ((2, 3, 8, 300), True)):
        OnGpu(cell, precision, shape, 2, packed).check(cuda)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_projected_lstm(cuda, precision, packed):
    OnGpu(0, precision, (5, 9, 3, 33), 2, packed, projection=17).check(cuda)


def test_more_than_one_wave_of_blocks_in_every_form_agrees(cuda):
    """Sizes too large for the formulas: the forms are each other's reference, and torch's own layer all of theirs'."""
    layer = OnGpu(0, "float32", (6, 70, 64, 1024), 1)
    torch_layer = torch.nn.LSTM(64, 1024).to(DEVICE)
    with torch.no_grad():
        for parameter, value in zip(torch_layer.parameters(), layer.weights, strict=True):
            parameter.copy_(value)
    torch_layer.double()
    wanted = torch_layer(layer.x.double(), tuple(h.double() for h in layer.hx))[0]
    for kernel in ({"fused": False}, {"fused": True, "rows": 8}, {"fused": True, "rows": 16}):
        cuda.override_plan(**kernel)
        output = layer.forward(cuda, save=False)[0]
        assert (output - wanted).norm() <= 1e-5 * wanted.norm(), kernel


@pytest.mark.parametrize("kernel", [kernel for _, kernel, _ in KERNELS], ids=[name for name, *_ in KERNELS])
@pytest.mark.parametrize("cell", CELLS)
def test_twenty_runs_agree_bit_for_bit(cuda, cell, kernel):
    precision = "float16" if kernel.get("tensor_cores") else "float32"
    cuda.override_plan(**kernel)
    layer = OnGpu(cell, precision, (7, 33, 24, 200), 2, packed=True)
    first = layer.results(cuda)
    for _ in range(20):
        assert all(map(torch.equal, first, layer.results(cuda)))


def test_a_call_never_waits_for_the_gpu(cuda):
    schedule = {"lengths": [7, 0, 3, 5, 1], "resets": torch.arange(35).reshape(5, 7) % 3 == 0, "cells": True}
    layers = [
        OnGpu(0, "float32", (7, 5, 24, 64), 2, packed=True),
        OnGpu(0, "float32", (7, 5, 24, 64), 2, **schedule),
        OnGpu(0, "float32", (7, 5, 24, 64), 2, projection=8, **schedule),
        OnGpu(0, "float32", (7, 5, 24, 64), 2, packed=True, save=2),
        OnGpu(0, "float32", (7, 5, 24, 64), 2, **schedule, save=2),
    ]
    for layer in layers:
        layer.results(cuda)  # loads the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for layer in layers:
            layer.results(cuda)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_another_stream(cuda):
    layer = OnGpu(1, "float32", (50, 33, 64, 256), 2)
    want = layer.results(cuda)
    late = layer.x.clone()
    layer.x.zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # x comes late on this stream: a kernel on another would read zeros
        layer.x.copy_(late)
        got = layer.results(cuda)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, want, got))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_captured_in_a_graph(cuda, cell, fused):
    cuda.override_plan(fused=fused, rows=8 if fused else 0)
    layer, other = (OnGpu(cell, "float32", (7, 5, 24, 64), 2, packed=True, seed=seed) for seed in (0, 7))
    check_capture(cuda, layer, other)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_device_is_used_whichever_is_current(cuda):
    layer = OnGpu(0, "float32", (7, 5, 24, 64), 2)
    want = layer.results(cuda)
    got = layer.to("cuda:1").results(cuda)
    assert torch.cuda.current_device() == 0 and all(t.device.index == 1 for t in got)
    assert all(torch.equal(w, g.to("cuda:0")) for w, g in zip(want, got, strict=True))


def test_modules_run_on_these_kernels(cuda):
    """A module on a GPU trains like torch's, and its backward works in eval mode, where cuDNN's does not."""
    ours = fastrnn.LSTM(24, 64, 2, bidirectional=True).cuda().eval()
    theirs = torch.nn.LSTM(24, 64, 2, bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(7, 5, 24)
    with fp32_precision("ieee"), fastrnn.backend("cuda"):
        output, want = ours(x.cuda())[0], theirs(x)[0]
        output.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(output.cpu(), want, rtol=1e-5, atol=1e-6)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.cpu(), other.grad, rtol=1e-4, atol=1e-5)


def test_what_the_kernels_prove_here_decides(tmp_path, monkeypatch):
    """A short proof of one cell in one type: the default choice is what its verdict says."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(dispatch, "_environment", None)
    monkeypatch.setattr(proof, "table_of", lambda capability: tmp_path / "none")
    proof.reread()
    layer, x = fastrnn.LSTM(32, 32).half().cuda(), torch.randn(7, 3, 32).half().cuda()
    said = fastrnn.explain(layer, x)
    assert said.backend == "aten" and said.reasons["cuda"] == [proof.unproven(proof.gpu_at(0))]
    try:
        assert prove.main(["--quick", "--only", "LSTM:float16"]) == 0
        for name, finding in proof.verdict_of(0).findings.items():
            for T, B, H, ratio in finding["speeds"]["plain"]:
                layer, x = fastrnn.LSTM(H, H).half().cuda(), torch.randn(T, B, H).half().cuda()
                with torch.set_grad_enabled("training" in name):
                    said = fastrnn.explain(layer, x)
                assert said.backend == ("cuda" if ratio >= 1 else "aten"), said
    finally:
        proof.reread()


def test_the_table_that_ships_decides(tmp_path, monkeypatch):
    """Modules run on the kernels by themselves where it says so, and in a CUDA graph where it says that."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(dispatch, "_environment", None)
    proof.reread()
    if not proof.table_of(proof.gpu_at(0).capability).exists() or proof.ops.TIER:
        pytest.skip("no table of this compute capability ships, or FASTRNN_CUDA_TIER is set")
    ran, layer_ops = [], autograd.layer_ops
    monkeypatch.setattr(autograd, "layer_ops", lambda backend: ran.append(backend) or layer_ops(backend))
    for T, B, H, *ratios in proof.verdict_of(0).findings["GRU bfloat16 forward"]["speeds"]["plain"]:
        layer, x = fastrnn.GRU(H, H).bfloat16().cuda(), torch.randn(T, B, H).bfloat16().cuda()
        with torch.no_grad():
            layer(x)
            torch.cuda.synchronize()
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                layer(x)
        assert ran == ["cuda"] * ((ratios[0] >= 1) + (min(ratios) >= 1)), (T, B, H, ratios)
        ran.clear()
