"""Stacks of layers in chunks of time: the CUDA kernels in the emulator, on lanes that write down what they are told."""

import contextlib
import itertools
import types
from unittest import mock

import pytest
import torch
from plain import evaluate, ours
from support import build as make
from support import cells, compare, off_the_kink, random_states, tensors, twins
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import BaseTorchDispatchMode

import fastrnn
from emulator import build
from emulator.cases import fp32_precision
from emulator.lanes import Kernels, Log, crossing, is_ordered, lanes_of
from fastrnn._backends import dispatch
from fastrnn._call import wavefront
from fastrnn._kernels import ext
from fastrnn.registry import CELLS

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")

T, B, I, H = 7, 4, 3, 17
LSTM, GRU = CELLS["LSTM"], CELLS["GRU"]
# How many of three layers an emulated device has room for, at one block a layer.
each_room = pytest.mark.parametrize("sms", [2, 132], ids=["two-lanes", "a-lane-each"])


@pytest.fixture
def log(cuda, monkeypatch):
    """The emulator in the place of the extension's CUDA part and of its streams, tier cta, in three chunks."""
    log = Log()
    extension = types.SimpleNamespace(cuda=Kernels(cuda, log), cpu=cuda)
    monkeypatch.setattr(ext, "load", lambda: extension)
    monkeypatch.setattr(dispatch, "choose", lambda call, explained=False: "cuda")
    monkeypatch.setattr(dispatch.choice, "torch_ahead", lambda call: None)  # it asks for the CPU's instruction set
    monkeypatch.setattr(wavefront, "Lanes", lanes_of(log))
    cuda.override_tier("cta")
    cuda.override_wavefront(3)
    with fp32_precision("ieee"):
        yield log


def marks(log) -> int:
    return sum(entry.kind == "mark" for entry in log.entries)


def both_orders(cuda, log, call, chunks=3):
    """The results of a call in chunks and layer after layer."""
    results = []
    for wished in (chunks, 0):
        cuda.override_wavefront(wished)
        log.entries.clear()
        results.append(call())
        assert bool(marks(log)) == bool(wished)
    return results


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layers, chunks", [(2, 2), (3, 3), (3, 7)])
def test_forward_and_gradients_are_within_the_budget(cuda, log, cell, dtype, layers, chunks):
    cuda.override_wavefront(chunks)
    modules = twins(cell, I, H, layers, dtype=dtype)
    x, hx = torch.randn(T, B, I), random_states(cell, layers, B, H)
    if cell.mode == "RNN_RELU" and dtype.itemsize == 2:
        x, hx = off_the_kink(modules, x, hx)
    compare(modules, x, hx)
    assert marks(log) == 1 + layers * chunks


@pytest.mark.parametrize("tier", [{"tier": "cluster", "units": 8}, {"tier": "grid", "units": 8}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_teams_of_several_blocks_are_within_the_budget(cuda, log, tier, dtype):
    cuda.override_tier(**tier)
    compare(twins(LSTM, I, H, 2, dtype=dtype), torch.randn(T, B, I), random_states(LSTM, 2, B, H))
    assert marks(log) == 1 + 2 * 3


@cells
@each_room
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_plain_order_gives_the_same_bits_forward_and_the_same_gradients(cuda, log, cell, sms, dtype):
    """In float32 the gradients of x and h_0 to the bit; those of weights are summed in another order."""
    cuda.set_device(sms=sms)
    module = make(fastrnn, cell, I, H, 3, dtype=dtype)
    x, hx = torch.randn(T, B, I), tensors(random_states(cell, 3, B, H))

    def call():
        return evaluate(ours, module, x, hx, dtype)

    waves, plain = both_orders(cuda, log, call)
    for name, want in plain.items():
        exact = name.startswith("output") or (dtype == torch.float32 and "weight" not in name and "bias" not in name)
        tolerance = 0 if exact else 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(waves[name], want, rtol=tolerance, atol=tolerance * want.abs().max().item())


ROWS = {
    "lengths": {"lengths": torch.tensor([4, 0, 7, 1])},
    "resets": {"reset_mask": torch.arange(B * T).reshape(B, T).mul(7).remainder(5) < 2},
    "states": {"save": "states"},
}
ROWS["both"] = ROWS["lengths"] | ROWS["resets"]


@cells
@each_room
@pytest.mark.parametrize("asked", ROWS.values(), ids=ROWS)
def test_lengths_resets_and_saved_states(cuda, log, cell, sms, asked):
    """With the states of every step of every layer, which evaluate() asks for too."""
    cuda.set_device(sms=sms)
    module, x = make(fastrnn, cell, I, H, 3), torch.randn(T, B, I)
    hx = tensors(random_states(cell, 3, B, H))
    waves, plain = both_orders(cuda, log, lambda: evaluate(ours, module, x, hx, torch.float32, **asked))
    torch.testing.assert_close(waves, plain, rtol=1e-5, atol=1e-5)


@cells
def test_packed_batches(cuda, log, cell):
    module, lengths = make(fastrnn, cell, I, H, 3), torch.tensor([7, 2, 5, 1])
    x = torch.randn(T, B, I, requires_grad=True)

    def call():
        output, hn = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        found = [output.data, *tensors(hn)]
        return [*found, *torch.autograd.grad(found, [x, *module.parameters()], [t.cos() for t in found])]

    torch.testing.assert_close(*both_orders(cuda, log, call), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_dropout_between_layers(cuda, log, rate):
    """Drawn anew for every chunk, the same for the same seed; nothing is dropped outside of training."""
    module, x = fastrnn.LSTM(I, H, 3, dropout=rate), torch.randn(T, B, I)

    def call(seed):
        torch.manual_seed(seed)
        output, _ = module(x)
        return [output, *torch.autograd.grad(output.sum(), list(module.parameters()))]

    for one, other in zip(call(1), call(1)):
        assert torch.equal(one, other)
    if rate < 1:
        assert not torch.equal(call(1)[0], call(2)[0])
        torch.manual_seed(1)
        draws = {task: torch.dropout(torch.ones(steps(task[1]), B, H), rate, True) for task in ORDER if task[0] < 2}
        h = x
        for index in range(3):
            layer = one_layer(module, index)
            h = layer(h)[0]
            if index < 2:
                h = h * torch.cat([draws[index, k] for k in range(3)])
        torch.testing.assert_close(call(1)[0], h)
    else:
        torch.testing.assert_close(*both_orders(cuda, log, lambda: call(1)))
    module.eval()
    torch.testing.assert_close(*both_orders(cuda, log, lambda: call(1)))


ORDER = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (1, 2), (2, 1), (2, 2)]


def steps(chunk: int) -> int:
    return T * (chunk + 1) // 3 - T * chunk // 3


def one_layer(module, index: int):
    layer = fastrnn.LSTM(I if index == 0 else H, H)
    names = {name: getattr(module, name.replace("l0", f"l{index}")) for name, _ in layer.named_parameters()}
    layer.load_state_dict(names)
    return layer


def test_the_streams_are_made_once_and_told_what_the_lanes_are_told(monkeypatch):
    """Without a GPU the streams are dummies, which have torch's methods and no others."""
    kind = torch.cuda.Stream
    caller = mock.create_autospec(kind, instance=True)
    made = mock.Mock(side_effect=lambda device: mock.create_autospec(kind, instance=True))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: caller)
    monkeypatch.setattr(torch.cuda, "Stream", made)
    wavefront._stream.cache_clear()
    device = torch.device("cuda", 0)
    one, two = wavefront.Lanes(device, 2), wavefront.Lanes(device, 3)
    assert one._streams[:2] == two._streams[:2] and made.call_count == 3
    assert one._streams[wavefront.CALLER] is two._streams[wavefront.CALLER] is caller
    mark = one.mark(-1)
    caller.record_event.assert_called_once_with()
    one.wait(1, mark)
    one._streams[1].wait_event.assert_called_once_with(mark)
    tensor = mock.create_autospec(torch.Tensor, instance=True)
    one.use(0, [tensor])
    tensor.record_stream.assert_called_once_with(one._streams[0])
    assert isinstance(one.on(0), torch.cuda.StreamContext)
    wavefront._stream.cache_clear()


def test_the_order_of_launching():
    assert list(wavefront.tasks(3, 3, 3)) == ORDER
    assert list(wavefront.tasks(3, 2, 2)) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    for layers, chunks, lanes in itertools.product((2, 3, 5), (2, 3, 8), (2, 3, 4)):
        order = list(wavefront.tasks(layers, chunks, lanes))
        assert sorted(order) == list(itertools.product(range(layers), range(chunks)))
        for l, k in order:
            before = order[: order.index((l, k))]
            assert (k == 0 or (l, k - 1) in before) and (l == 0 or (l - 1, k) in before)


@each_room
def test_the_backward_pass_takes_the_tasks_in_reverse_order(cuda, log, sms):
    cuda.set_device(sms=sms)
    fastrnn.LSTM(I, H, 3)(torch.randn(T, B, I))[0].sum().backward()
    assert ext.load().cuda.backwards == list(reversed(range(3 * 3)))


def recorded(cuda, log, cell, layers, chunks, sms, asked, dropout=0.5, dtype=torch.bfloat16):
    """What the lanes are told in a call that draws dropout, widens c and returns the states of all steps."""
    cuda.set_device(sms=sms)
    cuda.override_wavefront(chunks)
    module = make(fastrnn, cell, I, H, layers, dropout=dropout, dtype=dtype)
    hx = [h.to(dtype) for h in tensors(random_states(cell, layers, B, H))]
    x = torch.randn(T, B, I, dtype=dtype)
    with log:
        x = x * 1  # the caller's last work before the call
        module(x, tuple(hx) if cell.states > 1 else hx[0], **({"all_states": True} | asked))
    return log.entries


INTERLEAVINGS = pytest.mark.parametrize(
    "cell, layers, chunks, sms, asked",
    [
        (LSTM, 2, 2, 132, {}),
        (LSTM, 3, 3, 132, ROWS["both"]),
        (LSTM, 3, 3, 2, ROWS["both"]),
        (GRU, 3, 7, 132, ROWS["lengths"]),
        (GRU, 4, 2, 3, ROWS["resets"]),
    ],
    ids=lambda value: getattr(value, "mode", None),
)


@INTERLEAVINGS
def test_every_interleaving_finds_its_inputs_made_and_every_wait_is_needed(cuda, log, cell, layers, chunks, sms, asked):
    entries = recorded(cuda, log, cell, layers, chunks, sms, asked)
    assert len({entry.lane for entry in entries}) == min(layers, sms) + 1
    assert is_ordered(entries)
    waits = [index for index, entry in enumerate(entries) if entry.kind == "wait"]
    assert len(waits) == 2 + (layers - 1) * chunks
    for index in waits:
        assert not is_ordered(entries[:index] + entries[index + 1 :]), entries[index]


@INTERLEAVINGS
def test_the_allocator_is_told_of_what_crosses_lanes_and_of_nothing_else(cuda, log, cell, layers, chunks, sms, asked):
    needed = crossing(recorded(cuda, log, cell, layers, chunks, sms, asked))
    assert {lane for lane, _ in needed} == {-1, *range(min(layers, sms))}
    assert log.used == needed


@pytest.mark.parametrize("all_states, sequences", [(False, 1), (True, 3 * 2)])
def test_the_caller_puts_together_what_is_asked_for_and_no_more(cuda, log, all_states, sequences):
    entries = recorded(cuda, log, LSTM, 3, 2, 132, {"all_states": all_states})
    last = max(index for index, entry in enumerate(entries) if entry.kind == "wait")
    assert sum(entry.kind == "op" for entry in entries[last:]) == sequences + 2  # and h_n and c_n


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_derivatives(cuda, log, dtype):
    module, x = fastrnn.LSTM(I, H, 2, dtype=dtype), torch.randn(T, B, I, dtype=dtype, requires_grad=True)

    def call():
        output, (_, c) = module(x)
        (slope,) = torch.autograd.grad(output.square().sum() + c.sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, *module.parameters()], allow_unused=True)

    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(*both_orders(cuda, log, call), rtol=tolerance, atol=tolerance)


NOT_USED = {
    "one layer": (dict(num_layers=1), {}, contextlib.nullcontext),
    "two directions": (dict(bidirectional=True), {}, contextlib.nullcontext),
    "float64": (dict(dtype=torch.float64), {}, contextlib.nullcontext),
    "projected": (dict(proj_size=5), {}, contextlib.nullcontext),
    "recomputed chunks": ({}, {"checkpoint_chunks": 2}, contextlib.nullcontext),
    "watched": ({}, {}, BaseTorchDispatchMode),
    "forward-mode AD": ({}, {}, forward_ad.dual_level),
}


@pytest.mark.parametrize("options, asked, within", NOT_USED.values(), ids=NOT_USED)
def test_where_layers_run_one_after_another(cuda, log, options, asked, within):
    if "proj_size" in options or "dtype" in options:
        cuda.override_tier("auto")
    module = fastrnn.LSTM(I, H, **({"num_layers": 2} | options))
    with within():
        module(torch.randn(T, B, I, dtype=options.get("dtype")), **asked)
    assert marks(log) == 0
    fastrnn.LSTM(I, H, 2)(torch.randn(T, B, I))
    assert marks(log)


def test_explain_says_how_the_layers_follow_each_other(cuda, log):
    module, x = fastrnn.LSTM(I, H, 2), torch.randn(T, B, I)
    assert "\n  layers: 2 at the same time, in 3 chunks of time" in str(fastrnn.explain(module, x))
    text = str(fastrnn.explain(module, x, checkpoint_chunks=2))
    assert "\n  layers: one after another, because backward computes their chunks again" in text
    with torch.no_grad():
        assert "layers: 2 at the same time" in str(fastrnn.explain(module, x, checkpoint_chunks=2))


def test_without_a_tier_or_without_gradients(cuda, log):
    module, x = fastrnn.LSTM(I, H, 2), torch.randn(T, B, I)
    with torch.no_grad():
        waves, plain = both_orders(cuda, log, lambda: tensors(module(x, checkpoint_chunks=2)))
    assert all(map(torch.equal, waves, plain))
    cuda.override_wavefront(3)
    cuda.override_tier("step")
    module(x)
    assert marks(log) == 0
