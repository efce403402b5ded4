"""A proof, from measuring to choosing, whatever becomes of the process that measures; `python -m fastrnn prove`.

There is no GPU here: stand_in_worker.py measures, or what is measured is measured on the CPU kernels.
"""

from __future__ import annotations

import json
import types

import pytest
import torch
from stand_in import AFTER, CALL, FORWARD, GPU, ORDER, finding, gpu, known, order, pairs, write  # noqa: F401
from support import compiled

from fastrnn import __main__ as command
from fastrnn import _info
from fastrnn._backends import dispatch
from fastrnn._kernels import ext, ops
from fastrnn.bench.case import Case, make_inputs, make_weights
from fastrnn.bench.measure import Measurement, Setting, measure
from fastrnn.registry import BY_NUMBER
from fastrnn.verdict import proof, prove, worker
from fastrnn.verdict.proof import FAILED, RIGHT, WRONG


def only(*pairs: str) -> int:
    return command.main(["prove", "--quick", "--only", *pairs])


def findings() -> dict:
    verdict = proof.read(GPU)
    return {} if isinstance(verdict, str) else verdict["findings"]


def states() -> dict[str, str]:
    return {kind: found["state"] for kind, found in findings().items()}


# --- what the worker says ----------------------------------------------------------------------------------------


@compiled
@pytest.mark.slow
def test_from_measuring_to_choosing(capfd, monkeypatch):
    """Measured for real, on the CPU kernels, in another process; the choice agrees with every number."""
    monkeypatch.setenv("STAND_IN", "real")
    monkeypatch.setattr(torch._C, "_get_fp32_precision_getter", lambda *_: "ieee")
    assert only("LSTM:float32", "RNN_RELU:bfloat16") == 0
    assert set(states().values()) == {RIGHT} and len(states()) == 6
    for name, found in findings().items():
        mode, dtype, *rest = name.split()
        for variant in () if "tf32" in rest else ("plain", "step"):
            for T, B, H, ratio in found["speeds"][variant]:
                call = CALL._replace(mode=mode, dtype=getattr(torch, dtype), grad="training" in rest)
                chosen = dispatch.choose(call._replace(T=T, B=B, H=H, step=variant == "step"))
                assert chosen == ("cuda" if ratio >= 1 else "aten"), (name, variant, T, B, H, ratio)
    printed = capfd.readouterr().out
    assert "LSTM float32 tf32 training: right, no slower than PyTorch at " in printed
    assert str(proof.path_of(GPU)) in printed


@compiled
def test_a_wrong_result_is_kept_as_wrong(capsys, monkeypatch):
    monkeypatch.setenv("STAND_IN", "planted")
    assert only("GRU:bfloat16") == 1
    assert states() == {"GRU bfloat16 forward": RIGHT, "GRU bfloat16 training": WRONG}
    assert order(mode="GRU", dtype=torch.bfloat16, grad=True, extended=True)[0] != "cuda"
    assert "GRU bfloat16 training: wrong: T=" in capsys.readouterr().out


FAILING = {
    "SIGSEGV": "exit code -11, a shape",
    "SIGABRT": "exit code -6, a shape",
    "hang": "did not answer in time, a shape",
    str(prove.BROKEN): "exit code 70, a shape, the reason",
    "1": "exit code 1, a shape, the reason",
    "rubbish": "exit code 0, a shape",
}
PASSING = {
    "SIGKILL": "exit code -9",
    "SIGTERM": "exit code -15",
    str(prove.PASSING): "exit code 75, a shape, the reason",
    "unready SIGSEGV": "exit code -11",
    "unready hang": "did not answer in time",
    "unready 1": "exit code 1, the reason",
    "unready 0": "exit code 0",
    "unready rubbish": "exit code 0",
}


@pytest.mark.parametrize("end", [*FAILING, *PASSING])
def test_the_end_of_the_worker_fails_its_pair_or_leaves_it_open(monkeypatch, capsys, end):
    """And only that pair."""
    monkeypatch.setenv("STAND_IN", json.dumps({"LSTM": end}))
    monkeypatch.setattr(prove, "SILENCE_S", 1.0)
    known(WRONG, {}, "of this")
    right = {
        f"GRU float32 {precision} {kind}": RIGHT for precision in ("ieee", "tf32") for kind in ("forward", "training")
    }
    if end in FAILING:
        assert only("LSTM:float16", "GRU:float32") == 1
        assert states() == {FORWARD: FAILED, "LSTM float16 training": FAILED} | right
        assert findings()[FORWARD]["detail"].endswith(FAILING[end])
    else:
        assert only("LSTM:float16", "GRU:float32") == 3
        assert states() == {FORWARD: WRONG} | right
        error = capsys.readouterr().err
        assert error.startswith("python -m fastrnn prove: LSTM:float16 could not be judged: ") and PASSING[end] in error
    assert order()[0] == "aten"


@pytest.mark.parametrize("end", FAILING)
def test_launches_a_step_stay_right_where_resident_kernels_end_the_worker(monkeypatch, end):
    monkeypatch.setenv("STAND_IN", f"steps, then {end}")
    monkeypatch.setattr(prove, "SILENCE_S", 1.0)
    assert only("LSTM:float16") == 0
    assert order()[0] == "cuda"
    detail = findings()[FORWARD]["detail"]
    assert detail.startswith("without resident kernels: ") and detail.endswith(FAILING[end])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would measure for long")
def test_the_worker_leaves_a_device_that_lets_nobody_in(monkeypatch, capsys):
    monkeypatch.setattr(prove, "PROGRAM", ("-m", "fastrnn.verdict.worker"))
    assert only("LSTM:float16") == 3 and not findings()
    assert f"exit code {prove.PASSING}, " in capsys.readouterr().err


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize(
    "cause, answers, code",
    [
        (torch.OutOfMemoryError, True, prove.PASSING),
        (MemoryError, True, prove.PASSING),
        (Broken, True, 0),
        (Broken, False, prove.BROKEN),
    ],
)
def test_the_type_of_an_error_gives_the_exit_code(monkeypatch, cause, answers, code):
    said, silent = [], iter([None] + ([None] if answers else ["no answer"]) * 99)
    monkeypatch.setattr(worker, "_speech", lambda: lambda **message: said.append(message))
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)
    monkeypatch.setattr(worker, "_silence", lambda device: next(silent))
    monkeypatch.setattr(worker, "measure", lambda *_: [Measurement("error", detail="whatever it says", cause=cause)])
    task = {"mode": "GRU", "dtype": "float16", "quick": True, "tiers": [""]}
    assert worker.main(task, torch.device("cpu")) == code
    if code:
        assert "whatever it says" in said[-1]["why"]
    else:
        assert {found["state"] for found in said[-1]["findings"].values()} == {FAILED}


def test_the_worker_ends_with_its_parent(monkeypatch):
    read, ended = iter([b"x", b""]), []
    monkeypatch.setattr(worker.os, "read", lambda *_: next(read))
    monkeypatch.setattr(worker.os, "_exit", ended.append)
    worker._end_with_parent()
    assert ended == [prove.PASSING]


def rows(*ends: tuple[str, str]) -> list:
    return [
        (worker.Shape(variant, False, Case("LSTM", 1, 1, 1, 1)), Measurement(status, detail="no room", worst="off"))
        for variant, status in ends
    ]


def test_what_rows_make_of_a_kind():
    found = worker.finding_of(rows(("plain", "ok"), ("projected", "ok"), ("projected", "error"), ("extended", "ok")))
    assert found["state"] == RIGHT and found["speeds"] == {"plain": [], "extended": []}
    assert "projected" in found["detail"] and "no room" in proof.describe(found)
    assert worker.finding_of(rows(("plain", "ok"), ("plain", "error")))["state"] == FAILED
    found = worker.finding_of(rows(("plain", "error"), ("extended", "WRONG")))
    assert found["state"] == WRONG and found["detail"].endswith("off")


def speeds(small: float, large: float, packed: float, variant: str = "packed") -> dict:
    return {"plain": [(4, 1, 64, small), (64, 32, 128, large)], variant: [(64, 32, 128, packed)], "extended": []}


def test_the_faster_tier_of_every_shape_is_kept():
    """Of a shape that several variants have, the one that is faster over all of them."""
    steps = finding(speeds=speeds(0.5, 2.0, 1.0))
    assert worker.faster_of(steps) == steps
    found = worker.faster_of(steps, finding(speeds=speeds(1.5, 1.9, 1.2)))
    assert found["speeds"] == speeds(1.5, 1.9, 1.2)
    assert found["tiers"] == [(4, 1, 64, "auto"), (64, 32, 128, "auto")]
    found = worker.faster_of(steps, finding(speeds=speeds(1.5, 1.9, 1.0)))
    assert found["speeds"] == speeds(1.5, 2.0, 1.0)
    assert found["tiers"] == [(4, 1, 64, "auto"), (64, 32, 128, "step")]


@pytest.mark.parametrize("resident", [finding(WRONG, {}, "off"), finding(FAILED, {}, "off")])
def test_resident_kernels_that_are_not_right_serve_no_call(resident):
    steps = finding(speeds=speeds(0.5, 2.0, 1.0))
    lacking = finding(speeds=speeds(9, 9, 9, "layers"), detail="off")
    for found in (worker.faster_of(steps, resident), worker.faster_of(steps, lacking)):
        assert found["detail"].startswith("without resident kernels, ") and found["detail"].endswith(": off")
        assert found | {"detail": ""} == steps
    assert worker.faster_of(resident, steps) == resident


def test_what_is_tried():
    """Both tiers, unless one alone could serve, or the plan was measured on such a GPU."""
    both, one = ("step", "auto"), ("",)
    assert proof.tiers_of(GPU, "LSTM", "bfloat16") == proof.tiers_of(GPU, "SLSTM_EXP", "float32") == both
    for mode, dtype in (("LSTM", "float64"), ("IND_RNN", "float16"), ("LAYER_NORM_GRU", "float16")):
        assert proof.tiers_of(GPU, mode, dtype) == one


@pytest.mark.parametrize("name, value", [("PLANNED", GPU.capability), ("TIER", "cta")])
def test_where_one_tier_is_tried(monkeypatch, name, value):
    monkeypatch.setattr(ops, name, value)
    assert proof.tiers_of(GPU, "LSTM", "bfloat16") == ("",)


MODES = [cell.mode for cell in BY_NUMBER]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_variant_is_measured_in_every_kind(mode, quick):
    measured = list(worker.shapes_of(mode, "float32", quick))
    assert list(dict.fromkeys(kind for kind, *_ in measured)) == proof.kinds_of(mode, "float32")
    for kind in {kind for kind, *_ in measured}:
        mine = [shape for other, _, shape in measured if other == kind]
        wanted = set(proof.VARIANTS) - (set() if "LSTM" in mode or "SLSTM" in mode else {"projected"})
        wanted -= {"headed"} if mode in ("IND_RNN", "LAYER_NORM_LSTM", "LAYER_NORM_GRU") else set()
        assert {shape.variant for shape in mine} == wanted
        assert {shape.variant for shape in mine if shape.timed} == wanted - {"extended", "masked", "zoned", "headed"}
        assert len(set(mine)) == len(mine)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_shape_that_is_checked_can_be(mode):
    """Long and large ones aside, which a CPU takes its time for."""
    for _, precision, shape in worker.shapes_of(mode, "float32", False):
        if precision == "ieee" and not shape.timed and shape.case.T < 100 and shape.case.H < 1000:
            (found,) = measure(shape.case, Setting(backend="cpu", pace=worker.CHECK))
            assert found.status == "ok", (shape, found)


def test_relus_sums_stay_off_zero():
    case = Case("RNN", 3, 2, 4, 6, nonlinearity="relu")
    for weight in make_weights(case).values():
        assert (weight[::2] >= 0).all() and (weight[1::2] <= 0).all() and weight.any()
    assert all((leaf >= 0).all() for leaf in make_inputs(case, "cpu")[0].leaves)


# --- the commands ------------------------------------------------------------------------------------------------


def test_all_pairs_or_some_beside_what_is_known():
    write({"LSTM float64 forward": finding(WRONG, {})})
    assert only("GRU:float16") == 0 and pairs() == ["GRU:float16"]
    assert states()["LSTM float64 forward"] == WRONG and len(states()) == 3
    assert command.main(["prove"]) == 0
    assert pairs()[1:] == list(prove.PAIRS) and set(states().values()) == {RIGHT} and len(states()) == 10 * len(MODES)


@pytest.mark.parametrize("arguments", [["--only", "RNN:float32"], ["--only", "LSTM"], ["--device", "cpu"]])
def test_what_there_is_not(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["prove", *arguments])
    assert end.value.code == 2 and arguments[-1] in capsys.readouterr().err


def test_without_a_gpu_the_command_says_why(monkeypatch, capsys):
    for arguments in (["prove"], ["prove", "--forget"]):
        assert command.main([*arguments, "--device", "cuda:1"]) == 2
        assert capsys.readouterr().err == "python -m fastrnn prove: there is no cuda:1\n"
    monkeypatch.undo()
    if ops.missing("cuda"):
        assert proof.gpu_at(0) == ops.missing("cuda")
        monkeypatch.setattr(ops, "missing", lambda backend: None)
    assert proof.gpu_at(99).endswith("no cuda:99")


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file"))
    assert command.main(["prove"]) == 2 and not pairs()
    assert "file" in capsys.readouterr().err


def test_forgetting(capsys):
    known()
    assert order() == ORDER
    assert command.main(["prove", "--forget"]) == 0
    assert "forgotten: " in capsys.readouterr().out and order() == AFTER
    assert command.main(["prove", "--forget"]) == 0
    assert "nothing was known" in capsys.readouterr().out


def test_interrupting_keeps_what_was_found(monkeypatch):
    proven = prove.prove_pair

    def interrupted(*given):
        if pairs():
            raise KeyboardInterrupt
        return proven(*given)

    monkeypatch.setattr(prove, "prove_pair", interrupted)
    assert only("LSTM:float16", "GRU:float16") == 130
    assert order() == ORDER and len(states()) == 2


def test_info_has_a_line_for_every_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: GPU.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(ext, "why_no_cuda", lambda: None)
    monkeypatch.setattr(ext, "load", lambda: types.SimpleNamespace(cuda=None))
    monkeypatch.setattr(ext, "build", types.SimpleNamespace(cuda_archs="9.0"))
    assert ("cuda:0 proof", f"none: {proof.UNPROVEN}") in _info._cuda()
    write({FORWARD: finding(), "GRU float16 forward": finding(WRONG)})
    assert ("cuda:0 proof", "proven 2026-01-02: 1 of 2 kinds of call right") in _info._cuda()
