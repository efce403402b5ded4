"""Measuring: no time for a wrong result, fair order, honest memory, and the command a user runs."""

from __future__ import annotations

import gc
import itertools
import math
import types
from dataclasses import replace

import pytest
import torch
from benchmark_rows import SETTING, TINY
from torch import nn

import fastrnn
from fastrnn import bench
from fastrnn._kernels.ops import Kernel, Pass, Plan
from fastrnn.bench import check as command
from fastrnn.bench import environment, timing
from fastrnn.bench import measure as measuring
from fastrnn.bench.case import Side, _Loop, build, make_inputs, make_weights, rotation_count
from fastrnn.bench.gate import FACTOR, FLOOR, TF32_EPS, TF32_FLOOR, deviation, errors
from fastrnn.bench.measure import Served, Setting, measure, served_by
from fastrnn.bench.memory import saved_bytes
from fastrnn.bench.timing import ClockRounds, EventRounds, Pace, Spread, interleave, spread

TIERS = ("cta", "cluster", "grid", "step")
TINY_SHAPE = ["--seq-len", "3", "--batch", "2", "--hidden", "5", "--seconds", "0.001"]


# --- the gate ----------------------------------------------------------------------------------------------------


def faulty(cell, before=lambda x, hx: (x, hx), after=lambda output, state: (output, state)):
    """A layer whose arguments or results are changed, but not in the loop that one of ours is held against."""

    class Faulty(getattr(fastrnn, cell)):
        def forward(self, x, hx):
            if isinstance(self, _Loop):
                return super().forward(x, hx)
            return after(*super().forward(*before(x, hx)))

    return Faulty


def scaled(x):
    """Itself, with a gradient that is a tenth of a percent too large."""
    x = x.view_as(x)
    x.register_hook(lambda grad: grad * 1.001)
    return x


WRONG_OUTPUT = {"after": lambda output, state: (output * 1.001, state)}
WRONG_GRADIENT = {"before": lambda x, hx: (x, (scaled(hx[0]), hx[1]))}
WRONG = {
    "output": ("LSTM", "forward", "output", WRONG_OUTPUT),
    "state": ("LSTM", "forward", "c_n", {"after": lambda output, state: (output, (state[0], state[1].flip(1)))}),
    "inference": ("LSTM", "forward", "output", {"after": lambda y, state: (y + 0.001 * (not y.requires_grad), state)}),
    "nan": ("LSTM", "forward", "output", {"after": lambda output, state: (output / 0 * 0, state)}),
    "dtype": ("LSTM", "forward", "output", {"after": lambda output, state: (output.double(), state)}),
    "input gradient": ("LSTM", "training", "grad input", {"before": lambda x, hx: (scaled(x), hx)}),
    "state gradient": ("LSTM", "training", "grad h_0", WRONG_GRADIENT),
    "not torch's": ("CIFGLSTM", "training", "output", WRONG_OUTPUT),
}


@pytest.mark.parametrize(("cell", "mode", "tensor", "fault"), WRONG.values(), ids=WRONG)
def test_a_wrong_result_prints_no_time(cell, mode, tensor, fault, monkeypatch):
    monkeypatch.setattr(measuring, "interleave", None)
    monkeypatch.setattr(fastrnn, cell, faulty(cell, **fault))
    (found,) = measure(replace(TINY, cell=cell, mode=mode), SETTING)
    assert found.status == "WRONG" and found.worst.tensor == tensor
    assert found.ours is found.other is found.ours_bytes is None
    assert f"{tensor}: error" in found.detail


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packed": True, "directions": 2, "layers": 2},
        {"dtype": "bfloat16"},
        {"resets": 0.2, "T": 9, "B": 4, "layers": 2},
    ],
    ids=["plain", "packed", "bfloat16", "resets"],
)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_right_result_is_timed(cell, changes, mode):
    case = replace(TINY, cell=cell, mode=mode, **changes)
    (found,) = measure(case, SETTING)
    assert (found.status, found.launch) == ("ok", "eager"), found.detail
    assert found.ours.repeats == found.other.repeats == 2 and found.ratio > 0 and found.served.backend
    assert (found.ours_bytes is not None) == (mode == "training")


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize(
    "cell, option",
    [
        ("PeepholeLSTM", ""),
        ("IndRNN", ""),
        ("LayerNormLSTM", ""),
        ("SLSTM", "forget_gate=exp"),
        ("LSTM", "num_heads=5"),
        ("GRU", "zoneout=0.3"),
    ],
)
def test_what_torch_lacks_is_timed_against_a_loop_over_its_operations(cell, option, mode):
    case = replace(TINY, cell=cell, option=option, mode=mode)
    (found,) = measure(case, SETTING)
    assert found.status == "ok" and found.ratio > 0 and found.served.backend in ("cpu", "reference"), found.detail
    loop = build(case.layer(nn), case, "cpu", make_weights(case))
    with torch.profiler.profile() as profile:
        loop(*make_inputs(case, "cpu")[0][:2])
    names = " ".join(event.name for event in profile.events())
    assert sum(map(names.count, ("sigmoid", "tanh", "relu"))) >= case.T


def test_the_gate_covers_every_result():
    case = replace(TINY, mode="training", layers=2, directions=2)
    side = Side(build(nn.LSTM, case, "cpu", make_weights(case)), case)
    results_ = side(make_inputs(case, "cpu")[0])
    assert len(side.names) == len(results_) == 3 + 3 + 16
    for name, value in zip(side.names[6:], results_[6:], strict=True):
        assert value.shape == dict(side.module.named_parameters())[name.removeprefix("grad ")].shape


def test_error_budget_is_twice_torchs_own_plus_a_floor():
    exact = torch.tensor([2.0, -4.0], dtype=torch.float64)
    torchs, ours = torch.tensor([2.0, -4.04]), torch.tensor([2.0, -4.1])
    exact, torchs, ours = (t.repeat(4) for t in (exact, torchs, ours))  # as few as two have the scale of their kind
    (error,) = errors(["x"], [ours], [torchs], [exact])
    assert error.torch == pytest.approx(0.01, rel=1e-4) and error.ours == pytest.approx(0.025, rel=1e-4)
    assert error.budget == pytest.approx(FACTOR * 0.01 + FLOOR[torch.float32] * 2**-23, rel=1e-4) and not error.ok
    assert errors(["x"], [torch.tensor([2.0, -4.08] * 4)], [torchs], [exact])[0].ok
    assert deviation(torch.zeros(3), exact) == math.inf
    with pytest.raises(ValueError, match="shorter"):
        errors(["x"], [], [torchs], [exact])
    for dtype, precision, floor_ in ((torch.float32, "ieee", FLOOR[torch.float32] * 2**-23),
                                     (torch.float32, "tf32", TF32_FLOOR * TF32_EPS),
                                     (torch.bfloat16, "tf32", FLOOR[torch.bfloat16] * 2**-7)):  # fmt: skip
        same = [exact.to(dtype)]
        assert errors(["x"], same, same, same, precision)[0].budget == pytest.approx(floor_)


def test_outputs_and_gradients_have_a_budget_each_and_few_elements_the_scale_of_their_kind():
    one, small = torch.ones(8), torch.full((1,), 1e-9)
    names = ["output", "h_n", "grad x", "grad b"]
    exact = [t.double() for t in (one, one, one, small)]
    torchs = [one * (1 + 2**-10), one, one, small]
    budgets = {e.tensor: e.budget for e in errors(names, torchs, torchs, exact)}
    assert budgets["h_n"] == budgets["output"] == pytest.approx(FACTOR * 2**-10, rel=0.01)
    assert budgets["h_n"] > 100 * budgets["grad x"]
    off = errors(names, [one, one, one, small * 2], torchs, exact)
    assert all(error.ok for error in off)  # 1e-9 of a kind of size 1
    assert [e.tensor for e in errors(names, [one, one, one * (1 + 2**-10), small], torchs, exact) if not e.ok] == [
        "grad x"
    ]


def test_what_a_side_raises_is_reported_and_not_timed(monkeypatch):
    def broken(*_):
        raise RuntimeError("no kernel for this shape\nsecond line")

    monkeypatch.setattr(fastrnn, "LSTM", faulty("LSTM", broken))
    (found,) = measure(TINY, SETTING)
    assert (found.status, found.detail) == ("error", "RuntimeError: no kernel for this shape") and found.ours is None


def test_the_kernels_that_serve_are_told_from_those_that_could():
    team = "8 x 16 blocks a direction, 32 units each, 16 rows"
    cluster, grid = Kernel("cluster", f"small; {team}"), Kernel("grid", f"wide; {team}")
    step = Kernel("step", "fused with tensor cores")
    found = fastrnn.Explanation("cuda", {}, None, Plan(Pass(cluster, [grid]), Pass(step, [cluster])))
    served = served_by(found, training=True)
    assert served == Served("cuda", f"cluster (small; {team})", "step (fused with tensor cores)")
    assert str(served) == "cuda cluster + step"
    assert served_by(found, training=False) == served._replace(backward_kernel="")
    assert (
        served_by(fastrnn.Explanation("cpu", {}, None), training=True) == Served("cpu") and str(Served("cpu")) == "cpu"
    )


# --- timing and memory -------------------------------------------------------------------------------------------


def test_sides_take_turns_and_take_consecutive_inputs():
    calls = []
    sides = [lambda given, who=who: calls.append((who, given)) for who in "AB"]
    samples = interleave(sides, [0, 1, 2], Pace(seconds=0.0, least=4, most=9), ClockRounds())
    assert [who for who, _ in calls] == list("AB" * (len(calls) // 2))
    assert [given for _, given in calls] == [k % 3 for k in range(len(calls))]
    assert [len(times) for times in samples] == [4, 4] and len(calls) > 8  # warm-up came first


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_stays_as_it_was(enabled):
    try:
        if not enabled:
            gc.disable()
        interleave([len], ["inputs"], Pace(seconds=0.0, least=1, most=1), ClockRounds())
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_repeats_follow_the_time_budget_within_bounds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def work(_inputs):
        now[0] += 2**-6  # exact in binary, so that counts are

    for seconds, least, most, expected in ((1.0, 5, 500, 32), (0.01, 5, 500, 5), (100.0, 5, 20, 20)):
        samples = interleave([work, work], [None], Pace(seconds, least, most), ClockRounds())
        assert [len(times) for times in samples] == [expected, expected]
        assert samples[0] == [15.625] * expected


def test_spread_is_median_and_percentiles():
    assert spread([float(k) for k in range(11)]) == Spread(5.0, 2.0, 8.0, 11)
    assert spread([3.0]) == Spread(3.0, 3.0, 3.0, 1)


def test_launch_bound_means_the_host_was_the_slower_part():
    rounds = EventRounds(2)
    rounds.host_ms = [[0.1, 0.1, 9.0], [0.9, 0.9, 0.9]]
    assert rounds.launch_bound([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert not rounds.launch_bound([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])


class FakeEvent:
    """A CUDA event whose time is its place in the order of all records."""

    order = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        FakeEvent.order += 1
        self.at = FakeEvent.order

    def elapsed_time(self, end):
        return end.at - self.at


def test_event_rounds_wait_for_the_device_once(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    rounds = EventRounds(2)
    sides = [lambda _inputs: calls.append("A"), lambda _inputs: (calls.append("B"), FakeEvent(True).record())]
    assert rounds(sides, itertools.repeat(None), 3) == [[1, 1, 1], [2, 2, 2]]
    assert calls == ["A", "B"] * 3 + ["wait"] and [len(times) for times in rounds.host_ms] == [3, 3]


@pytest.mark.parametrize("replays_all", [True, False])
def test_a_graph_that_leaves_work_out_is_wrong(monkeypatch, replays_all):
    side = Side(build(nn.LSTM, TINY, "cpu", make_weights(TINY)), TINY)
    inputs = make_inputs(TINY, "cpu")[0]
    expected = side(inputs)

    def captured(step, given):
        held = step(given)

        def replay(_inputs):
            for into, result in list(zip(held, step(given), strict=True))[: 3 if replays_all else 2]:
                into.copy_(result)

        return replay, held

    monkeypatch.setattr(measuring, "captured", captured)
    monkeypatch.setattr(measuring, "EventRounds", lambda _sides: ClockRounds())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def gate(ours):
        return errors(side.names, ours, expected, [result.double() for result in expected])

    found = measuring._measure_graph(SETTING, (side, side), inputs, "cuda", gate)
    assert (found.status, found.launch) == ("ok" if replays_all else "WRONG", "graph")
    assert (found.ours is not None) == replays_all


def test_cuda_inputs_rotate_through_more_than_the_cache(monkeypatch):
    inputs = make_inputs(TINY, "cpu")[0]
    held = 4 * (3 * 2 * 4 + 2 * 2 * 5)
    properties = types.SimpleNamespace(L2_cache_size=100 * held)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    assert rotation_count(inputs, "cuda", most=1000) == 150
    assert rotation_count(inputs, "cuda", most=40) == 40
    assert rotation_count(inputs, "cpu", most=40) == 1


def test_saved_bytes_count_each_storage_once_and_no_inputs():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x, hx):
            y = torch.tanh(x @ self.weight)  # saves x, weight and y
            return y * y[:, :1], hx * 2  # saves y again, through a view

    case = replace(TINY, cell="GRU", mode="training")
    assert saved_bytes(Side(Layer(), case), make_inputs(case, "cpu")[0]) == 4 * (3 * 2 * 4)


def test_inputs_are_the_same_in_every_run_and_packed_lengths_fill_the_range():
    first, second = make_inputs(replace(TINY, packed=True, T=50, B=32), "cpu", 2)
    again = make_inputs(replace(TINY, packed=True, T=50, B=32), "cpu")[0]
    assert torch.equal(first.x.data, again.x.data) and not torch.equal(first.x.data, second.x.data)
    assert len(first.x.batch_sizes) == 50 and first.x.batch_sizes[0] == 32 and first.x.batch_sizes[-1] < 32


# --- the user's command ------------------------------------------------------------------------------------------


def test_bench_command_measures_a_users_shape(capsys):
    assert bench.main(["--cell", "gru", "--bidirectional", "--threads", "1", *TINY_SHAPE]) == 0
    text = capsys.readouterr().out
    assert "forward: " in text and "training: " in text and " ms " in text and "saved memory" in text
    assert torch.__version__ in text and "% of floor" in text and " -> " in text


def test_check_command_tells_a_wrong_layer_by_its_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(command.dispatch, "BACKENDS", ("reference",))
    assert command.main(["--dtype", "float32", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "40 of 40 within twice torch's error against float64"
    for fault in (WRONG_OUTPUT, WRONG_GRADIENT):
        with monkeypatch.context() as patch:
            patch.setattr(fastrnn, "LSTM", faulty("LSTM", **fault))
            assert command.main(["--dtype", "float64", "--device", "cpu"]) == 1
        told = [line for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")]
        assert len(told) == 7 and all(line.startswith("LSTM ") for line in told)


def test_bench_command_tells_a_wrong_result_by_its_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(fastrnn, "LSTM", faulty("LSTM", **WRONG_OUTPUT))
    assert bench.main(["--mode", "forward", *TINY_SHAPE]) == 1
    text = capsys.readouterr().out
    assert "forward: WRONG  output: error" in text and " ms" not in text


def test_a_backend_forced_from_outside_is_not_called_automatic(monkeypatch):
    monkeypatch.setenv("FASTRNN_BACKEND", "reference")
    (found,) = measure(TINY, SETTING)
    assert found.status == "refused" and "FASTRNN_BACKEND" in found.detail
    (named,) = measure(TINY, replace(SETTING, backend="aten"))
    assert (named.status, named.served) == ("ok", Served("aten"))


def test_commit_is_empty_outside_a_checkout(tmp_path):
    assert environment.commit(tmp_path) == ""


# --- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_cuda_is_timed_by_events_and_as_a_graph(precision, mode):
    before = torch.backends.cudnn.rnn.fp32_precision
    case = replace(TINY, T=8, B=4, I=32, H=32, mode=mode)
    setting = Setting(torch.device("cuda"), "cuda", precision=precision, graph="on", pace=Pace(0.01, least=3))
    eager, graph = measure(case, setting)
    assert (eager.status, eager.launch) == ("ok", "eager"), eager.detail
    assert (graph.status, graph.launch) == ("ok", "graph"), graph.detail
    tiers = [kernel.partition(" ")[0] for kernel in graph.served[1:]]
    assert tiers[0] in TIERS and tiers[1] in (TIERS if mode == "training" else ("",))
    assert (eager.ours_bytes or 0) > 0 if mode == "training" else eager.ours_bytes is None
    assert torch.backends.cudnn.rnn.fp32_precision == before
