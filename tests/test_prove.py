"""`python -m fastrnn prove`: from measuring to choosing, whatever becomes of the process that measures.

There is no GPU here: what is measured is measured on the CPU kernels.
"""

from __future__ import annotations

import os
import signal
import time
import types

import pytest
import torch
from stand_in import AFTER, GPU, ORDER, PLAIN, compiled, gpu, known, order, said, verdict  # noqa: F401

import fastrnn
from fastrnn import __main__ as command
from fastrnn import _dispatch, _ext, _first_call, _info, _ops, _proof
from fastrnn._call import Call
from fastrnn._proof import RIGHT, WRONG, Finding, Kind, Speed
from fastrnn._prove import cli, shapes
from fastrnn._prove.supervisor import Patience, outcomes
from fastrnn._prove.worker import Broken, Done, Pair, Ready, Row, Task, work
from fastrnn.registry import CELLS


def tiny(pipe, task):
    """The real measurement on shapes that take no time."""
    shapes._TIMED, shapes._TIMED_MORE = ((2, 2, 8), (16, 4, 32)), ()
    shapes._TIMED_STEP, shapes._TIMED_VARIANT = ((1, 2, 8),), (3, 2, 72)
    work(pipe, task)


def planted(pipe, task):
    class Planted(fastrnn.GRU):
        def forward(self, *args, **named):
            output, *rest = super().forward(*args, **named)
            wrong = torch.is_grad_enabled() and isinstance(output, torch.Tensor)
            return output * 1.1 if wrong else output, *rest

    fastrnn.GRU = Planted
    tiny(pipe, task)


def row(pair) -> Row:
    return Row(Kind(*pair, "", False), "plain", "a shape", (1, 1, 1), "ok", 1.5, "")


def faulty(pipe, task):
    """Crashes, hangs, falls out with its device or leaves, as the pair's cell says."""
    pipe.send(Ready())
    for pair in task.pairs:
        if pair.dtype == "float16":
            pipe.send(row(pair))
            if pair.mode == "LSTM":
                os.kill(os.getpid(), signal.SIGSEGV)
            if pair.mode == "GRU":
                time.sleep(60)
            if pair.mode == "RNN_TANH":
                pipe.send(Broken("an illegal memory access"))
                return
            raise SystemExit(7)
        pipe.send(row(pair))
        pipe.send(Done())


def unready(pipe, task):
    raise SystemExit(5)


@compiled
@pytest.mark.slow
def test_from_measuring_to_choosing(capsys, monkeypatch):
    """Measured for real, on the CPU kernels, in another process; the choice agrees with every number."""
    monkeypatch.setattr(_proof, "_PRECISION", lambda *_: "ieee")
    task = Task((Pair("LSTM", "float32"), Pair("RNN_RELU", "bfloat16")), "cpu", "cpu", seconds=0.001, quick=True)
    assert cli.prove(task, GPU, doing=tiny) == 0
    found = _proof.verdict_of(0)
    assert len(found.findings) == 6 and {f.state for f in found.findings.values()} == {RIGHT}
    ours = 0
    for name, finding in found.findings.items():
        assert not finding.lacking
        mode, dtype, *rest = name.split()
        call = Call(mode, "cuda", getattr(torch, dtype), 1, 1, 8, 8, grad=rest[-1] == "training")
        if "tf32" in rest:
            continue
        for variant in ("plain", "step"):
            for T, B, H, ratio in finding.speeds[variant]:
                choice = _dispatch.choose(call._replace(T=T, B=B, H=H, step=variant == "step"))
                assert choice == ("cuda" if ratio >= 1 else "aten"), (name, variant, T, B, H, ratio)
                ours += choice == "cuda"
    printed = capsys.readouterr().out
    assert ours and "6 of 6 kinds of call are right on this GPU. Calls of these run on the CUDA kernels" in printed
    assert "LSTM float32 tf32 training" in printed and str(_proof.path_of(GPU)) in printed


@compiled
def test_a_wrong_result_is_recorded_as_wrong(capsys):
    task = Task((Pair("GRU", "bfloat16"),), "cpu", "cpu", seconds=0.001, quick=True)
    assert cli.prove(task, GPU, doing=planted) == 1
    found = _proof.verdict_of(0).findings
    assert found["GRU bfloat16 forward"].state == RIGHT
    assert found["GRU bfloat16 training"].state == WRONG and "error" in found["GRU bfloat16 training"].detail
    assert order(mode="GRU", dtype=torch.bfloat16, grad=True, extended=True)[0] != "cuda"
    printed = capsys.readouterr().out
    assert "never: T=" in printed and "1 of 2 kinds" in printed and "The others stay with torch.nn's" in printed


@pytest.mark.slow
def test_crashes_and_hangs_fail_their_pair_alone(capsys):
    modes = list(CELLS)
    pairs = tuple(Pair(mode, dtype) for mode in modes for dtype in ("float16", "bfloat16"))
    assert cli.prove(Task(pairs, "cpu"), GPU, Patience(60, 2), faulty) == 1
    found = _proof.verdict_of(0).findings
    reasons = ["ended by SIGSEGV", "no result within 2 seconds", "an illegal memory access", "exit status 7"]
    for mode, reason in zip(modes, reasons, strict=True):
        for grad in ("forward", "training"):
            assert found[f"{mode} float16 {grad}"].state == "failed"
            assert reason in found[f"{mode} float16 {grad}"].detail
        assert found[f"{mode} bfloat16 forward"] == Finding(RIGHT, speeds={"plain": [Speed(1, 1, 1, 1.5)]})
    assert order()[0] == "aten" and order(dtype=torch.bfloat16)[0] == "cuda"
    assert "LSTM float16: FAILED" in capsys.readouterr().out


def test_a_device_that_never_answers_fails_all_that_is_left():
    pairs = (Pair("LSTM", "float16"), Pair("GRU", "float32"))
    ends = list(outcomes(Task(pairs, "cpu"), print, doing=unready))
    assert [pair for pair, *_ in ends] == list(pairs)
    assert all("exit status 5, before anything was measured" in why and not rows for _, rows, why in ends)
    assert len(cli.findings(*ends[1])) == 4


def test_what_was_known_before_is_gone_when_a_run_begins():
    known()
    assert cli.prove(Task((Pair("GRU", "float16"),), "cpu"), GPU, doing=unready) == 1
    assert order() == AFTER and "LSTM float16 forward was left out" in said()


# --- some pairs only ---------------------------------------------------------------------------------------------


def prescribed(monkeypatch, *ends) -> list:
    """What the supervisor says, whatever is asked; the tasks that it was given."""
    tasks = []
    monkeypatch.setattr(cli, "outcomes", lambda task, *_: tasks.append(task) or iter(ends))
    return tasks


def only(*pairs: str, more=()) -> int:
    return command.main(["prove", "--only", *pairs, *more])


def test_only_some_pairs_beside_what_is_known(monkeypatch):
    lstm, gru = Pair("LSTM", "float32"), Pair("GRU", "float16")
    known()
    tasks = prescribed(monkeypatch, (lstm, [], "a crash"), (gru, [row(gru)], ""))
    assert only("LSTM:float32", "GRU:float16", more=["--quick"]) == 1
    assert tasks == [Task((lstm, gru), "cuda:0", seconds=cli.QUICK_SECONDS, quick=True)]
    found = _proof.read(GPU).findings
    assert [finding.state for finding in found.values()] == [RIGHT, *["failed"] * 4, RIGHT]
    prescribed(monkeypatch, (lstm, [row(lstm)], ""))
    assert only("LSTM:float32") == 0 and _proof.read(GPU).findings["GRU float16 forward"].state == RIGHT


def test_only_some_pairs_do_not_make_an_outdated_verdict_count(monkeypatch):
    _proof.save(verdict({"LSTM float16 forward": Finding(RIGHT, speeds=PLAIN)}, torch="1.0"))
    prescribed(monkeypatch, (Pair("GRU", "float16"), [row(("GRU", "float16"))], ""))
    assert only("GRU:float16") == 0
    assert list(_proof.read(GPU).findings) == ["GRU float16 forward"]


def test_what_others_write_meanwhile_stays(monkeypatch):
    gru = Pair("GRU", "float16")

    def outcomes(*_):
        known()
        yield gru, [row(gru)], ""

    monkeypatch.setattr(cli, "outcomes", outcomes)
    for arguments in (["prove"], ["prove", "--only", "GRU:float16"]):
        assert command.main(arguments) == 0
        assert sorted(_proof.read(GPU).findings) == ["GRU float16 forward", "LSTM float16 forward"]
        _proof.forget(GPU)


PAIR = Pair("LSTM", "float16")
NO_MEMORY = row(PAIR)._replace(status="error", ratio=0.0, detail="OutOfMemoryError: CUDA out of memory. Tried to")


@pytest.mark.parametrize(
    "rows, why",
    [
        ([row(PAIR), NO_MEMORY._replace(variant="projected")], ""),
        ([NO_MEMORY._replace(detail="RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED")], ""),
        ([], "CUDA-capable device(s) is/are busy or unavailable, before anything was measured"),
        ([row(PAIR)], "the process was ended by SIGKILL"),
    ],
)
def test_what_may_pass_is_not_written_down(monkeypatch, capsys, rows, why):
    before = known("wrong", detail="of this")
    prescribed(monkeypatch, (PAIR, rows, why))
    assert only("LSTM:float16") == 3
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("python -m fastrnn prove: LSTM float16 could not be judged: ")
    assert (why or rows[-1].detail) in said[-1]
    assert _proof.read(GPU).findings == before.findings
    prescribed(monkeypatch, (PAIR, [*rows, row(PAIR)._replace(status="WRONG", detail="off")], ""))
    assert only("LSTM:float16") == 1 and "off" in _proof.read(GPU).findings["LSTM float16 forward"].detail
    prescribed(monkeypatch, (PAIR, rows, why))
    assert command.main(["prove"]) in (0, 1)  # told to prove all, it says what it found of each


def test_a_device_that_lets_nobody_in_says_why():
    ends = list(outcomes(Task((PAIR,), "cuda:7"), print, Patience(60, 60)))
    assert len(ends) == 1 and ends[0][2].endswith(", before anything was measured")
    assert "exit status" not in ends[0][2] and cli._passing([], ends[0][2])


@pytest.mark.parametrize("pair", ["LSTM", "LSTM:", "LSTM:int8", "lstm:float16", "RNN:float32"])
def test_a_pair_that_there_is_not(pair, capsys):
    with pytest.raises(SystemExit) as end:
        only(pair)
    assert end.value.code == 2 and "expected a pair such as LSTM:float32" in capsys.readouterr().err


def test_a_variant_that_cannot_be_run_is_lacking():
    good, bad = row(("LSTM", "float16")), row(("LSTM", "float16"))._replace(status="error", ratio=0.0, detail="no room")
    finding = cli._finding([good, bad._replace(variant="projected")])
    assert finding.state == RIGHT and finding.lacking == {"projected": "a shape: no room"}
    assert cli._finding([good, bad]).state == "failed"
    assert cli._finding([good, bad, good._replace(status="WRONG", variant="extended", detail="off")]).state == WRONG
    assert "without projected" in cli.table(verdict({"LSTM float16 forward": finding}))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("mode", CELLS)
def test_every_variant_is_measured_in_every_kind(mode, quick):
    measured = list(shapes.items(mode, "float32", ("ieee", "tf32"), quick))
    assert len({item.kind for item in measured}) == 4
    for kind in {item.kind for item in measured}:
        mine = [item for item in measured if item.kind == kind]
        wanted = set(_proof.VARIANTS) - (set() if mode == "LSTM" else {"projected"})
        assert {item.variant for item in mine} == wanted
        assert {item.variant for item in mine if item.timed} == wanted - {"extended"}
        assert len({item.shape for item in mine}) == len(mine)


def test_relus_sums_stay_off_zero():
    shape = shapes.Shape("RNN", 3, 2, 4, 6, nonlinearity="relu")
    weights = shape.weights({"weight_hh_l0": torch.randn(6, 6), "bias_hh_l0": torch.randn(6)})
    assert (weights["weight_hh_l0"][::2] >= 0).all() and (weights["weight_hh_l0"][1::2] <= 0).all()
    assert (shape.values(torch.randn(9)) >= 0).all()


# --- the commands ------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_command_says_why(monkeypatch, capsys):
    monkeypatch.setattr(_proof, "gpu_at", lambda index: "torch sees no GPU")
    for arguments in (["prove"], ["prove", "--forget"]):
        assert command.main(arguments) == 2
        assert capsys.readouterr().err == "python -m fastrnn prove: torch sees no GPU\n"


@pytest.mark.parametrize("device", ["cpu", "tpu", ""])
def test_a_device_that_is_no_gpu(device, capsys):
    assert command.main(["prove", "--device", device]) == 2
    assert f"--device: expected cuda or cuda:N, got {device!r}" in capsys.readouterr().err


def test_why_there_is_no_gpu(monkeypatch):
    monkeypatch.undo()
    if _ops.missing("cuda"):
        assert _proof.gpu_at(0) == _ops.missing("cuda")
        monkeypatch.setattr(_ops, "missing", lambda backend: None)
    if not torch.cuda.is_available():
        assert _proof.gpu_at(0).endswith("sees no GPU")


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(cli, "outcomes", None)
    assert command.main(["prove"]) == 2
    assert "file" in capsys.readouterr().err


def test_forgetting(capsys):
    known()
    assert order() == ORDER
    assert command.main(["prove", "--forget"]) == 0
    assert "forgotten: " in capsys.readouterr().out and order() == AFTER
    assert command.main(["prove", "--forget"]) == 0
    assert "no verdict to forget" in capsys.readouterr().out


def test_interrupting_keeps_what_was_found(monkeypatch):
    def interrupted(task, *_):
        yield task.pairs[0], [row(("LSTM", "float16"))], ""
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "outcomes", interrupted)
    assert command.main(["prove"]) == 130
    assert order() == ORDER


def test_info_has_a_line_for_every_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: GPU.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(_ext, "why_no_cuda", lambda: None)
    monkeypatch.setattr(_ext, "load", lambda: types.SimpleNamespace(cuda=None))
    monkeypatch.setattr(_ext, "build", types.SimpleNamespace(cuda_archs="9.0"))
    assert ("cuda:0 proof", f"none: {_proof.UNPROVEN}{_first_call.habit()}") in _info._cuda()
    _proof.save(verdict({"LSTM float16 forward": Finding(RIGHT), "GRU float16 forward": Finding(WRONG)}))
    line = "proven 2026-01-02: 1 of 2 kinds of call right; GRU float16 forward wrong"
    assert ("cuda:0 proof", line) in _info._cuda()
