"""The first call of a cell in a dtype on a GPU proves the kernels for this pair there and then, as an autotuner would.

It starts ``python -m fastrnn prove --only CELL:DTYPE --quick`` and waits: whatever the kernels do to the GPU, they do
it in another process, and the script that made the call is not imported a second time. What is found goes into the
GPU's verdict (``_proof``), so that it is done once per machine. A lock beside the verdict lets one process at a time
measure; the others wait and read.

What may pass by itself (no memory, a device that lets no second process in, the lock not to be had) is not written
down: the pair stays with torch in this process, and the next one tries again. All waiting of a process together is
bounded, below the ten minutes after which NCCL gives up on a rank.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch

from . import _ops, _proof
from ._proof import FAILED, RIGHT, Finding, Gpu, Kind

try:
    import fcntl
except ImportError:  # then several processes may measure at the same time, and disturb each other
    fcntl = None

VARIABLE = "FASTRNN_PROVE"
PROGRAM = ("-m", "fastrnn")
# Seconds: for a proof; for the proofs of other processes; spent on both, after which a process begins no more.
PROOF_S, WAIT_S, ENOUGH_S = 180.0, 240.0, 120.0

_tried: dict[tuple[int, str, torch.dtype], str | None] = {}
"""The pairs looked at in this process: why one has not been proven, None if it has."""
_lock = threading.Lock()
_spent = 0.0


def is_over(index: int, mode: str, dtype: torch.dtype) -> bool:
    """Whether this process need not look at the pair again."""
    return (index, mode, dtype) in _tried


def prove(index: int, mode: str, dtype: torch.dtype) -> None:
    """Proves the pair on ``cuda:index`` if that is still to be done. Threads that come meanwhile wait."""
    key = index, mode, dtype
    if key in _tried:
        return
    if not _lock.acquire(timeout=WAIT_S):
        _tried[key] = f"another thread has been proving for {WAIT_S:g} seconds"
        return
    try:
        if key not in _tried:
            _tried[key] = _attempt(index, mode, _name(dtype))
    finally:
        _lock.release()


def outlook(index: int, mode: str, dtype: torch.dtype) -> str:
    """What the first call of the pair does about it, or why nothing, to go on with; empty where nothing is to do."""
    name = _name(dtype)
    if not _proof.is_open(index, mode, name):
        return ""
    return _promise(f"the first call of {mode} {name}", _tried.get((index, mode, dtype)) or _why_never())


def habit() -> str:
    """The same of every pair."""
    return _promise("the first call of each cell and dtype", _why_never())


def _promise(who: str, reason: str | None) -> str:
    return f"; {who} does not prove them, because {reason}" if reason else f"; {who} proves them"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _switch() -> str:
    return os.environ.get(VARIABLE) or "1"


def _why_never() -> str | None:
    """Why no call of this process proves anything."""
    if _switch() == "0":
        return f"{VARIABLE}=0"
    if _switch() != "1":
        return f"{VARIABLE}: expected 0 or 1, got {_switch()!r}"
    program = sys.executable or ""
    if getattr(sys, "frozen", False) or "python" not in os.path.basename(program) or not os.access(program, os.X_OK):
        return f"sys.executable is no Python that could be started: {sys.executable!r}"
    return None


def _attempt(index: int, mode: str, dtype: str) -> str | None:
    """Why the pair has not been proven, None if it has."""
    global _spent
    if not _proof.is_open(index, mode, dtype):
        return None
    began, reason = time.monotonic(), _why_never()
    if reason is None and _spent > ENOUGH_S:
        reason = f"this process has spent {_spent:.0f} seconds on proofs, the next one goes on"
    if reason is None:
        try:
            reason = _prove(index, _proof.gpu_at(index), mode, dtype)
        except OSError as error:
            reason = f"{type(error).__name__}: {error}"
        finally:
            _spent += time.monotonic() - began
    if reason and _switch() != "0":
        _say(f"{mode} {dtype} stays with torch's own kernels in this process: {reason}")
    return reason


def _prove(index: int, gpu: Gpu, mode: str, dtype: str) -> str | None:
    """As :func:`_attempt`, one process at a time."""
    path, began = _proof.path_of(gpu).absolute(), time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):  # OSError where nothing could be kept
        pass
    with _only_one(path.with_suffix(".lock"), gpu) as got:
        if not got:
            return f"another process has been proving for {WAIT_S:g} seconds"
        _proof.verdict_of.cache_clear()
        if not _proof.is_open(index, mode, dtype):
            return None
        _say(
            f"proving the {mode} {dtype} kernels on {gpu.name} against torch.nn, once, {PROOF_S:g} seconds at most "
            f"(kept in {path}; {VARIABLE}=0 leaves CUDA tensors to torch)"
        )
        ended = _run(_command(index, mode, dtype), _environment(path.parent))
        _proof.verdict_of.cache_clear()
        kinds = _proof.kinds_of(mode, dtype)
        if _proof.is_open(index, mode, dtype):
            if ended is not None:
                return ended
            # Written down, or every process would wait as long.
            _proof.add(gpu, {str(kind): Finding(FAILED, f"no result within {PROOF_S:g} seconds") for kind in kinds})
    _say(f"{mode} {dtype}, after {time.monotonic() - began:.0f} s: {_result(index, kinds)}")
    return None


@contextlib.contextmanager
def _only_one(path: Path, gpu: Gpu) -> Iterator[bool]:
    """Holds a lock among processes; False where it was not to be had in time."""
    with open(path, "a") as file:
        got = fcntl is None or _acquire(file, gpu)
        try:
            yield got
        finally:
            if got and fcntl is not None:  # not by closing the file, which a forked process may have open too
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)


def _acquire(file: TextIO, gpu: Gpu) -> bool:
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() - began > WAIT_S:
                return False
        except OSError:  # a file system without locks
            return True
        if not told:
            _say(f"waiting for another process, which proves kernels on {gpu.name}, {WAIT_S:g} seconds at most")
            told = True
        time.sleep(0.1)


def _command(index: int, mode: str, dtype: str) -> list[str]:
    return [sys.executable, *PROGRAM, "prove", "--device", f"cuda:{index}", "--only", f"{mode}:{dtype}", "--quick"]


def _root() -> str:
    """The folder that this package was imported from."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _environment(folder: Path) -> dict[str, str]:
    """This process's, for one that imports the same modules, proves under the same settings, and starts no other."""
    paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]
    if next((path for path in paths if os.path.isdir(os.path.join(path, "fastrnn"))), None) != _root():
        paths.insert(0, _root())
    settings = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",
        "FASTRNN_CACHE_DIR": str(folder),
        VARIABLE: "0",
        "FASTRNN_BACKEND": None,
        "FASTRNN_CUDA_TIER": _ops.TIER,  # in force since fastrnn was imported, whatever os.environ says now
        "FASTRNN_CUDA_WAVEFRONT": _ops.WAVEFRONT,
    }
    return {name: value for name, value in (os.environ | settings).items() if value is not None}


def _run(command: list[str], environment: dict[str, str]) -> str | None:
    """How the command ended, None if it had to be ended."""
    process = subprocess.Popen(
        command,
        cwd=_root(),  # before Python 3.11 the first place where modules are looked for
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # and not to nowhere: should this process be killed, the other's next word ends it too
        stderr=subprocess.PIPE,
        start_new_session=True,  # a group of its own, to be killed with all that it started
    )
    try:
        _, said = process.communicate(timeout=PROOF_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            _kill(process)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that is stuck in the driver stays
                process.wait(10)
        process.stdout.close()
        process.stderr.close()
    code = process.returncode
    end = f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
    lines = said.decode(errors="replace").strip().splitlines()
    return f"its proof {end}" + (f", {lines[-1]}" if lines else "")


def _kill(process: subprocess.Popen) -> None:
    """Ends it with all that it started, where there are process groups."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _result(index: int, kinds: list[Kind]) -> str:
    """What the verdict says of the kinds of a pair."""
    verdict = _proof.verdict_of(index)
    if isinstance(verdict, str):  # forgotten meanwhile, by another process
        return verdict
    findings = {str(kind): verdict.findings[str(kind)] for kind in kinds if str(kind) in verdict.findings}
    right = [finding for finding in findings.values() if finding.state == RIGHT]
    ratios = [speed.ratio for finding in right for speeds in finding.speeds.values() for speed in speeds]
    text = f"{len(right)} of {len(findings)} kinds of call right"
    if right:
        text += f", no slower than torch.nn at {sum(ratio >= 1 for ratio in ratios)} of {len(ratios)} shapes timed"
    other = [f"{name} {found.state}: {found.detail}" for name, found in findings.items() if found.state != RIGHT]
    return "; ".join([text, *other])


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed, or None
        sys.stderr.write(f"fastrnn: {text}\n")
        sys.stderr.flush()
