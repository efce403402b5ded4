"""First calls of several threads and processes, and what the process that measures is told.

There is no GPU here, and stand_in_worker.py measures.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from stand_in import GPU, another_process, first, gpu, is_running, pairs, said, started  # noqa: F401
from support import compiled

import fastrnn
from fastrnn._kernels import ops
from fastrnn.verdict import first_call, proof, prove


@pytest.mark.parametrize("what, wanted", [("slowly", "cuda"), ("slowly nothing", "aten")])
def test_threads_wait_for_the_one_that_proves(monkeypatch, what, wanted):
    monkeypatch.setenv("STAND_IN", what)
    chosen = []
    threads = [threading.Thread(target=lambda: chosen.append(first())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chosen == [wanted] * 4 and len(started()) == 1


def test_a_thread_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(first_call, "WAIT_S", 0.1)
    with first_call._lock:
        assert first(mode="GRU") == "aten"
    assert "another thread has been proving" in said(mode="GRU")


USER = """\
import os, sys
sys.path.insert(0, os.environ["TESTS"])
with open("imported", "a") as file:
    file.write("once\\n")
import stand_in
stand_in.pretend()
print(stand_in.first(), flush=True)
"""


def user(tmp_path, program: str = USER) -> subprocess.Popen:
    (tmp_path / "user.py").write_text(program)
    root = Path(fastrnn.__file__).parents[1]
    settings = {"TESTS": str(Path(__file__).parent), "PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, "user.py"],
        cwd=tmp_path,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=30) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_a_process_that_is_killed_takes_its_proof_along(monkeypatch, tmp_path):
    monkeypatch.setenv("STAND_IN", "waits")
    killed = user(tmp_path)
    assert wait_for(started), killed.communicate(timeout=10)
    killed.kill()
    killed.communicate()
    assert wait_for(lambda: not is_running(started()[0]["pid"]))


def test_one_process_measures_and_the_others_read(monkeypatch, tmp_path):
    monkeypatch.setenv("STAND_IN", "slowly")
    lock = proof.path_of(GPU).with_suffix(".lock")
    with prove._only_one(lock, print):
        users = [user(tmp_path), user(tmp_path)]
        lines = [process.stderr.readline() for process in users]
        assert all("waiting for another process that proves kernels" in line for line in lines), lines
        assert not started()
    ends = [process.communicate(timeout=60) for process in users]
    assert [out for out, _ in ends] == ["cuda\n"] * 2 and len(started()) == 1
    assert sorted(err.count("proving") for _, err in ends) == [0, 1]


def test_the_lock_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(prove, "WAIT_S", 0.3)
    began = time.monotonic()
    with prove._only_one(proof.path_of(GPU).with_suffix(".lock"), print):
        assert first() == "aten" and time.monotonic() - began < 3
        assert "another process has been proving for 0.3 seconds" in said()
    another_process(monkeypatch)
    assert first() == "cuda"


def test_where_there_are_no_locks(monkeypatch):
    monkeypatch.setattr(prove, "fcntl", None)
    assert first() == "cuda"


def test_a_file_system_without_locks(monkeypatch):
    def refuse(*_):
        raise OSError("not supported")

    monkeypatch.setattr(prove.fcntl, "flock", refuse)
    assert first() == "cuda"


def _worker(queue):
    assert multiprocessing.current_process().daemon
    queue.put(first())


def test_a_daemonic_worker_proves_too():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_worker, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=60) == "cuda" and len(started()) == 1
    process.join()


def test_what_the_other_process_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTRNN_BACKEND", "reference")
    monkeypatch.setenv("FASTRNN_CUDA_TIER", "grid")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", "cache")
    monkeypatch.setattr(ops, "TIER", "auto")
    monkeypatch.setattr(proof, "gpu_at", lambda index: GPU)
    (tmp_path / "decoy" / "fastrnn").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "decoy")
    monkeypatch.chdir(tmp_path)
    assert first(index=1) == "cuda"
    (start,) = started()
    assert start["task"] == {"index": 1, "mode": "LSTM", "dtype": "float16", "quick": True, "tiers": [""]}
    wanted = {"CUDA_VISIBLE_DEVICES": "3,2", "FASTRNN_PROVE": "0", "FASTRNN_CUDA_TIER": "auto"}
    assert start["environ"].items() >= wanted.items()
    assert "FASTRNN_BACKEND" not in start["environ"]
    found = next(path for path in start["path"] if Path(path, "fastrnn").is_dir())
    assert Path(found, "fastrnn") == Path(fastrnn.__file__).parent
    assert set(map(os.path.abspath, sys.path)) <= set(start["path"])


LAYER = (
    USER
    + """\
import torch
from fastrnn._backends import autograd
from fastrnn._call import stack
described, ops = stack.describe, autograd.layer_ops
stack.describe = lambda *args, **named: described(*args, **named)._replace(device="cuda", index=0)
ran = []
autograd.layer_ops = lambda backend: ran.append(backend) or ops("cpu")
import fastrnn
with torch.no_grad():
    layer, x = fastrnn.GRU(8, 8).bfloat16(), torch.zeros(2, 2, 8).bfloat16()
    layer(x), layer(x)
    print(ran)
"""
)


@compiled
@pytest.mark.slow
def test_a_users_script_from_its_first_call_on(monkeypatch, tmp_path):
    """A script without a guard against being imported; what is measured is measured. Then the same script again."""
    monkeypatch.setenv("STAND_IN", "real")
    outputs = []
    for run in (1, 2):
        out, err = user(tmp_path, LAYER).communicate(timeout=300)
        outputs.append(out)
        assert (tmp_path / "imported").read_text() == "once\n" * run
        assert err.count(": right, ") == (4 if run == 1 else 0), err
    assert pairs() == ["LSTM:float16", "GRU:bfloat16"]
    found = proof.read(GPU)["findings"]
    assert set(found) == {
        f"{pair} {kind}" for pair in ("LSTM float16", "GRU bfloat16") for kind in ("forward", "training")
    }
    ((*_, ratio),) = found["GRU bfloat16 forward"]["speeds"]["plain"]
    ran = "['cuda', 'cuda']" if ratio >= 1 else "[]"
    assert [out.splitlines()[1:] for out in outputs] == [[ran]] * 2
