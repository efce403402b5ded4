"""Stacks of layers in chunks of time on a GPU's streams; what a CPU can show of them is in test_wavefront.py."""

import pytest
import torch
from emulator.cases import fp32_precision
from on_gpu import ON_GPU, captured
from support import build, cells, compare, name_of, off_the_kink, random_states, tensors, twins

import fastrnn
from fastrnn._call import wavefront
from fastrnn._kernels import ext
from fastrnn.registry import CELLS

pytestmark = ON_GPU
T, B, I, H, LAYERS, CHUNKS = 65, 9, 24, 64, 3, 4
each_lane = pytest.mark.parametrize("slow", [None, -1, 0, 1, 2])


class Lanes(wavefront.Lanes):
    """The streams, of which one may be slow: whatever does not wait for it goes on without it."""

    slow, made = None, 0

    def __init__(self, device, count):
        super().__init__(device, count)
        Lanes.made += 1

    def wait(self, lane, mark):
        super().wait(lane, mark)
        if lane == self.slow:
            with self.on(lane):
                torch.cuda._sleep(5_000_000)


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    assert ext.why_no_cuda() is None, ext.why_no_cuda()
    cuda = ext.load().cuda
    monkeypatch.setattr(wavefront, "Lanes", Lanes)
    monkeypatch.setattr(Lanes, "slow", None)
    monkeypatch.setattr(Lanes, "made", 0)
    cuda.override_tier("auto")
    cuda.override_wavefront(CHUNKS)
    with fastrnn.backend("cuda"), fp32_precision("ieee"):
        yield cuda
    cuda.follow_plan()


def model(cell, dtype=torch.float16, **options):
    module = build(fastrnn, cell, I, H, LAYERS, device="cuda", dtype=dtype, **options)
    hx = tuple(h.to("cuda", dtype) for h in tensors(random_states(cell, LAYERS, B, H)))
    return module, hx if cell.states > 1 else hx[0]


def draw(dtype=torch.float16):
    return torch.randn(T, B, I, device="cuda", dtype=dtype)


def results(module, x, hx):
    """Output, final states and all gradients; x and the output's gradient are dropped as soon as they can be."""
    x = x.clone().requires_grad_()
    outputs = tensors(module(x, hx))
    return [*outputs, *torch.autograd.grad(outputs, [x, *module.parameters()], [t.cos() for t in outputs])]


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=name_of)
def test_forward_and_gradients_are_within_the_budget(cell, dtype):
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("Turing's tensor cores know float16 alone")
    modules = twins(cell, I, H, LAYERS, dtype=dtype, device="cuda")
    x, hx = torch.randn(T, B, I), random_states(cell, LAYERS, B, H)
    if cell.mode == "RNN_RELU" and dtype.itemsize == 2:
        x, hx = off_the_kink(modules, x, hx)
    compare(modules, x, hx)
    assert Lanes.made == 1


@cells
@each_lane
def test_the_plain_order_agrees_whichever_lane_is_slow(cuda, cell, slow, monkeypatch):
    module, hx = model(cell, torch.float32)
    x = draw(torch.float32)
    cuda.override_wavefront(0)
    want = results(module, x, hx)
    assert Lanes.made == 0
    cuda.override_wavefront(CHUNKS)
    monkeypatch.setattr(Lanes, "slow", slow)
    torch.testing.assert_close(results(module, x, hx), want, rtol=1e-4, atol=1e-4)
    assert Lanes.made == 1


@cells
@each_lane
def test_twenty_runs_agree_bit_for_bit_while_memory_is_used_again(cell, slow, monkeypatch):
    """What a call gives back to the allocator is overwritten at once, on the caller's stream."""
    module, hx = model(cell)
    x = draw()
    want = results(module, x, hx)
    monkeypatch.setattr(Lanes, "slow", slow)
    for _ in range(20):
        output, *hn = tensors(module(x.clone(), hx))
        junk = [torch.full_like(x, torch.nan) for _ in range(4)]
        assert torch.equal(output, want[0]) and all(map(torch.equal, hn, want[1:]))
        del junk, output, hn
        assert all(map(torch.equal, results(module, x, hx), want))


def test_another_stream():
    module, hx = model(CELLS["LSTM"])
    late = draw()
    want, x = results(module, late, hx), torch.zeros_like(late)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # x comes late on this stream: a lane that did not wait would read zeros
        x.copy_(late)
        got = results(module, x, hx)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, want, got))


def test_a_call_never_waits_for_the_gpu():
    module, hx = model(CELLS["LSTM"], dropout=0.5)
    x, lengths = draw(), torch.arange(B, device="cuda")
    results(module, x, hx)  # loads the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(module, x, hx)
        module(x, hx, lengths=lengths, all_states=True, save="states")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cells
def test_captured_in_a_graph(cell):
    module, hx = model(cell)
    x, other = draw(), draw()
    graph, found = captured(lambda: results(module, x, hx))
    x.copy_(other)
    graph.replay()
    assert all(map(torch.equal, found, results(module, other, hx)))


def test_dropout_is_reproducible():
    module, hx = model(CELLS["GRU"], dropout=0.5)
    x, found = draw(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(results(module, x, hx))
    assert all(map(torch.equal, *found[:2])) and not torch.equal(found[0][0], found[2][0])


def test_the_plan_decides_by_itself(cuda):
    cuda.override_wavefront(None)
    module, hx = model(CELLS["LSTM"])
    module(draw(), hx)
    assert Lanes.made == 0  # too short
    x = torch.randn(1024, B, I, device="cuda", dtype=torch.float16)
    output, _ = module(x, hx)
    assert Lanes.made == 1 and "layers: 3 at the same time, in " in str(fastrnn.explain(module, x, hx))
    cuda.override_wavefront(0)
    torch.testing.assert_close(output, module(x, hx)[0], rtol=2e-3, atol=2e-3)
