"""Both sides of a case, and what becomes of it."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from support import LACKING
from torch import Tensor

import fastrnn
from fastrnn.bench.gate import FACTOR, FLOOR

from .cases import Case
from .differences import sentence
from .exact import Exact
from .kinds import KINDS, OBJECTS, SIZES, dense
from .sides import PACKED, Side, Torchs, kind_of
from .subclasses import Logged, Stored
from .transforms import CONTEXTS, of_the_truth

STUMBLES = (AssertionError, AttributeError, KeyError, IndexError, NotImplementedError)
"""What torch raises where nothing looked at an argument; ours is to raise something clear."""
NO_TENSOR = (AttributeError, KeyError, TypeError)
"""What an argument that is no tensor gives, by the first use of it."""
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass
class Outcome:
    """Results by name, or the error."""

    results: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    where: str = ""

    def __str__(self) -> str:
        if self.error is None:
            return "a result"
        text = " ".join(str(self.error).split())
        return f"{type(self.error).__name__}: {text[:160]}{self.where}"


def attempt(work: Callable[[], dict[str, Any]]) -> Outcome:
    try:
        return Outcome(work())
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [f for f in frames if "/fastrnn/" in f.filename]
        where = f" [{inside[-1].filename.rsplit('/', 1)[-1]}:{inside[-1].lineno}]" if inside else ""
        return Outcome(error=error.with_traceback(None), where=where)


def _forced(backend: str | None):
    if backend is None or (backend == "cpu" and LACKING is not None):
        return contextlib.nullcontext()
    return fastrnn.backend(backend)


def run_torch(case: Case) -> Outcome:
    return attempt(lambda: CONTEXTS[case.context](Torchs(case)))


def run_ours(case: Case) -> Outcome:
    with _forced(case.backend):
        return attempt(lambda: CONTEXTS[case.context](Side(case, fastrnn)))


def run_exact(case: Case) -> Outcome:
    return attempt(lambda: of_the_truth(case.context)(Exact(case)))


def _described(value) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:60]
    # transpose_, as torch.nn makes its result batch_first, leaves the shape of a wrapper as it was.
    shaped = value.inner if isinstance(value, (Logged, Stored)) else value
    shape = "nested" if shaped.is_nested else tuple(shaped.shape)
    text = f"{type(value).__name__} {value.dtype} {shape} {value.device} {value.layout}"
    return f"{text} requires_grad={value.requires_grad}".replace("torch.", "")


def _worst(value: Tensor, truth: Tensor) -> float:
    """The largest error; infinite where one is NaN or infinite and the other is not so, or past the type's range."""
    limit = torch.finfo(REAL.get(value.dtype, value.dtype)).max
    value, truth = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (value, truth))
    if value.numel() == 0:
        return 0.0
    equal = (value == truth) | (value.isnan() & truth.isnan()) | (value.isinf() & (truth.abs() > limit))
    error = torch.where(equal, 0, (value - truth).abs())
    return float("inf") if error.isnan().any() else error.max().item()


def _largest(value: Tensor) -> float:
    finite = value.to(torch.complex128 if value.is_complex() else torch.float64).abs()
    return torch.where(finite.isfinite(), finite, 0).max().item() if value.numel() else 0.0


def _group(name: str) -> str:
    """Results share a budget with their like: torch may be exact by luck in one of them."""
    return name.rsplit(" of ", 1)[0] if " of " in name else "result"


def _values(results: dict[str, Any]) -> dict[str, Tensor]:
    values = {name: dense(r) for name, r in results.items() if isinstance(r, Tensor)}
    return {name: v for name, v in values.items() if v is not None}


def _numbers(case: Case, ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """What is wrong with the values of ours; ``theirs`` may be empty where torch has no result."""
    truth, has_resets = run_exact(case), case.extras in ("resets", "both")
    if truth.error is not None and (has_resets or any(kind in SIZES for _, kind in case.odd)):
        return None  # what torch makes of sizes that do not fit is no measure
    mine, other = _values(ours), {} if has_resets else _values(theirs)
    if truth.error is not None:
        exact = other
    else:
        exact = {name: t.detach() for name, t in truth.results.items() if isinstance(t, Tensor)}
    errors: dict[str, tuple[float, float]] = {}
    scales: dict[str, float] = {}
    units: dict[str, float] = {}
    for name, value in mine.items():
        expected = exact.get(name, other.get(name))
        if expected is None or expected.shape != value.shape:
            return f"{name}: nothing to compare with; the truth: {truth}"
        group = _group(name)
        if not (value.is_floating_point() or value.is_complex()):
            if not torch.equal(value, other.get(name, expected).to(value)):
                return f"{name}: differs"
            continue
        torchs = _worst(other[name], expected) if name in other else 0.0
        errors[name] = _worst(value, expected), torchs
        scales[group] = max(scales.get(group, 0.0), _largest(expected))
        kind = REAL.get(value.dtype, value.dtype)
        if case.context.startswith("autocast"):  # a float32 tensor went through the low type
            kind = getattr(torch, case.context.split("-")[1])
        units[group] = max(units.get(group, 0.0), torch.finfo(kind).eps * FLOOR.get(kind, 1))
    for name, (error, _) in errors.items():
        group = _group(name)
        torchs = max(t for n, (_, t) in errors.items() if _group(n) == group)
        floor = units[group] * (scales[group] or 1.0) * (1 if other and truth.error is None else 64)
        if not error <= FACTOR * torchs + floor:
            return f"{name}: error {error:.2e}, torch's {torchs:.2e}, floor {floor:.1e}, largest {scales[group]:.1e}"
    return None


def _shapes(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """The first result that is not of torch's type, shape, dtype, device and layout."""
    if list(ours) != list(theirs):
        return f"results {sorted(set(ours) ^ set(theirs)) or 'in another order'}"
    for name, value in ours.items():
        expected, got = _described(theirs[name]), _described(value)
        # Which of a wrapper and a plain tensor is added to the other in place is torch's own affair.
        if expected.startswith("Tensor") and type(value) in (Logged, Stored):
            got = got.replace(type(value).__name__, "Tensor")
        if expected != got:
            return f"{name}: expected {expected}, got {got}"
    return None


def _same_error(case: Case, theirs: Exception, ours: Exception) -> bool:
    """Of one class; or ours clear where torch's is an accident, where an argument is no tensor, or where several are
    wrong and the order of the checks decides."""
    if isinstance(ours, type(theirs)) or isinstance(theirs, type(ours)):
        return True
    wrong = len(case.odd) + (case.hx not in ("right", "absent")) + (case.context != "plain") + (0 in (case.T, case.B))
    no_tensor = any(kind in OBJECTS for _, kind in case.odd) or case.hx not in ("right", "absent")
    unchecked = case.extras != "none" or case.form in PACKED  # torch looks at no packed argument
    if no_tensor and isinstance(ours, NO_TENSOR) and (isinstance(theirs, NO_TENSOR) or wrong > 1):
        return True
    stumbles = isinstance(theirs, STUMBLES) or "NestedTensor" in str(theirs)
    may_differ = stumbles or wrong > 1 or unchecked or case.backend == "cpu"
    # By AssertionError torch's operators refuse fake tensors beside others.
    is_torchs = isinstance(ours, AssertionError) and any(kind == "fake" for _, kind in case.odd)
    return may_differ and (is_torchs or isinstance(ours, (TypeError, ValueError, RuntimeError)))


def _lacks_values(results: dict[str, Any]) -> bool:
    return any(isinstance(r, Tensor) and r.is_meta for r in results.values())


def judge(case: Case, theirs: Outcome, ours: Outcome) -> tuple[str, str]:
    """("same result" | "same error" | "documented" | "finding", text)."""
    known = sentence(case, theirs, ours)
    if ours.error is not None:
        if theirs.error is not None and _same_error(case, theirs.error, ours.error):
            return "same error", f"expected {theirs}; got {ours}"
        return ("documented" if known else "finding"), f"expected {theirs}; got {ours}"
    if theirs.error is not None:
        if known is None:
            return "finding", f"expected {theirs}; got a result"
        wrong = _numbers(case, ours.results, {})
        return ("finding", f"{known} But {wrong}") if wrong else ("documented", known)
    if case.context == "plain" and kind_of(case, "input") is not KINDS["meta"] and _lacks_values(ours.results):
        return "finding", "a result without values"
    other = _shapes(ours.results, theirs.results)
    wrong = (None if known else other) or _numbers(case, ours.results, theirs.results)
    return ("finding", wrong) if wrong else ("documented", known) if other else ("same result", "")
