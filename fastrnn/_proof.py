"""Whether the CUDA kernels have proven themselves on the GPU at hand, and what follows for a call.

``python -m fastrnn prove`` (``_prove``), started by a user or by the first call of a kind (``_first_call``), measures
and writes a verdict; here it is read, once per process and device, and asked about calls. A verdict is one JSON file
per GPU name and compute capability, in ``$FASTRNN_CACHE_DIR``, ``$XDG_CACHE_HOME/fastrnn`` or ``~/.cache/fastrnn``. Its
stamp says what it was found with; where anything of that has changed since, it counts for nothing. No file, however
damaged, makes a call fail.

What is found is found for a kind of call: mode, dtype, precision of float32 products, with or without gradients. A
kind is ``right`` if every result was, ``wrong`` or ``failed`` otherwise. Times are kept by variant of the call
(``VARIANTS``): a call runs on the kernels if, for each variant that it is, the nearest shape measured was no slower
than torch's. Nearest is in the logarithms of T, B and H.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch

from . import _ext, _ops
from ._call import Call

COMMAND = "python -m fastrnn prove"
OPT_IN = "opt in with fastrnn.backend('cuda')"
UNPROVEN = f"its kernels have not been proven on this GPU: run {COMMAND}, or {OPT_IN}"
RIGHT, WRONG, FAILED = "right", "wrong", "failed"

# A plain layer; a cell's step; more than one layer; both directions; packed; projected; what torch.nn does not have.
PLAIN, STEP, LAYERS, DIRECTIONS, PACKED, PROJECTED, EXTENDED = (
    "plain", "step", "layers", "directions", "packed", "projected", "extended",
)  # fmt: skip
VARIANTS = (PLAIN, STEP, LAYERS, DIRECTIONS, PACKED, PROJECTED, EXTENDED)

_PRECISION = getattr(torch._C, "_get_fp32_precision_getter", None)  # since torch 2.9


class Gpu(NamedTuple):
    """What a verdict is about: all GPUs of a name and a compute capability ("9.0")."""

    name: str
    capability: str


class Kind(NamedTuple):
    """A kind of call. ``precision`` is "tf32" or "ieee" in float32, else empty."""

    mode: str
    dtype: str
    precision: str
    grad: bool

    def __str__(self) -> str:
        parts = self.mode, self.dtype, self.precision, "training" if self.grad else "forward"
        return " ".join(part for part in parts if part)


def kinds_of(mode: str, dtype: str) -> list[Kind]:
    """All kinds of call of a cell in a dtype."""
    precisions = ("ieee", "tf32") if dtype == "float32" else ("",)
    return [Kind(mode, dtype, precision, grad) for precision in precisions for grad in (False, True)]


class Speed(NamedTuple):
    """torch's time over ours at a shape."""

    T: int
    B: int
    H: int
    ratio: float

    def __str__(self) -> str:
        return f"measured at {self.ratio:.2f} of torch's speed on this GPU at T={self.T} B={self.B} H={self.H}"


@dataclass(frozen=True)
class Finding:
    """What was found of a kind. ``detail`` says what was wrong or failed; ``lacking`` has the variants that could not
    be run, with the reasons."""

    state: str
    detail: str = ""
    speeds: dict[str, list[Speed]] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Verdict:
    """All that was found on a GPU, by ``str(Kind)``."""

    gpu: Gpu
    date: str
    stamp: dict[str, str]
    findings: dict[str, Finding]

    def __str__(self) -> str:
        states = [finding.state for finding in self.findings.values()]
        text = f"proven {self.date}: {states.count(RIGHT)} of {len(states)} kinds of call right"
        other = [f"{name} {finding.state}" for name, finding in self.findings.items() if finding.state != RIGHT]
        return f"{text}; {', '.join(other)}" if other else text


def gpu_at(index: int) -> Gpu | str:
    """The GPU, or why there are no kernels to prove on it. Starts no work there."""
    missing = _ops.missing("cuda")
    if missing:
        return missing
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    if index >= torch.cuda.device_count():
        return f"there is no cuda:{index}, torch sees {torch.cuda.device_count()} GPUs"
    capability = torch.cuda.get_device_capability(index)
    unfit = _ext.why_not_device(capability, _ext.build.cuda_archs)
    return unfit or Gpu(torch.cuda.get_device_name(index), "{}.{}".format(*capability))


def path_of(gpu: Gpu) -> Path:
    """The file of a GPU's verdict."""
    folder = os.environ.get("FASTRNN_CACHE_DIR")
    if not folder:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(cache, "fastrnn")
    name = re.sub(r"[^a-z0-9.]+", "-", f"{gpu.name}-{gpu.capability}".lower()).strip("-")
    return Path(folder, f"verdict-{name}.json")


@functools.cache
def _digest() -> str:
    """Of the extension's file: it changes whenever the kernels are built anew from other sources."""
    digest = hashlib.sha256()
    with open(_ext.load().__file__, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _driver() -> str:
    """The driver's version where Linux tells it in a file, else empty."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else ""


def _surroundings() -> dict[str, str]:
    """All of the stamp that is quickly known."""
    return {
        "fastrnn": sys.modules[__package__].__version__,  # nothing here imports the package that imports it
        "torch": str(torch.__version__),
        "CUDA": torch.version.cuda or "",
        "cuDNN": str(torch.backends.cudnn.version() or ""),
        "driver": _driver(),
        "FASTRNN_CUDA_TIER": _ops.TIER or "step",
        "FASTRNN_CUDA_WAVEFRONT": _ops.WAVEFRONT or "",
    }


def stamp() -> dict[str, str]:
    """What a verdict that is found now is found with."""
    return {**_surroundings(), "extension": _digest()}


def _outdated(found_with: dict[str, str]) -> str | None:
    """What has changed since, or None."""
    now = _surroundings()
    changed = [
        f"{name} was {found_with.get(name) or 'not set'} and is {value or 'not set'}"
        for name, value in now.items()
        if found_with.get(name) != value
    ]
    if not changed and found_with.get("extension") != _digest():
        changed = ["the kernels were built anew"]
    if not changed:
        return None
    return f"its proof on this GPU no longer holds ({'; '.join(changed)}): run {COMMAND} again, or {OPT_IN}"


def save(verdict: Verdict) -> Path:
    """Writes the verdict's file, all of it or none."""
    path = path_of(verdict.gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, written = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(verdict), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, path)
    except BaseException:
        os.unlink(written)
        raise
    verdict_of.cache_clear()
    return path


def add(gpu: Gpu, findings: dict[str, Finding], afresh: bool = False) -> Verdict:
    """Writes findings down, beside those of the GPU's verdict if that counts; ``afresh``: in its place."""
    known = UNPROVEN if afresh else read(gpu)
    kept = {} if isinstance(known, str) else known.findings
    verdict = Verdict(gpu, datetime.now(timezone.utc).strftime("%Y-%m-%d"), stamp(), kept | findings)
    save(verdict)
    return verdict


def forget(gpu: Gpu) -> bool:
    """Deletes the GPU's verdict; whether there was one."""
    there = path_of(gpu).exists()
    path_of(gpu).unlink(missing_ok=True)
    verdict_of.cache_clear()
    return there


def _parse(text: str) -> Verdict:
    """Raises ValueError, TypeError, KeyError or AttributeError for what :func:`save` did not write."""
    given = json.loads(text)
    findings = {}
    for name, found in given["findings"].items():
        if found["state"] not in (RIGHT, WRONG, FAILED):
            raise ValueError(f"unknown state {found['state']!r}")
        speeds = {
            variant: [Speed(*map(int, shape), float(ratio)) for *shape, ratio in measured]
            for variant, measured in found["speeds"].items()
        }
        findings[name] = Finding(str(found["state"]), str(found["detail"]), speeds, dict(found["lacking"]))
    return Verdict(Gpu(*given["gpu"]), str(given["date"]), dict(given["stamp"]), findings)


def read(gpu: Gpu) -> Verdict | str:
    """The GPU's verdict, or why there is none that counts."""
    path = path_of(gpu)
    try:
        verdict = _parse(path.read_text(encoding="utf-8"))
        if verdict.gpu != gpu:
            raise ValueError(f"it is about {verdict.gpu}")
        return _outdated(verdict.stamp) or verdict
    except FileNotFoundError:
        return UNPROVEN
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{path} is damaged, {type(error).__name__}: {error}"
        return f"its proof on this GPU cannot be read ({reason}): run {COMMAND} again, or {OPT_IN}"


@functools.cache
def verdict_of(index: int) -> Verdict | str:
    """The verdict on ``cuda:index``, or why there is none; read once per process."""
    gpu = gpu_at(index)
    return gpu if isinstance(gpu, str) else read(gpu)


def is_open(index: int, mode: str, dtype: str) -> bool:
    """Whether kernels are there for ``cuda:index``, and no finding that counts on a cell in a dtype."""
    verdict = verdict_of(index)
    if isinstance(verdict, str):
        return not isinstance(gpu_at(index), str)
    return not any(str(kind) in verdict.findings for kind in kinds_of(mode, dtype))


def variants_of(call: Call) -> tuple[str, ...]:
    """All that a call is of ``VARIANTS``. Looks at no size that may be symbolic."""
    if call.step:
        return (STEP,)
    found = (PLAIN,)
    if call.layers > 1:
        found = (*found, LAYERS)
    if call.directions > 1:
        found = (*found, DIRECTIONS)
    if call.packed:
        found = (*found, PACKED)
    if call.P:
        found = (*found, PROJECTED)
    return (*found, EXTENDED) if call.extended else found


def precision_in_force(dtype: torch.dtype, op: str = "rnn") -> str:
    """What torch's setting makes of float32 products on a GPU, in recurrent layers or in "matmul"."""
    if dtype != torch.float32 or _PRECISION is None:
        return ""
    return "tf32" if _PRECISION("cuda", op) == "tf32" else "ieee"


def precision_of(call: Call) -> str:
    """In which precision the kernels multiply float32: one step in tf32 only where that is allowed to layers and, as
    torch's cells have it, to matmul."""
    precision = precision_in_force(call.dtype)
    return precision_in_force(call.dtype, "matmul") if precision == "tf32" and call.T == 1 else precision


def _slow(speeds: Iterable[Speed]) -> str | None:
    """The slowest measurement, in words, if it was slower than torch."""
    slowest = min(speeds, key=lambda speed: speed.ratio)
    return None if slowest.ratio >= 1 else str(slowest)


def nearest(speeds: list[Speed], T: int, B: int, H: int) -> list[Speed]:
    """The measurements at the nearest shape; several where several are equally near."""
    wanted = [math.log2(max(size, 1)) for size in (T, B, H)]
    distances = [math.dist(wanted, map(math.log2, speed[:3])) for speed in speeds]
    return [speed for speed, distance in zip(speeds, distances) if distance <= min(distances) + 1e-9]


def _against(verdict: Verdict, kind: Kind, variants: tuple[str, ...], sizes: tuple[int, int, int] | None) -> str | None:
    """What the verdict has against a call; without ``sizes``, against a call of any T, B and H."""
    finding = verdict.findings.get(str(kind))
    if finding is None:
        return f"{kind} was left out when its kernels were proven on this GPU: run {COMMAND} again, or {OPT_IN}"
    if finding.state == WRONG:
        return f"{COMMAND} found {kind} wrong on this GPU: {finding.detail}"
    if finding.state == FAILED:
        return f"{COMMAND} failed on this GPU with {kind}: {finding.detail}"
    for variant in variants:
        if variant in finding.lacking:
            return f"{COMMAND} failed on this GPU with {kind}, {variant}: {finding.lacking[variant]}"
    if EXTENDED in variants:
        return None  # torch has nothing to be measured against
    for variant in variants:
        speeds = finding.speeds.get(variant)
        if not speeds:
            return f"{kind}, {variant}, has not been timed on this GPU"
        slow = _slow(nearest(speeds, *sizes) if sizes else speeds)
        if slow:
            return slow if variant == PLAIN else f"{slow} ({variant})"
    return None


@functools.lru_cache(maxsize=4096)
def _against_call(verdict: Verdict, call: Call, precision: str) -> str | None:
    kind = Kind(call.mode, str(call.dtype).removeprefix("torch."), precision, call.grad)
    return _against(verdict, kind, variants_of(call), (call.T, call.B, call.H))


def why_not(call: Call) -> str | None:
    """Why the automatic choice leaves a call on a GPU to others than the kernels; None if it takes them."""
    verdict = verdict_of(call.index)
    if isinstance(verdict, str):
        return verdict
    return _against_call(verdict, call, precision_of(call))


def why_not_in_graphs(index: int, mode: str, dtype: torch.dtype, grad: bool, variants: tuple[str, ...]) -> str | None:
    """As :func:`why_not`, for a call whose sizes may be anything and that runs under whatever precision is then set:
    every shape that was timed has to have been no slower than torch, in each precision."""
    verdict = verdict_of(index)
    if isinstance(verdict, str):
        return verdict
    name = str(dtype).removeprefix("torch.")
    for precision in ("ieee", "tf32") if dtype == torch.float32 else ("",):
        against = _against(verdict, Kind(mode, name, precision, grad), variants, None)
        if against:
            return against
    return None


# Dynamo calls it while it traces and takes the result for a constant (torch.compiler.assume_constant_result, whose
# import of torch._dynamo would take a second).
why_not_in_graphs._dynamo_marked_constant = True
