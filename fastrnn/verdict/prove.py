"""The proof of a cell in a dtype: another process measures (``worker``), this one watches it and keeps what it finds.

The worker says JSON objects, one a line: ``{"at": text}`` before each shape, once the device answers; ``{"why": text}``
where it gives up; ``{"findings": {...}}`` after each setting of the kernels, of all so far. Its exit code says how it
gave up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .._kernels import ops
from ..registry import CELLS, OWN_CELLS
from . import kept, proof
from .proof import COMMAND, FAILED, RIGHT, Gpu

PROGRAM = ("-m", "fastrnn.verdict.worker")
BROKEN, PASSING = 70, 75
"""Exit codes of the worker: the kernels broke the device for it; memory or the device was not to be had."""
_OUTSIDE = (PASSING, -signal.SIGINT, -signal.SIGTERM, -9)  # say nothing of the kernels; 9 is SIGKILL
SILENCE_S = 90.0
"""Seconds after which a worker that says nothing is ended."""
QUICK_S, FULL_S = 0.02, 0.05
"""Seconds for each time taken."""
_DTYPES = ("float32", "bfloat16", "float16", "float64")
# What most users run comes first: a run that is cut short keeps what it has found. Torch's cells before ours.
PAIRS = tuple(f"{cell.mode}:{dtype}" for cells in (CELLS, OWN_CELLS) for dtype in _DTYPES for cell in cells.values())


class Unjudged(Exception):
    """Nothing was learned of the kernels, for a reason that may pass."""


def prove_pair(index: int, gpu: Gpu, mode: str, dtype: str, quick: bool) -> bool:
    """Keeps the findings on a pair, and prints them; whether all is right.

    Raises:
        Unjudged: there are none.
        OSError: they cannot be kept.
    """
    print(
        f"proving the {mode} {dtype} kernels on {gpu.name} against PyTorch (kept in {proof.path_of(gpu)})", flush=True
    )
    tiers = proof.tiers_of(gpu, mode, dtype)
    found = _measure({"index": index, "mode": mode, "dtype": dtype, "quick": quick, "tiers": tiers})
    if isinstance(found, str):
        failed = {"state": FAILED, "detail": found, "speeds": {}}
        found = dict.fromkeys(proof.kinds_of(mode, dtype), failed)
    proof.add(gpu, found)
    for kind, finding in found.items():
        print(f"{kind}: {proof.describe(finding)}", flush=True)
    return all(finding["state"] == RIGHT for finding in found.values())


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Holds a lock among processes, where the file system has locks."""
    with open(path, "a") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another process that proves kernels", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _measure(task: dict[str, Any]) -> dict[str, dict] | str:
    """What the worker finds, or how it failed; raises Unjudged."""
    process, messages = _start(task), queue.SimpleQueue()
    threading.Thread(target=_listen, args=(process.stdout, messages), daemon=True).start()
    at, why, code, found, awaited = "", "", None, {}, len(task["tiers"])
    try:
        while (message := messages.get(timeout=SILENCE_S)) is not None:
            if "findings" in message:
                found, awaited = message["findings"], awaited - 1
            if not awaited:
                return found
            at, why = message.get("at", at), message.get("why", why)
        code = process.wait(10)
        end = f"the process that measures ended with exit code {code}"
    except (queue.Empty, subprocess.TimeoutExpired):
        end = "the process that measures did not answer in time"
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that is stuck in the driver stays
            process.wait(10)
        process.stdin.close()
    reason = ", ".join(filter(None, (end, at, why)))
    if not at or code in _OUTSIDE:
        raise Unjudged(reason)
    for finding in found.values():
        finding["detail"] = "; ".join(filter(None, (finding["detail"], f"without resident kernels: {reason}")))
    return found or reason


def _start(task: dict[str, Any]) -> subprocess.Popen:
    """The worker imports the same modules and measures under the same settings."""
    root = str(Path(__file__).absolute().parents[2])
    settings = {
        "PYTHONPATH": os.pathsep.join([root, *(os.path.abspath(path) for path in sys.path if isinstance(path, str))]),
        "PYTHONSAFEPATH": "1",
        "PYTHONWARNINGS": "ignore",
        "FASTRNN_BACKEND": None,
        "FASTRNN_CUDA_TIER": ops.TIER,  # in force since fastrnn was imported, whatever os.environ says now
    }
    return subprocess.Popen(
        [sys.executable, *PROGRAM, json.dumps(task)],
        cwd=root,  # before Python 3.11 the first place where modules are looked for
        env={name: value for name, value in (os.environ | settings).items() if value is not None},
        stdin=subprocess.PIPE,  # its end is the end of this process, and ends the worker too
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches this process alone
    )


def _listen(pipe: BinaryIO, messages: queue.SimpleQueue) -> None:
    with pipe:
        for line in pipe:
            with contextlib.suppress(ValueError, TypeError):  # what something else wrote to the worker's stdout
                messages.put(dict(json.loads(line)))
    messages.put(None)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all was right, 1 if something was wrong or failed, 2 if there is nothing to prove, 3 if a pair could not be
    judged, for a reason that may pass, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Checks the CUDA kernels of every cell and dtype on a GPU against PyTorch, times both, and keeps "
        "what it finds: from then on calls on that GPU run on the kernels where they were right and no slower.",
    )
    parser.add_argument("--device", default="cuda:0", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, shorter times: a rougher verdict")
    parser.add_argument("--only", choices=PAIRS, nargs="+", metavar="CELL:DTYPE", help="these pairs: LSTM:float32 ...")
    parser.add_argument("--forget", action="store_true", help="delete what this machine has kept of the GPU instead")
    args = parser.parse_args(argv)
    kind, _, index = args.device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        parser.error(f"argument --device: expected cuda or cuda:N, got {args.device!r}")
    if args.forget and args.only:
        parser.error(f"argument --forget: expected no --only, for all of a GPU is deleted, got {' '.join(args.only)}")
    gpu = proof.gpu_at(int(index or 0))
    if isinstance(gpu, str):
        print(f"{COMMAND}: {gpu}", file=sys.stderr)
        return 2
    if args.forget:
        there = proof.forget(gpu)
        print(f"forgotten: {proof.path_of(gpu)}" if there else f"nothing was kept of {gpu.name}")
        return 0
    status = 0
    try:
        kept.prepare()
        with _only_one(proof.path_of(gpu).with_suffix(".lock")):
            for pair in args.only or PAIRS:
                try:
                    right = prove_pair(int(index or 0), gpu, *pair.split(":"), args.quick)
                    status = max(status, 0 if right else 1)
                except Unjudged as reason:
                    print(f"{COMMAND}: {pair} could not be judged: {reason}", file=sys.stderr)
                    status = 3
    except KeyboardInterrupt:
        print("interrupted: what was found so far is kept", file=sys.stderr)
        return 130
    except OSError as reason:
        print(f"{COMMAND}: {reason}", file=sys.stderr)
        return 2
    return status
