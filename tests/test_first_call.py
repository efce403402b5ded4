"""The first call of a cell in a dtype on a GPU proves the kernels: once, and whatever becomes of the proof.

There is no GPU here, and stand_in_prover.py is started in place of `python -m fastrnn`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest
import torch
from first_calls import X, another_process, children_of, first, is_running, pairs, started, switched_on  # noqa: F401
from stand_in import CALL, GPU, compiled, gpu, known, said, verdict  # noqa: F401
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode

import fastrnn
from fastrnn import _autograd, _dispatch, _first_call, _info, _ops, _proof, _stack, cells
from fastrnn._proof import FAILED, Finding

FORWARD = "LSTM float16 forward"


# --- when --------------------------------------------------------------------------------------------------------


def test_the_first_call_proves_its_pair_and_runs_on_the_kernels(monkeypatch, capfd):
    assert _dispatch.choose(CALL) == "aten" and not started()
    assert first() == "cuda" and first(grad=True) == "cuda" and first(T=1, B=1, H=256) == "aten"
    assert pairs() == ["LSTM:float16"]
    assert first(mode="GRU", dtype=torch.bfloat16) == "cuda"
    assert pairs() == ["LSTM:float16", "GRU:bfloat16"] and first() == "cuda"
    out, err = capfd.readouterr()
    before, after, *_ = err.splitlines()
    assert out == "" and len(err.splitlines()) == 4
    assert before == (
        "fastrnn: proving the LSTM float16 kernels on Stand-in 3000 against torch.nn, once, 180 seconds at most "
        f"(kept in {_proof.path_of(GPU)}; FASTRNN_PROVE=0 leaves CUDA tensors to torch)"
    )
    assert after.startswith("fastrnn: LSTM float16, after ")
    assert after.endswith(" s: 2 of 2 kinds of call right, no slower than torch.nn at 2 of 4 shapes timed")
    another_process(monkeypatch)
    assert first() == "cuda" and len(started()) == 2


def test_a_pair_that_is_settled_costs_one_look(monkeypatch):
    known(speeds={"plain": [_proof.Speed(64, 32, 128, 0.5)]})
    assert first() == "aten"
    monkeypatch.setattr(_first_call, "prove", None)
    monkeypatch.setattr(_proof, "is_open", None)
    assert first() == first(grad=True) == "aten" and not started()
    monkeypatch.setattr(_first_call, "is_over", None)
    known()
    assert first() == "cuda"


@pytest.mark.parametrize("what", ["left out", "outdated", "damaged"])
def test_a_verdict_that_does_not_count_for_the_call_is_no_proof(what):
    if what == "left out":
        _proof.save(verdict({"GRU float16 forward": Finding(FAILED)}))
    elif what == "outdated":
        _proof.save(verdict({FORWARD: Finding(FAILED)}, torch="1.0"))
    else:
        _proof.path_of(GPU).parent.mkdir()
        _proof.path_of(GPU).write_text("{}")
    assert first() == "cuda" and pairs() == ["LSTM:float16"]


@pytest.mark.parametrize("state", ["wrong", "failed"])
def test_what_is_known_to_be_bad_is_not_tried_again(state):
    known(state)
    assert first() == "aten" and not started()


def test_explaining_proves_nothing_and_says_what_the_call_will_do(monkeypatch):
    assert said().endswith("fastrnn.backend('cuda'); the first call of LSTM float16 proves them")
    monkeypatch.setattr(_stack, "describe", lambda *args, **named: CALL)
    fastrnn.explain(fastrnn.LSTM(4, 5), torch.zeros(3, 2, 4))
    assert _first_call.habit() == "; the first call of each cell and dtype proves them"
    _info.report()
    assert not started()
    first()
    assert "first call" not in said(T=1, B=1, H=256) and "the first call of GRU float16 proves" in said(mode="GRU")


@pytest.mark.parametrize("value, why", [("0", "FASTRNN_PROVE=0"), ("no", "FASTRNN_PROVE: expected 0 or 1, got 'no'")])
def test_switched_off(monkeypatch, capfd, value, why):
    monkeypatch.setenv("FASTRNN_PROVE", value)
    assert first() == "aten" and not started()
    assert said().endswith(f"; the first call of LSTM float16 does not prove them, because {why}")
    assert (why in capfd.readouterr().err) == (value != "0")
    assert not _proof.path_of(GPU).parent.exists()


def test_forced_backends_prove_nothing(monkeypatch):
    for name in ("cuda", "aten", "reference"):
        with fastrnn.backend(name):
            assert first() == name
            _dispatch._prove_for_graph(0, "LSTM", torch.float16)
        monkeypatch.setattr(_dispatch, "_environment", name)
        assert first() == name and _dispatch._choose_for_graph(CALL)
        monkeypatch.setattr(_dispatch, "_environment", None)
    assert not started()


def test_calls_that_the_kernels_cannot_serve_prove_nothing(monkeypatch):
    for changes in ({"B": 0}, {"dtype": torch.complex64}, {"transformed": True}, {"index": 1}, {"device": "meta"}):
        first(**changes)
    for changes in ({"dtype": torch.complex64}, {"transformed": True}, {"device": "cpu"}):
        _dispatch._choose_for_graph(CALL._replace(**changes))
    mode = FakeTensorMode()
    with mode:
        assert first() == "aten"
        fake = torch.zeros(1)
    assert _dispatch.choose(CALL, fake) == "aten"
    monkeypatch.setattr(_proof, "gpu_at", lambda index: "no kernels")
    _proof.verdict_of.cache_clear()
    assert first() == "aten"
    assert not started()


@pytest.mark.parametrize("name, sizes", [("GRU", (64, 32, 4)), ("GRUCell", (2, 4))])
def test_modules_prove_when_they_are_called(monkeypatch, name, sizes):
    """On tensors that pass for CUDA ones."""
    describe, ran = _stack.describe, []
    for module in (_stack, cells):
        monkeypatch.setattr(module, "describe", lambda *args, **named: describe(*args, **named)._replace(device="cuda"))
    reference = _ops.layer_ops("reference")
    monkeypatch.setattr(_autograd, "layer_ops", lambda backend: ran.append(backend) or reference)
    module, x = getattr(fastrnn, name)(4, 5).bfloat16(), torch.zeros(sizes, dtype=torch.bfloat16)
    with torch.no_grad():
        module(x), module(x)
    assert pairs() == ["GRU:bfloat16"] and ran == (["cuda", "cuda"] if name == "GRU" else [])


@compiled
def test_calls_on_the_cpu_ask_nothing(monkeypatch):
    for name in ("is_over", "prove", "outlook"):
        monkeypatch.setattr(_first_call, name, None)
    fastrnn.LSTM(4, 5)(torch.randn(3, 2, 4))
    fastrnn.GRUCell(4, 5)(torch.randn(2, 4))


def test_a_graph_that_is_traced_proves_first():
    def run(x):
        return x + (1 if _dispatch.choose(CALL._replace(T=x.size(0), B=x.size(1)), x) == "cuda" else 0)

    torch._dynamo.reset()
    counter = CompileCounter()
    graph = torch.compile(run, backend=counter, fullgraph=True, dynamic=True)
    graph(torch.zeros(3, 4)), graph(torch.zeros(7, 5))
    assert pairs() == ["LSTM:float16"] and (counter.frame_count, counter.op_count) == (1, 1)
    torch._dynamo.reset()


# --- whatever becomes of it --------------------------------------------------------------------------------------


def nothing_kept() -> bool:
    return isinstance(_proof.read(GPU), str)


PASSING = {
    "crash": "its proof was ended by signal 11",
    "2": "its proof ended with exit status 2, the reason",
    "3": "its proof ended with exit status 3, the reason",
    "0": "its proof ended with exit status 0, the reason",
    "rubbish": "its proof ended with exit status 0, ",
}


@pytest.mark.parametrize("what", PASSING)
def test_a_proof_that_finds_nothing_leaves_the_pair_to_torch(monkeypatch, capfd, what):
    """In this process; the next one tries again."""
    monkeypatch.setenv("STAND_IN", what)
    assert first() == first() == first(grad=True) == "aten" and len(started()) == 1
    assert f"does not prove them, because {PASSING[what]}" in said()
    assert f"stays with torch's own kernels in this process: {PASSING[what]}" in capfd.readouterr().err
    assert nothing_kept()
    monkeypatch.setenv("STAND_IN", "right")
    if what == "rubbish":
        _proof.path_of(GPU).unlink()
    another_process(monkeypatch)
    assert first() == "cuda" and len(started()) == 2


def test_a_hang_is_ended_and_costs_the_machine_once(monkeypatch):
    known("right")
    monkeypatch.setenv("STAND_IN", "hang")
    monkeypatch.setattr(_first_call, "PROOF_S", 1.0)
    began, seen = time.monotonic(), []
    poll = threading.Timer(0.6, lambda: seen.extend(children_of(started()[0]["pid"])))
    poll.start()
    assert first(mode="GRU") == "aten" and time.monotonic() - began < 10
    assert seen and not any(map(is_running, [*seen, started()[0]["pid"]]))
    assert "failed on this GPU with GRU float16 forward: no result within 1 seconds" in said(mode="GRU")
    another_process(monkeypatch)
    assert first(mode="GRU") == first(mode="GRU", grad=True) == "aten" and len(started()) == 1
    assert first() == "cuda"


def test_a_hang_where_there_are_no_process_groups(monkeypatch):
    monkeypatch.delattr(os, "killpg")
    monkeypatch.setenv("STAND_IN", "slowly nothing")
    monkeypatch.setattr(_first_call, "PROOF_S", 0.3)
    assert first() == "aten" and "no result within 0.3 seconds" in said()
    assert not is_running(started()[0]["pid"])


def test_a_verdict_that_is_forgotten_meanwhile_fails_no_call(monkeypatch, capfd):
    add = _proof.add
    monkeypatch.setattr(_proof, "add", lambda *given: (add(*given), _proof.forget(GPU)))
    monkeypatch.setenv("STAND_IN", "slowly nothing")
    monkeypatch.setattr(_first_call, "PROOF_S", 0.3)
    assert first() == "aten"
    assert _proof.UNPROVEN in capfd.readouterr().err


def test_a_hang_after_all_was_found_changes_nothing(monkeypatch):
    monkeypatch.setenv("STAND_IN", "right, then a hang")
    monkeypatch.setattr(_first_call, "PROOF_S", 1.0)
    assert first() == "cuda"


@pytest.mark.parametrize("executable", ["", None, "/no/such/python", "/bin/sh", "frozen"])
def test_without_a_python_to_start(monkeypatch, executable):
    if executable == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", executable)
    assert "because sys.executable is no Python that could be started" in said()
    assert first() == "aten" and not started()


def test_a_folder_that_cannot_be_written_is_known_before_anything_starts(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert first() == "aten" and not started() and "because NotADirectoryError" in said()
    another_process(monkeypatch)
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))

    def full(**_):
        raise OSError("read-only")

    monkeypatch.setattr(_first_call.tempfile, "TemporaryFile", full)
    assert first() == "aten" and not started() and "because OSError: read-only" in said()


def test_a_process_does_not_spend_itself_on_proofs(monkeypatch):
    monkeypatch.setattr(_first_call, "_spent", 121.0)
    assert first() == "aten" and not started() and "because this process has spent 121 seconds on proofs" in said()
    monkeypatch.setattr(_first_call, "_spent", 119.0)
    assert first(mode="GRU") == "cuda" and _first_call._spent > 119


def test_ctrl_c_ends_the_proof(monkeypatch):
    monkeypatch.setenv("STAND_IN", "hang")
    before = known()

    def interrupt():
        while not (started() and children_of(started()[0]["pid"])):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # the suite may run in the background
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            first(mode="GRU")
    finally:
        signal.signal(signal.SIGINT, handler)
    thread.join()
    assert not is_running(started()[0]["pid"])
    assert _proof.read(GPU).findings == before.findings
    monkeypatch.setenv("STAND_IN", "right")
    assert first(mode="GRU") == "cuda"  # neither lock is held


def test_without_a_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert first() == "cuda"
