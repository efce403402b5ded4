"""Which backend computes a call, and why not the others.

``cuda``       the extension's CUDA kernels
``cpu``        the extension's CPU kernels
``aten``       torch's own kernels (cuDNN, oneDNN, ATen): what ``torch.nn`` would run, or its cell for a single step
``reference``  the layers in plain PyTorch; serves everything, everywhere

The automatic choice is the first backend of :func:`ranking` with nothing against it. :func:`backend` and the
environment variable ``FASTRNN_BACKEND`` force one; a forced backend that cannot serve a call is an error, never a
silent substitution.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from .. import reference
from .._kernels import ops, user_kernels
from .._kernels.ops import is_compiling
from .._spec import Call
from ..registry import CELLS, USER_CELLS
from ..verdict import proof
from . import choice

BACKENDS = ("cuda", "cpu", "aten", "reference")
_REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPES = {
    "cuda": _REAL,
    "cpu": _REAL,
    "aten": (*_REAL, torch.complex64, torch.complex128),
    "reference": (*_REAL, torch.complex64, torch.complex128),
}
"""What each backend computes in. With any other type a call ends as torch's own operators end with it."""
_forced: ContextVar[str | None] = ContextVar("fastrnn_backend", default=None)
_warned: set[int] = set()
"""The GPUs at which this process has met a call that only a proof keeps from the kernels."""
_environment = os.environ.get("FASTRNN_BACKEND") or None  # read once, when fastrnn is imported


def why_not(backend: str, call: Call) -> list[str]:
    """Everything that keeps ``backend`` from serving ``call``; empty if it can."""
    reasons = []
    if backend == "cpu" or backend == "cuda":
        missing = ops.missing(backend, call.index)
        if missing:
            reasons.append(missing)
        if call.device != backend:
            reasons.append(f"the tensors are on {call.device}")
        if call.foreign:
            reasons.append("an argument is not an ordinary strided tensor")
    if call.dtype not in DTYPES[backend]:
        reasons.append(f"there is no kernel for {call.dtype}")
    # Only where there could be kernels: nothing looks for nvcc elsewhere.
    if backend == "cuda" and not reasons and (without := user_kernels.why_not(call.mode)):
        reasons.append(without)
    if backend == "cuda" and call.B == 0:
        reasons.append("an empty batch launches nothing")
    if backend == "aten" and call.mode not in CELLS:
        reasons.append(f"torch has no {call.mode}")
    elif backend == "aten" and call.extended:
        reasons.append(
            "torch has no lengths, reset_mask, all_states, checkpoint_chunks, save, recurrent_dropout, zoneout or heads"
        )
    if call.transformed and backend != "reference":
        reasons.append("torch.func transforms and forward-mode AD go through differentiable operations")
    return reasons


def _reference_is_ahead(call: Call) -> bool:
    """Whether the reference was measured ahead of torch's GRU and RNN on calls like this one.

    Those are loops of small operations. The reference's backward uses a quarter as many, which pays off from T = 8 on.
    Its forward is ahead where it has the faster products and these are large.
    """
    if call.grad:
        return call.T >= 8
    large = call.T >= 16 and call.H >= 256 and call.B * call.H >= 4096
    return large and reference.outruns_torch(call.device, call.dtype, call.B)


def _why_not_proven(call: Call) -> str | None:
    """Why the automatic choice does not put backend cuda first for a call on a GPU; None if it does."""
    if call.mode in USER_CELLS:
        return f"no proof covers {call.mode}, a cell of yours: {proof.OPT_IN}"
    if ops.is_watched():  # T and B may be symbolic; H becomes a number, and a graph has one
        sizes = proof.variants_of(call), len(range(call.H))
        return proof.why_not_in_graphs(call.index, call.mode, call.dtype, call.grad, *sizes)
    return proof.why_not(call)


def _warn_if_unproven(call: Call) -> None:
    """Says once what the kernels of a GPU lack, if it is a proof alone."""
    if call.index in _warned or call.mode in USER_CELLS or ops.is_watched():
        return
    verdict = proof.verdict_of(call.index)
    if isinstance(verdict, str) and not why_not("cuda", call):
        _warned.add(call.index)
        if not isinstance(proof.gpu_at(call.index), str):
            warnings.warn(f"fastrnn leaves calls on cuda:{call.index} to PyTorch: {verdict}", stacklevel=1)


def ranking(call: Call) -> tuple[str, ...]:
    """The backends from most to least preferred, by measurement: on CPUs by ``choice``, on GPUs by ``proof``.

    The compiled backend of another device than the tensors' is last: it cannot serve.
    """
    if call.foreign:  # what torch.nn does with such a tensor is right
        return ("aten", "reference", "cpu", "cuda")
    own, other = ("cpu", "cuda") if call.device == "cpu" else ("cuda", "cpu")
    if call.device == "cuda" and _why_not_proven(call):
        return ("aten", "reference", own, other)
    if call.device == "cpu" and choice.torch_ahead(call):
        return ("aten", own, "reference", other)
    # Without the extension: torch's LSTM is hard to beat from Python.
    if call.device == "cpu" and call.mode != "LSTM" and _reference_is_ahead(call):
        return (own, "reference", "aten", other)
    return (own, "aten", "reference", other)


def forced() -> str | None:
    """The backend in force by :func:`backend` or ``FASTRNN_BACKEND``, or None."""
    return _forced.get() or _by_environment()


def _by_environment() -> str | None:
    name = _environment
    if name is not None and name not in BACKENDS:
        raise ValueError(f"FASTRNN_BACKEND: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def _refusal(name: str, reasons: list[str]) -> str:
    return f"fastrnn: backend {name!r} was asked for but cannot serve this call: {'; '.join(reasons)}"


def choose(call: Call, explained: bool = False) -> str:
    """The backend that serves ``call``, which is about to be made unless it is ``explained``.

    Where none is forced and torch looks on (:func:`ops.is_watched`), that is the operators of ``torch.ops.fastrnn``,
    named by the device.

    Raises:
        RuntimeError: a backend is forced and cannot serve this call.
    """
    if is_compiling():
        return _choose_for_graph(call)
    name = forced()
    if name is not None:
        reasons = why_not(name, call)
        if reasons:
            raise RuntimeError(_refusal(name, reasons))
        if name == "cuda" and not explained and not ops.is_watched():
            check_kernels(call.mode)
            proof.verdict_of(call.index)  # the kernels follow its tiers
        return name
    if ops.is_watched():
        if ops.is_traced() and not call.extended:
            return "aten"  # TorchScript saves these, loads them anywhere and can train what it traced without gradients
        served = not (call.transformed or call.foreign) and call.dtype in DTYPES["cpu"]
        if served and (call.device != "cuda" or not _why_not_proven(call)):
            return call.device  # the operators of torch.ops.fastrnn; torch's own would hide what they do
    for candidate in ranking(call):
        if candidate == "cpu" and not ops.has_extension():
            continue  # why_not would find it too, more slowly
        if not why_not(candidate, call):
            if call.device == "cuda" and candidate != "cuda" and not explained:
                _warn_if_unproven(call)
            return candidate
    if call.extended:
        expected = ", ".join(str(dtype) for dtype in DTYPES["reference"])
        raise RuntimeError(f"fastrnn: expected tensors of one of {expected}, got {call.dtype}")
    return "aten"  # torch's operators say what they do not compute


def _choose_for_graph(call: Call) -> str:
    """As :func:`choose`, for a call that becomes part of a graph.

    The graph outlives the context it is made in, so ``FASTRNN_BACKEND`` alone decides; the operators look at
    :func:`backend` when they run (:func:`check_graph`).
    """
    name = _by_environment()
    if name is not None:  # B may be symbolic, and transforms look at what stands in the graph
        reasons = why_not(name, call._replace(B=1, transformed=False))
        if reasons:
            raise RuntimeError(_refusal(name, reasons))
        if name == "aten":
            return "aten"
    if call.foreign or call.dtype not in DTYPES["cpu"]:
        return "reference" if name or call.extended else "aten"
    if call.device == "cuda" and name is None and _why_not_proven(call):
        return "reference" if call.extended else "aten"
    return call.device


def is_reference() -> bool:
    """Whether ``FASTRNN_BACKEND`` asks for the reference."""
    return _environment == "reference"


def check_graph(backend: str) -> None:
    """Refuses to run an operator of ``torch.ops.fastrnn``, which computes by ``backend``, where another is forced.

    Raises:
        RuntimeError: within ``fastrnn.backend(...)`` of another name.
    """
    name = _forced.get()
    if name not in (None, backend):
        raise RuntimeError(
            f"fastrnn.backend({name!r}) does not reach into a graph, which computes by {backend!r}: leave the block, "
            f"set FASTRNN_BACKEND={name} before fastrnn is imported, or call the model uncompiled"
        )


def check_kernels(mode: str) -> None:
    """Has the CUDA kernels of a user's cell compiled, where a call is about to need them.

    Raises:
        RuntimeError: they cannot be.
    """
    if without := user_kernels.why_not_added(mode):
        raise RuntimeError(_refusal("cuda", [without]))


@contextlib.contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Forces a backend within a ``with`` block; None gives the choice back to fastrnn, or to ``FASTRNN_BACKEND``.

    Args:
        name: ``"cuda"``, ``"cpu"``, ``"aten"``, ``"reference"`` or None.

    Raises:
        ValueError: for any other name.

    The setting belongs to the current thread and context. A call inside the block that the backend cannot serve raises
    RuntimeError with the reasons. So does a graph of ``torch.compile`` or ``torch.export`` that runs inside it and
    computes by another backend: the setting does not reach into graphs.
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
    kernels: ops.Plan | None = None
    """Backend cuda: the kernels that the call would run on in each pass, and how several layers follow each other."""

    def __str__(self) -> str:
        lines = [f"{self.backend}: chosen"]
        lines += [f"  {line}" for line in str(self.kernels or "").splitlines()]
        lines += [f"{name}: {'; '.join(reasons)}" for name, reasons in self.reasons.items()]
        return "\n".join(lines)


def _preference(call: Call, chosen: str, other: str) -> str:
    unproven = _why_not_proven(call) if other == "cuda" else None
    if unproven:
        return unproven
    if other == "cpu" and (row := choice.torch_ahead(call)):
        return str(row)
    return f"{chosen} is preferred for this call"


def explanation(
    call: Call, like: torch.Tensor | None = None, recomputed: bool = False, left: bool = False
) -> Explanation:
    """The choice for ``call`` with its reasons; with a tensor of its device and dtype, backend cuda's kernels too.

    ``recomputed`` says that backward computes chunks of time again, ``left`` that torch's operators take the call as it
    stands.
    """
    chosen, name, order = "aten" if left else choose(call, explained=True), forced(), ranking(call)
    reasons = {}
    for other in order:
        if other == chosen:
            continue
        against = why_not(other, call)
        if not against:
            against = [f"backend {name!r} is forced" if name else _preference(call, chosen, other)]
        reasons[other] = against
    if chosen != "cuda" or like is None:
        return Explanation(chosen, reasons, call)
    kernels = ops.plan_kernels(like, call, 1 if recomputed else call.layers)
    if recomputed and call.layers > 1:
        kernels = kernels._replace(layers="one after another, because backward computes their chunks again")
    return Explanation(chosen, reasons, call, kernels)
