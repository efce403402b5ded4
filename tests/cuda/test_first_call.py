"""The first call of a cell in a dtype on a GPU proves the kernels: once, and whatever becomes of the proof.

There is no GPU here, and stand_in_worker.py measures.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest
import torch
from stand_in import (  # noqa: F401
    CALL,
    FORWARD,
    GPU,
    PLAIN,
    another_process,
    finding,
    first,
    gpu,
    is_running,
    known,
    pairs,
    said,
    started,
    write,
)
from support import compiled
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode

import fastrnn
from fastrnn import _info, cells
from fastrnn._backends import autograd, dispatch
from fastrnn._call import stack
from fastrnn._kernels import ops
from fastrnn.registry import CELLS, USER_CELLS
from fastrnn.verdict import first_call, proof, prove
from fastrnn.verdict.proof import FAILED


def test_the_first_call_proves_its_pair_and_runs_on_the_kernels(monkeypatch, capfd):
    assert dispatch.choose(CALL) == "aten" and not started()
    assert first() == "cuda" and first(grad=True) == "cuda" and first(T=1, B=1, H=256) == "aten"
    assert pairs() == ["LSTM:float16"]
    assert first(mode="GRU", dtype=torch.bfloat16) == "cuda"
    assert pairs() == ["LSTM:float16", "GRU:bfloat16"] and first() == "cuda"
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[:3] == [
        "fastrnn: proving the LSTM float16 kernels on Stand-in 3000 against PyTorch, once "
        f"(kept in {proof.path_of(GPU)}; FASTRNN_PROVE=0 leaves CUDA tensors to PyTorch)",
        "fastrnn: LSTM float16 forward: right, no slower than PyTorch at 1 of 2 shapes timed",
        "fastrnn: LSTM float16 training: right, no slower than PyTorch at 1 of 2 shapes timed",
    ]
    another_process(monkeypatch)
    assert first() == "cuda" and len(started()) == 2


def test_what_torch_does_not_have_is_proven_too_but_for_cells_of_users(monkeypatch):
    own = {"mode": "PEEPHOLE_LSTM", "extended": True}
    assert first(**own, T=1) == first(**own) == "cuda" and pairs() == ["PEEPHOLE_LSTM:float16"]
    asked = {"masked": True}, {"zoned": True}, {"directions": 4}
    for more, variant in zip(asked, ("masked", "zoned", "headed"), strict=True):
        known(speeds=PLAIN | {"directions": []})
        assert first(**more, extended=True) == "reference"
        assert f"{variant}, could not run or was not timed" in said(**more, extended=True)
        known(speeds=PLAIN | {variant: [], "directions": []})
        assert first(**more, extended=True) == "cuda"
    monkeypatch.setitem(USER_CELLS, "MINE", CELLS["LSTM"])
    assert first(mode="MINE", extended=True) == "reference" and len(started()) == 1
    assert "no proof covers MINE, a cell of yours: opt in" in said(mode="MINE", extended=True)


def test_a_pair_that_is_settled_costs_one_look(monkeypatch):
    known(speeds={"plain": [[64, 32, 128, 0.5]]})
    assert first() == "aten"
    monkeypatch.setattr(first_call, "prove", None)
    monkeypatch.setattr(proof, "is_open", None)
    assert first() == first(grad=True) == "aten" and not started()
    monkeypatch.setattr(first_call, "is_over", None)
    known()
    assert first() == "cuda"


@pytest.mark.parametrize("what", ["left out", "outdated", "damaged"])
def test_a_verdict_that_does_not_count_for_the_call_is_no_proof(what):
    write({"GRU float16 forward" if what == "left out" else FORWARD: finding(FAILED)}, torch="1.0")
    if what == "left out":
        write({"GRU float16 forward": finding(FAILED)})
    elif what == "damaged":
        proof.path_of(GPU).write_text("{}")
    assert first() == "cuda" and pairs() == ["LSTM:float16"]


@pytest.mark.parametrize("state", ["wrong", "failed"])
def test_what_is_known_to_be_bad_is_not_tried_again(state):
    known(state)
    assert first() == "aten" and not started()


def test_explaining_proves_nothing(monkeypatch):
    assert said() == proof.UNPROVEN
    monkeypatch.setattr(stack, "describe", lambda *args, **named: CALL)
    fastrnn.explain(fastrnn.LSTM(4, 5), torch.zeros(3, 2, 4))
    _info.report()
    assert not started()


@pytest.mark.parametrize("value, why", [("0", "FASTRNN_PROVE=0"), ("no", "FASTRNN_PROVE=no, expected 0 or 1")])
def test_switched_off(monkeypatch, capfd, value, why):
    monkeypatch.setenv("FASTRNN_PROVE", value)
    assert first() == "aten" and not started()
    assert said() == f"{proof.UNPROVEN}; not proven by a first call: {why}"
    assert (why in capfd.readouterr().err) == (value != "0")
    assert not proof.path_of(GPU).parent.exists()


def test_forced_backends_prove_nothing(monkeypatch):
    for name in ("cuda", "aten", "reference"):
        with fastrnn.backend(name):
            assert first() == name
            dispatch._prove_for_graph(0, "LSTM", torch.float16)
        monkeypatch.setattr(dispatch, "_environment", name)
        assert first() == name and dispatch._choose_for_graph(CALL)
        monkeypatch.setattr(dispatch, "_environment", None)
    assert not started()


def test_calls_that_the_kernels_cannot_serve_prove_nothing(monkeypatch):
    for changes in ({"B": 0}, {"dtype": torch.complex64}, {"transformed": True}, {"index": 1}, {"device": "meta"}):
        first(**changes)
    for changes in ({"dtype": torch.complex64}, {"transformed": True}, {"device": "cpu"}):
        dispatch._choose_for_graph(CALL._replace(**changes))
    mode = FakeTensorMode()
    with mode:
        assert first() == "aten"
        fake = torch.zeros(1)
    assert dispatch.choose(CALL, fake) == "aten"
    monkeypatch.setattr(proof, "gpu_at", lambda index: "no kernels")
    proof.reread()
    assert first() == "aten"
    assert not started()


@pytest.mark.parametrize("name, sizes", [("GRU", (64, 32, 4)), ("GRUCell", (2, 4))])
def test_modules_prove_when_they_are_called(monkeypatch, name, sizes):
    """On tensors that pass for CUDA ones."""
    describe, ran = stack.describe, []
    for module in (stack, cells):
        monkeypatch.setattr(module, "describe", lambda *args, **named: describe(*args, **named)._replace(device="cuda"))
    reference = ops.layer_ops("reference")
    monkeypatch.setattr(autograd, "layer_ops", lambda backend: ran.append(backend) or reference)
    module, x = getattr(fastrnn, name)(4, 5).bfloat16(), torch.zeros(sizes, dtype=torch.bfloat16)
    with torch.no_grad():
        module(x), module(x)
    assert pairs() == ["GRU:bfloat16"] and ran == (["cuda", "cuda"] if name == "GRU" else [])


@compiled
def test_calls_on_the_cpu_ask_nothing(monkeypatch):
    for name in ("is_over", "prove", "outlook"):
        monkeypatch.setattr(first_call, name, None)
    fastrnn.LSTM(4, 5)(torch.randn(3, 2, 4))
    fastrnn.GRUCell(4, 5)(torch.randn(2, 4))


def test_a_graph_that_is_traced_proves_first():
    def run(x):
        return x + (1 if dispatch.choose(CALL._replace(T=x.size(0), B=x.size(1)), x) == "cuda" else 0)

    torch._dynamo.reset()
    counter = CompileCounter()
    graph = torch.compile(run, backend=counter, fullgraph=True, dynamic=True)
    graph(torch.zeros(3, 4)), graph(torch.zeros(7, 5))
    assert pairs() == ["LSTM:float16"] and (counter.frame_count, counter.op_count) == (1, 1)
    torch._dynamo.reset()


# --- whatever becomes of it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["SIGKILL", str(prove.PASSING), "unready 1"])
def test_a_proof_that_learns_nothing_leaves_the_pair_to_torch(monkeypatch, capfd, what):
    """In this process; the next one tries again."""
    monkeypatch.setenv("STAND_IN", what)
    assert first() == first() == first(grad=True) == "aten" and len(started()) == 1
    assert "; not proven by a first call: the process that measures ended with exit code " in said()
    assert "stays with PyTorch in this process: the process that measures " in capfd.readouterr().err
    assert isinstance(proof.read(GPU), str)
    monkeypatch.setenv("STAND_IN", "right")
    another_process(monkeypatch)
    assert first() == "cuda" and len(started()) == 2


@pytest.mark.parametrize("limited", [(first_call, "PROOF_S"), (prove, "SILENCE_S")])
def test_a_hang_is_ended_and_costs_the_machine_once(monkeypatch, limited):
    known()
    monkeypatch.setenv("STAND_IN", "hang")
    monkeypatch.setattr(*limited, 1.0)
    began = time.monotonic()
    assert first(mode="GRU") == "aten" and time.monotonic() - began < 10
    assert not is_running(started()[0]["pid"]) and "failed: the process that measures did not answer" in said(
        mode="GRU"
    )
    another_process(monkeypatch)
    assert first(mode="GRU") == first(mode="GRU", grad=True) == "aten" and len(started()) == 1
    assert first() == "cuda"


def test_a_crash_costs_the_machine_once(monkeypatch):
    monkeypatch.setenv("STAND_IN", "SIGSEGV")
    assert first() == "aten" and "failed: the process that measures ended with exit code -11" in said()
    another_process(monkeypatch)
    assert first() == first(grad=True) == "aten" and len(started()) == 1


def test_a_hang_after_all_was_found_changes_nothing(monkeypatch):
    monkeypatch.setenv("STAND_IN", "right, then a hang")
    assert first() == "cuda" and not is_running(started()[0]["pid"])


@pytest.mark.parametrize("executable", ["", None, "/no/such/python", "/bin/sh", "frozen"])
def test_without_a_python_to_start(monkeypatch, executable):
    if executable == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", executable)
    assert "sys.executable is no Python that could be started" in said()
    assert first() == "aten" and not started()


def test_a_folder_that_cannot_be_written_is_known_before_anything_starts(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert first() == "aten" and not started() and "Not a directory" in said()
    another_process(monkeypatch)
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))

    def full(*_):
        raise OSError("read-only")

    monkeypatch.setattr(os, "fsync", full)
    assert first() == "aten" and not started() and "read-only" in said()


def test_a_process_does_not_spend_itself_on_proofs(monkeypatch):
    monkeypatch.setattr(first_call, "_spent", 121.0)
    assert first() == "aten" and not started() and "121 seconds were spent on proofs" in said()
    monkeypatch.setattr(first_call, "_spent", 119.0)
    assert first(mode="GRU") == "cuda" and first_call._spent > 119


def test_ctrl_c_ends_the_proof(monkeypatch):
    monkeypatch.setenv("STAND_IN", "hang")
    known()
    before = proof.read(GPU)["findings"]

    def interrupt():
        until = time.monotonic() + 20
        while not started() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
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
    assert proof.read(GPU)["findings"] == before
    monkeypatch.setenv("STAND_IN", "right")
    assert first(mode="GRU") == "cuda"  # neither lock is held


def test_without_a_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert first() == "cuda"
