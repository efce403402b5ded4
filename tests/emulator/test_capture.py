"""CUDA calls captured and replayed in the emulator: a graph gives what a fresh call gives, whatever its inputs hold.

The calls themselves are compared with formulas in float64 elsewhere: test_emulator.py, test_states.py,
test_wavefront.py. What only real graphs can show is in test_gpu.py and test_gpu_wavefront.py.
"""

import contextlib
import ctypes
import faulthandler
import functools
import os
import signal
import types
from collections import Counter

import pytest
import torch
from support import build as make
from support import cells, random_states, tensors
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from emulator import build
from emulator.capture import Capture, Step, memory
from emulator.cases import KERNELS, RESIDENT, Layer, fp32_precision, parameters, prescribe, resets_of
from emulator.lanes import CALLER, Log, lanes_of
from fastrnn._backends import autograd, dispatch
from fastrnn._call import stack, wavefront
from fastrnn._kernels import ext

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")

CASES = parameters(KERNELS + RESIDENT, every=2)


def packed(cell, precision, seed, **options):
    return Layer(cell, precision, (3, 4, 2, 9), 2, packed=True, seed=3 * seed, **options)


def masked(cell, precision, seed, directions=2, **options):
    """With c of every step. Every seed has other lengths and resets, a row without steps, whose states are infinite,
    and one that is never reset."""
    T, B = 4, 5
    lengths = [(3 * b + seed) % (T + 1) for b in range(B)]
    resets = resets_of("random", B, T).roll(seed) & (torch.tensor(lengths) % T > 0).unsqueeze(1)
    options = {"lengths": lengths, "resets": resets, "cells": True, "forwards": directions - 1} | options
    layer = Layer(cell, precision, (T, B, 2, 9), directions, seed=seed, **options)
    for state in layer.hx:
        state[:, lengths.index(0)] = torch.inf
    return layer


def wide(precision, seed):
    """c of 16-bit types in float32."""
    layer = packed(0, precision, seed)
    layer.hx[1], layer.grad_hn[1] = layer.hx[1].float(), layer.grad_hn[1].float()
    return layer


def forward(layer, cuda):
    output, hn, _ = layer.forward(cuda, save=0)
    return [output, *hn]


def both(save):
    return lambda layer, cuda: layer.results(cuda, save=save)


def inputs(layer):
    """All tensors but batch_sizes, which is the host's, and those that say where padding is."""
    schedule = [t for t in layer.schedule.values() if isinstance(t, torch.Tensor)]
    return [layer.x, *layer.hx, *layer.weights, layer.grad_output, *layer.grad_hn, *layer.grad_cells, *schedule]


def capture(cuda, call, layer):
    host = [] if layer.batch_sizes is None else [layer.batch_sizes]
    return Capture(cuda, lambda _: call(layer, cuda), inputs(layer), host)


def fill(layer, other):
    for mine, theirs in zip(inputs(layer), inputs(other), strict=True):
        mine.copy_(theirs)


def same(results, others):
    return all(map(torch.equal, results, others))


def check(cuda, call, layer, *others):
    graph = capture(cuda, call, layer)
    assert {memory(t) for t in graph.results} <= {memory(t) for t in graph.made}
    for other in others:
        fill(layer, other)
        graph.replay()
        assert same(graph.results, call(other, cuda))


@pytest.mark.parametrize("cell, kernel, precision", CASES)
def test_every_kernel(cuda, cell, kernel, precision):
    prescribe(cuda, kernel)
    check(cuda, both(1), packed(cell, precision, 1), packed(cell, precision, 2))
    check(cuda, both(2), masked(cell, precision, 1), masked(cell, precision, 3))
    check(cuda, forward, masked(cell, precision, 1, directions=1), masked(cell, precision, 4, directions=1))


@pytest.mark.parametrize(
    "name, precision", [(name, precision) for name, _, precisions in KERNELS for precision in precisions]
)
def test_projected_layers(cuda, name, precision):
    prescribe(cuda, name)
    for call in (forward, both(1), both(2)):
        for kind in (packed, masked):
            check(cuda, call, *(kind(0, precision, seed, projection=3) for seed in (1, 3)))


@pytest.mark.parametrize("name", [name for name, _, precisions in KERNELS + RESIDENT if "bfloat16" in precisions])
def test_c_in_float32_and_no_biases(cuda, name):
    prescribe(cuda, name)
    check(cuda, both(1), wide("bfloat16", 1), wide("bfloat16", 2))
    check(cuda, both(2), *(packed(1, "float16", seed, biased=False) for seed in (1, 2)))


def test_more_offsets_than_one_launch_can_carry(cuda):
    cuda.override_tier("cta")
    check(cuda, both(1), *(Layer(2, "float32", (501, 2, 1, 3), packed=True, seed=501 * seed) for seed in (1, 2)))


# Without these a graph gives the same, because the call prepares for more than it needs. Where there are lengths, h_0
# of the reverse direction goes to the last step and then to the step where each row starts,
START = {"aten.copy_.default": 1}
# and all of a projected layer's output and h_n is written;
PROJECTED = START | {"aten.zeros.default": 1, "aten.clone.default": 1}
# gates of steps that do not exist are rebuilt like those that do, from the h that was cleared for them.
REBUILT = {"aten.copy_.default": 2, "aten.arange.default": 2, "aten.lt.Tensor": 2, "aten.masked_fill_.Scalar": 2}

LISTS = [
    (0, "update", "float64", packed, {}, 1, {}),
    (1, "update", "float32", masked, {}, 2, REBUILT),
    (0, "update", "bfloat16", packed, {"projection": 3}, 2, {}),
    (0, "fma8", "float32", masked, {"projection": 3}, 1, PROJECTED),
    (2, "mma8", "bfloat16", packed, {}, 1, {}),
    (3, "cta8", "float32", packed, {}, 1, {}),
    (2, "cluster8", "bfloat16", masked, {}, 1, START),
    (1, "grid8", "float16", packed, {}, 1, {}),
]


def needless(graph, want):
    """The steps without which a replay gives the same; each in a process of its own, which may well crash or hang."""
    found = Counter()
    for index, step in [(None, Step("nothing")), *enumerate(graph.steps)]:
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                faulthandler.disable()
                signal.setitimer(signal.ITIMER_PROF, 1)  # of the processor's time, however busy the machine is,
                signal.alarm(20)  # and for a lock whose memory was overwritten
                graph.replay(without=index)
                os._exit(0 if same(graph.results, want) else 1)
            os._exit(1)
        if os.waitpid(child, 0)[1] == 0:
            found[step.what] += 1
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes to crash in")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # the child calls nothing that takes a lock
@pytest.mark.parametrize("cell, name, precision, kind, options, save, known", LISTS)
def test_each_step_left_out_is_found(cuda, cell, name, precision, kind, options, save, known):
    prescribe(cuda, name)
    layer, other = (kind(cell, precision, seed, **options) for seed in (1, 3))
    graph = capture(cuda, both(save), layer)
    fill(layer, other)
    assert needless(graph, both(save)(other, cuda)) == known | {"nothing": 1}


BATCH_SIZES = torch.tensor([2, 1])
FORBIDDEN = {
    "_local_scalar_dense": [lambda x: x[0, 0].item(), lambda x: bool((x > 0).any()), lambda x: float(x.sum())],
    "nonzero": [torch.nonzero],
    "_unique2": [torch.unique],
    "masked_select": [lambda x: x.masked_select(x > 0)],
    "index": [lambda x: x[x > 0]],
    "index_put_": [lambda x: x.clone().index_put_((x > 0,), x.flatten())],
    "equal": [lambda x: torch.equal(x, x)],
    "to": [lambda x: x.to("cpu", torch.float64), lambda x: x.to(device=torch.device("cpu"))],
    "lift_fresh": [lambda x: x + torch.tensor([1.0, 2.0, 3.0])],
    "copy_": [lambda x: x[:, 0].copy_(BATCH_SIZES), lambda x: BATCH_SIZES.copy_(x[:, 0])],
    "cpu": [torch.Tensor.cpu],
    "tolist": [torch.Tensor.tolist],
    "numpy": [torch.Tensor.numpy],
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_would_wait_for_the_device_is_refused_by_name(cuda, name):
    x = torch.ones(2, 3)
    for read in FORBIDDEN[name]:
        with pytest.raises(RuntimeError, match=rf"^captured: (aten|Tensor)\.{name}(\.\w+)? (reads|copies)"):
            Capture(cuda, functools.partial(lambda read, _: read(x), read), [x], [BATCH_SIZES])


def test_the_host_may_read_what_is_its_own(cuda):
    x = torch.ones(2, 3)
    graph = Capture(cuda, lambda _: x[:, : int(BATCH_SIZES[1])] * BATCH_SIZES.tolist()[0], [x], [BATCH_SIZES])
    x.fill_(3)
    graph.replay()
    assert torch.equal(graph.results, torch.full((2, 1), 6.0))


def test_the_default_stream_is_refused(cuda):
    assert not cuda.default_stream_refuses()
    Capture(cuda, lambda graph: (cuda.default_stream_refuses() and graph.steps == []) or pytest.fail("taken"), [])


def first_value(tensor):
    return ctypes.c_float.from_address(tensor.data_ptr()).value


def decides(layer, cuda):
    """By a value on the device, unseen."""
    sign = 1 if first_value(layer.x) > 0 else -1
    hx, layer.hx = layer.hx, [sign * h for h in layer.hx]
    results = forward(layer, cuda)
    layer.hx = hx
    return results


def works_on_the_host(layer, cuda):
    """Moves memory past every stream."""
    hx = [h.clone() for h in layer.hx]
    ctypes.memmove(hx[0].data_ptr(), layer.x.data_ptr(), 4)
    hx, layer.hx = layer.hx, hx
    results = forward(layer, cuda)
    layer.hx = hx
    return results


@pytest.mark.parametrize("planted", [decides, works_on_the_host])
def test_what_the_host_does_by_itself_is_found(cuda, planted):
    layer, other = packed(1, "float32", 1), packed(1, "float32", 2)
    other.x[0, 0, 0] = 0.5
    with pytest.raises(AssertionError):
        check(cuda, planted, layer, other)
    check(cuda, forward, layer, other)


T, B, I, H = 7, 4, 3, 9
ASKED = {
    "all": {},
    "states": {"lengths": torch.tensor([4, 0, 7, 1]), "save": "states", "all_states": True},
    "resets": {"reset_mask": torch.arange(B * T).reshape(B, T).mul(7).remainder(5) < 2},
}


@pytest.fixture
def capturing(cuda, monkeypatch):
    """capturing(function, inputs, host) captures ``function()``, a call of modules; then its inputs are new ones."""
    extension = types.SimpleNamespace(cuda=cuda, cpu=cuda)
    monkeypatch.setattr(ext, "load", lambda: extension)
    monkeypatch.setattr(dispatch, "choose", lambda call, explained=False: "cuda")
    for module in (autograd, stack):  # a graph does not watch; extras are checked by values where nobody does
        monkeypatch.setattr(module, "is_watched", lambda: False)
    cuda.override_tier("cta")
    cuda.override_wavefront(3)

    def run(function, inputs, host=()):
        def captured(graph):
            monkeypatch.setattr(wavefront, "Lanes", lanes_of(graph))
            return function()

        graph = Capture(cuda, captured, inputs, host)
        monkeypatch.setattr(wavefront, "Lanes", lanes_of(Log()))
        with torch.no_grad():
            for tensor in inputs:
                whole = torch.arange(tensor.numel()).reshape(tensor.shape).mul(3).add(1).remainder(T)
                tensor.copy_(torch.randn(tensor.shape) / 2 if tensor.is_floating_point() else whole)
        return graph

    with fp32_precision("ieee"):
        yield run


def gradients(module, x, hx, **asked):
    outputs = [t for t in tensors(module(x, hx, **asked)) if t.requires_grad]
    source = x.data if isinstance(x, PackedSequence) else x
    return [*outputs, *torch.autograd.grad(outputs, [source, *module.parameters()], [t.cos() for t in outputs])]


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("chunks", [0, 3], ids=["plain", "wavefront"])
def test_a_training_step_of_stacked_layers(cuda, capturing, cell, dtype, asked, chunks):
    """With dropout, whose draws go on from where the generator stands at a replay."""
    cuda.override_wavefront(chunks)
    module = make(fastrnn, cell, I, H, 3, dropout=0.5, dtype=dtype)
    x, hx = torch.randn(T, B, I, dtype=dtype, requires_grad=True), random_states(cell, 3, B, H)
    hx = tuple(h.to(dtype) for h in hx) if cell.states > 1 else hx.to(dtype)
    asked = {name: t.clone() if isinstance(t, torch.Tensor) else t for name, t in asked.items()}
    given = [x, *tensors(hx), *module.parameters(), *(t for t in asked.values() if isinstance(t, torch.Tensor))]
    call = functools.partial(gradients, module, x, hx, **asked)
    graph = capturing(call, given)
    assert any(step.kind == "wait" for step in graph.steps) == bool(chunks)
    torch.manual_seed(1)
    graph.replay()
    torch.manual_seed(1)
    assert same(graph.results, call())


@cells
def test_a_packed_training_step_in_both_directions(cuda, capturing, cell):
    cuda.override_tier("step")
    module, sizes = make(fastrnn, cell, I, H, 2, bidirectional=True), torch.tensor([4, 3, 3, 1])
    x = torch.randn(11, I, requires_grad=True)
    call = functools.partial(gradients, module, PackedSequence(x, sizes), None)
    graph = capturing(call, [x, *module.parameters()], [sizes])
    graph.replay()
    assert same(graph.results, call())


@cells
def test_a_wavefront_in_every_order_that_its_graph_allows(cuda, capturing, cell):
    """Of the forward pass; what orders the lanes of the backward pass is autograd's, and needs a GPU."""
    module, x = make(fastrnn, cell, I, H, 3), torch.randn(T, B, I)

    def call():
        with torch.no_grad():
            return tensors(module(x))

    graph = capturing(call, [x, *module.parameters()])
    want, lanes = call(), {step.lane for step in graph.steps}
    assert lanes == {CALLER, 0, 1, 2}

    def is_right(without=None):
        results = []
        for last in lanes:
            graph.replay(without, last)
            results.append(same(graph.results, want))
        return all(results)

    assert is_right()
    waits = [index for index, step in enumerate(graph.steps) if step.kind == "wait"]
    assert len(waits) == 2 + 2 * 3 and not any(map(is_right, waits))
