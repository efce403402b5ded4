"""A proof, from measuring to choosing, whatever becomes of the process that measures; `python -m fastrnn prove`.

There is no GPU here: stand_in_worker.py measures, or what is measured is measured on the CPU kernels.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import torch
from stand_in import (  # noqa: F401
    AFTER,
    CALL,
    FORWARD,
    GPU,
    ORDER,
    finding,
    gpu,
    is_running,
    known,
    order,
    pairs,
    ship,
    started,
    write,
)
from support import compiled

import fastrnn
from fastrnn import __main__ as command
from fastrnn import _info
from fastrnn._backends import dispatch
from fastrnn._kernels import ext, ops
from fastrnn.registry import BY_NUMBER
from fastrnn.verdict import kept, proof, prove
from fastrnn.verdict.proof import FAILED, RIGHT, WRONG


def only(*pairs: str) -> int:
    return command.main(["prove", "--quick", "--only", *pairs])


def findings() -> dict:
    return (proof.read(GPU) or {"findings": {}})["findings"]


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


def test_a_hang_after_all_was_found_changes_nothing(monkeypatch):
    monkeypatch.setenv("STAND_IN", "right, then a hang")
    assert only("LSTM:float16") == 0 and order() == ORDER and not is_running(started()[0]["pid"])


def test_what_the_worker_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTRNN_BACKEND", "reference")
    monkeypatch.setenv("FASTRNN_CUDA_TIER", "grid")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", "cache")
    monkeypatch.setattr(ops, "TIER", "auto")
    monkeypatch.setattr(proof, "gpu_at", lambda index: GPU)
    (tmp_path / "decoy" / "fastrnn").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "decoy")
    monkeypatch.chdir(tmp_path)
    assert only("LSTM:float16", "--device", "cuda:1") == 0
    (start,) = started()
    assert start["task"] == {"index": 1, "mode": "LSTM", "dtype": "float16", "quick": True, "tiers": [""]}
    assert start["environ"].items() >= {"CUDA_VISIBLE_DEVICES": "3,2", "FASTRNN_CUDA_TIER": "auto"}.items()
    assert "FASTRNN_BACKEND" not in start["environ"]
    found = next(path for path in start["path"] if Path(path, "fastrnn").is_dir())
    assert Path(found, "fastrnn") == Path(fastrnn.__file__).parent
    assert set(map(os.path.abspath, sys.path)) <= set(start["path"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would measure for long")
def test_the_worker_leaves_a_device_that_lets_nobody_in(monkeypatch, capsys):
    monkeypatch.setattr(prove, "PROGRAM", ("-m", "fastrnn.verdict.worker"))
    assert only("LSTM:float16") == 3 and not findings()
    assert f"exit code {prove.PASSING}, " in capsys.readouterr().err


def test_a_process_that_is_killed_takes_its_worker_along(monkeypatch):
    monkeypatch.setenv("STAND_IN", "waits")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(fastrnn.__file__).parents[1]), str(Path(__file__).parent)])
    )
    program = "import stand_in; stand_in.pretend(); stand_in.prove.main(['--only', 'LSTM:float16'])"
    killed = subprocess.Popen([sys.executable, "-c", program])
    assert wait_for(started)
    killed.kill(), killed.wait()
    assert wait_for(lambda: not is_running(started()[0]["pid"]))


def wait_for(condition, seconds=30) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


# --- the commands ------------------------------------------------------------------------------------------------


def test_all_pairs_or_some_beside_what_is_known():
    """And without what the table says."""
    ship({"RNN_TANH float16 forward": finding()})
    write({"LSTM float64 forward": finding(WRONG, {})})
    assert only("GRU:float16") == 0 and pairs() == ["GRU:float16"]
    assert states()["LSTM float64 forward"] == WRONG and len(states()) == 3
    assert command.main(["prove"]) == 0
    assert (
        pairs()[1:] == list(prove.PAIRS) and set(states().values()) == {RIGHT} and len(states()) == 10 * len(BY_NUMBER)
    )


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
        monkeypatch.setattr(ops, "missing", lambda *_: None)
    assert proof.gpu_at(99).endswith("no cuda:99")


@pytest.mark.parametrize("current", [0, 1])
def test_each_gpu_is_judged_by_its_own_capability(monkeypatch, current):
    """Of two, the extension was built for the second; which one is current does not matter."""
    monkeypatch.undo()
    capabilities = (7, 0), (9, 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda index=None: capabilities[current if index is None else index]
    )
    monkeypatch.setattr(ext, "load", lambda: types.SimpleNamespace(cuda=None))
    monkeypatch.setattr(ext, "build", types.SimpleNamespace(cuda_archs="9.0"))
    unfit = "its kernels were compiled for 9.0, this GPU has compute capability 7.0"
    assert any(unfit in reason for reason in dispatch.why_not("cuda", CALL))
    assert dispatch.why_not("cuda", CALL._replace(index=1)) == []
    assert unfit in proof.gpu_at(0) and proof.gpu_at(1) == proof.Gpu("GPU 1", "9.0")
    assert (ops.missing("cuda") is None) == (current == 1)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file"))
    assert command.main(["prove"]) == 2 and not pairs()
    assert "file" in capsys.readouterr().err

    def refuse(**_):
        raise OSError("read-only")

    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kept.tempfile, "TemporaryFile", refuse)
    assert command.main(["prove"]) == 2 and not pairs()
    assert "read-only" in capsys.readouterr().err


def test_a_second_command_waits_for_the_first(capfd):
    kept.prepare()
    with prove._only_one(proof.path_of(GPU).with_suffix(".lock")):
        second = threading.Thread(target=only, args=("LSTM:float16",))
        second.start()
        heard = []
        assert wait_for(lambda: heard.append(capfd.readouterr().err) or "waiting for another process" in "".join(heard))
        assert not started()
    second.join()
    assert order() == ORDER


def test_a_file_system_without_locks(monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert only("LSTM:float16") == 0 and order() == ORDER


def test_forgetting(capsys):
    known()
    ship({"GRU float16 forward": finding()})
    assert order() == ORDER
    assert command.main(["prove", "--forget"]) == 0
    assert "forgotten: " in capsys.readouterr().out and order() == AFTER and order(mode="GRU") == ORDER
    assert command.main(["prove", "--forget"]) == 0
    assert "nothing was kept of Stand-in 3000" in capsys.readouterr().out


def test_interrupting_keeps_what_was_found(monkeypatch):
    proven = prove.prove_pair

    def interrupted(*given):
        if pairs():
            raise KeyboardInterrupt
        return proven(*given)

    monkeypatch.setattr(prove, "prove_pair", interrupted)
    assert only("LSTM:float16", "GRU:float16") == 130
    assert order() == ORDER and len(states()) == 2


def test_interrupting_ends_the_worker(monkeypatch):
    class Interrupted(queue.SimpleQueue):
        def get(self, **named):
            super().get(**named)
            raise KeyboardInterrupt

    monkeypatch.setattr(queue, "SimpleQueue", Interrupted)
    monkeypatch.setenv("STAND_IN", "hang")
    assert only("GRU:float16") == 130 and not findings() and not is_running(started()[0]["pid"])


def test_info_has_a_line_for_every_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: GPU.name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(ext, "why_no_cuda", lambda: None)
    monkeypatch.setattr(ext, "load", lambda: types.SimpleNamespace(cuda=None))
    monkeypatch.setattr(ext, "build", types.SimpleNamespace(cuda_archs="9.0"))
    assert ("cuda:0 proof", f"none: {proof.unproven(GPU)}") in _info._cuda()
    write({FORWARD: finding(), "GRU float16 forward": finding(WRONG)})
    assert ("cuda:0 proof", "proven on this GPU, 2026-01-02: 1 of 2 kinds of call right") in _info._cuda()
