"""Which backend computes a call, and why not the others.

``cuda``       the extension's CUDA kernels
``cpu``        the extension's CPU kernels
``aten``       torch's own kernels (cuDNN, oneDNN, ATen): what ``torch.nn`` would run
``reference``  the layers in plain PyTorch; serves everything, everywhere

The automatic choice is the first backend of :func:`ranking` with nothing against it. :func:`backend` and the
environment variable ``FASTRNN_BACKEND`` force one; a forced backend that cannot serve a call is an error, never a
silent substitution.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from . import _ops

BACKENDS = ("cuda", "cpu", "aten", "reference")
_COMPILED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Whether committed measurements on a GPU show the CUDA kernels right and fast there. Until then they are opt-in.
CUDA_PROVEN = False
_forced: ContextVar[str | None] = ContextVar("fastrnn_backend", default=None)
_environment = os.environ.get("FASTRNN_BACKEND") or None  # read once, when fastrnn is imported


class Call(NamedTuple):
    """What the choice depends on.

    ``mode`` is the cell's; ``T B I H P`` are time, batch, input, hidden and projection size (0: none); ``grad`` says
    that a gradient may be asked for, ``transformed`` that ``torch.func`` or forward-mode AD is looking on.
    """

    mode: str
    device: str
    dtype: torch.dtype
    T: int
    B: int
    I: int
    H: int
    P: int = 0
    layers: int = 1
    directions: int = 1
    packed: bool = False
    grad: bool = False
    transformed: bool = False


def is_transformed() -> bool:
    """Whether a ``torch.func`` transform or forward-mode AD is active."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def why_not(backend: str, call: Call) -> list[str]:
    """Everything that keeps ``backend`` from serving ``call``; empty if it can."""
    reasons = []
    if backend in ("cpu", "cuda"):
        missing = _ops.missing(backend)
        if missing:
            reasons.append(missing)
        if call.device != backend:
            reasons.append(f"the tensors are on {call.device}")
        if call.dtype not in _COMPILED_DTYPES:
            reasons.append(f"there is no kernel for {call.dtype}")
    if backend == "cuda" and call.B == 0:
        reasons.append("an empty batch launches nothing")
    if call.transformed and backend != "reference":
        reasons.append("torch.func transforms and forward-mode AD go through differentiable operations")
    return reasons


def _is_onednn_lstm(call: Call) -> bool:
    """Whether torch computes the call by oneDNN's fused LSTM, with enough rows a step to fill its matrix products."""
    plain = call.mode == "LSTM" and call.device == "cpu" and not call.packed and not call.P
    return plain and call.dtype in (torch.float32, torch.bfloat16) and call.B >= 16


def ranking(call: Call) -> tuple[str, ...]:
    """The backends from most to least preferred, by what was measured (benchmarks/NOTES.md)."""
    if call.device == "cuda" and not CUDA_PROVEN:
        return ("aten", "cuda", "cpu", "reference")
    # These are matrix products above all, and oneDNN's are ahead of ours on most such shapes; training in bfloat16 is
    # ours by a wide margin.
    if _is_onednn_lstm(call) and not (call.dtype == torch.bfloat16 and call.grad):
        return ("aten", "cuda", "cpu", "reference")
    # Without the extension: torch's LSTM is hard to beat from Python, but its GRU and RNN are loops of small operations
    # whose backward the reference does with a quarter of them, once there are steps enough to pay for its setting up.
    if call.device == "cpu" and call.grad and call.mode != "LSTM" and call.T >= 8:
        return ("cuda", "cpu", "reference", "aten")
    return ("cuda", "cpu", "aten", "reference")


def forced() -> str | None:
    """The backend in force by :func:`backend` or ``FASTRNN_BACKEND``, or None."""
    name = _forced.get() or _environment
    if name is not None and name not in BACKENDS:
        raise ValueError(f"FASTRNN_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def choose(call: Call) -> str:
    """The backend that serves ``call``.

    Raises:
        RuntimeError: a backend is forced and cannot serve this call.
    """
    name = forced()
    if name is not None:
        reasons = why_not(name, call)
        if reasons:
            raise RuntimeError(
                f"fastrnn: backend {name!r} was asked for but cannot serve this call: {'; '.join(reasons)}"
            )
        return name
    return next(candidate for candidate in ranking(call) if not why_not(candidate, call))


@contextlib.contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Forces a backend within a ``with`` block; None gives the choice back to fastrnn.

    Args:
        name: ``"cuda"``, ``"cpu"``, ``"aten"``, ``"reference"`` or None.

    Raises:
        ValueError: for any other name.

    The setting belongs to the current thread and context. A call inside the block that the backend cannot serve raises
    RuntimeError with the reasons.
    """
    if name is not None and name not in BACKENDS:
        raise ValueError(f"fastrnn.backend: expected one of {', '.join(BACKENDS)} or None, got {name!r}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


@dataclass(frozen=True)
class Explanation:
    """What :func:`fastrnn.explain` found: the backend chosen and, for every other, the reasons against it."""

    backend: str
    reasons: dict[str, list[str]]
    call: Call
    kernels: str | None = None
    """Backend cuda: the kernels that the call would run on, a line a pass."""

    def __str__(self) -> str:
        lines = [f"{self.backend}: chosen"]
        lines += [f"  {line}" for line in (self.kernels or "").splitlines()]
        lines += [f"{name}: {'; '.join(reasons)}" for name, reasons in self.reasons.items()]
        return "\n".join(lines)


def _preference(chosen: str, other: str) -> str:
    if other == "cuda" and not CUDA_PROVEN:
        return "its kernels have not been measured on a GPU yet: opt in with fastrnn.backend('cuda')"
    return f"{chosen} is preferred for this call"


def explanation(call: Call, like: torch.Tensor | None = None) -> Explanation:
    """The choice for ``call`` with its reasons; with a tensor of its device and dtype, backend cuda's kernels too."""
    chosen, name, order = choose(call), forced(), ranking(call)
    reasons = {}
    for other in order:
        if other == chosen:
            continue
        against = why_not(other, call)
        if not against:
            against = [f"backend {name!r} is forced" if name else _preference(chosen, other)]
        reasons[other] = against
    if chosen != "cuda" or like is None:
        return Explanation(chosen, reasons, call)
    kernels = _ops.describe_kernels(like, call.mode, call.B, call.H, call.P or call.H, call.directions)
    return Explanation(chosen, reasons, call, kernels)
