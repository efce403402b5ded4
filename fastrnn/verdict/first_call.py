"""The first call of a cell in a dtype on a GPU proves the kernels for this pair (``docs/verdict.md``).

The findings are kept, so a machine does it once. After a transient failure this process uses torch; the next process
retries. The total wait of a process is bounded, below the ten minutes after which NCCL gives up on a rank.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

import torch

from . import proof
from .prove import WAIT_S, Unjudged, prove_pair

VARIABLE = "FASTRNN_PROVE"
PROOF_S, ENOUGH_S = 180.0, 120.0
"""Seconds: the limit of one proof; the total after which a process begins no other."""
_tried: dict[tuple[int, str, torch.dtype], str | None] = {}
"""Per pair that this process has tried: why it is not proven, None if it is."""
_lock = threading.Lock()
_spent = 0.0


def is_over(index: int, mode: str, dtype: torch.dtype) -> bool:
    """Whether this process has tried the pair."""
    return (index, mode, dtype) in _tried


def prove(index: int, mode: str, dtype: torch.dtype) -> None:
    """Proves the pair on ``cuda:index`` unless this process has tried it. Other threads wait."""
    key = index, mode, dtype
    if key in _tried:
        return
    if not _lock.acquire(timeout=WAIT_S):  # in a process forked meanwhile it may stay locked
        _tried[key] = f"another thread has been proving for {WAIT_S:g} seconds"
        return
    try:
        if key not in _tried:
            _tried[key] = _attempt(index, mode, proof.name_of(dtype))
    finally:
        _lock.release()


def outlook(index: int, mode: str, dtype: torch.dtype) -> str:
    """The end of an explanation: why a first call does not prove the pair; empty if it does, or has."""
    reason = _tried.get((index, mode, dtype)) or _why_never()
    is_open = proof.is_open(index, mode, proof.name_of(dtype))
    return f"; not proven by a first call: {reason}" if reason and is_open else ""


def _why_never() -> str | None:
    """Why no call of this process proves any pair; None if calls do."""
    switch, program = os.environ.get(VARIABLE) or "1", sys.executable or ""
    if switch != "1":
        return f"{VARIABLE}={switch}" + ("" if switch == "0" else ", expected 0 or 1")
    if getattr(sys, "frozen", False) or "python" not in os.path.basename(program) or not os.access(program, os.X_OK):
        return f"sys.executable is no Python that could be started: {sys.executable!r}"
    return f"{_spent:.0f} seconds were spent on proofs, the next process goes on" if _spent > ENOUGH_S else None


def _attempt(index: int, mode: str, dtype: str) -> str | None:
    """Proves the pair. Why it is not proven, None if it is."""
    global _spent
    if not proof.is_open(index, mode, dtype):
        return None
    began, reason = time.monotonic(), _why_never()
    try:
        if reason is None:
            prove_pair(index, proof.gpu_at(index), mode, dtype, _say, quick=True, limit=PROOF_S)
    except (Unjudged, OSError) as error:
        reason = str(error)
    finally:
        proof.reread()
        _spent += time.monotonic() - began
    if reason and os.environ.get(VARIABLE) != "0":
        _say(f"{mode} {dtype} stays with PyTorch in this process: {reason}")
    return reason


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed, or None
        sys.stderr.write(f"fastrnn: {text}\n")
        sys.stderr.flush()
