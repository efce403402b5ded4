"""What was found of the CUDA kernels on the GPU at hand, and what follows for a call (``docs/verdict.md``)."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._kernels import ext, ops
from .._spec import Call
from ..registry import ALL_CELLS
from . import kept

COMMAND = "python -m fastrnn prove"
OPT_IN = "opt in with fastrnn.backend('cuda')"
UNPROVEN = f"its kernels have not been proven on this GPU: make a first call, run {COMMAND}, or {OPT_IN}"
RIGHT, WRONG, FAILED = "right", "wrong", "failed"
VARIANTS = ("step", "plain", "layers", "directions", "packed", "projected", "extended", "masked", "zoned", "headed")
"""What a call can be: a cell's step, or a layer; of these several, both directions, packed, projected, with what
torch.nn does not have, and of that with a mask on h, zoneout, heads. A finding has the *speeds* (T, B, H, PyTorch's
time over ours, and where it was timed the same in a CUDA graph) of those that could run."""
STEP, AUTO = "step", "auto"
"""Settings of ``FASTRNN_CUDA_TIER`` that a proof times against each other: a launch a step, and one for the sequence
where the plan has it. A finding has the *tiers* (T, B, H, the faster one) of the shapes that were timed so."""
PRECISIONS = {"float32": ("ieee", "tf32")}
"""How the products of a dtype can be computed, where there is a choice."""


class Gpu(NamedTuple):
    """All GPUs of a name and a compute capability ("9.0")."""

    name: str
    capability: str


def name_of(dtype: torch.dtype) -> str:
    """A dtype as kinds have it."""
    return str(dtype).removeprefix("torch.")


def kinds_of(mode: str, dtype: str, grads: tuple[bool, ...] = (False, True), precisions: tuple = ()) -> list[str]:
    """The kinds of a cell in a dtype, by default in all precisions, with and without gradients."""
    found = [(given, grad) for given in precisions or PRECISIONS.get(dtype, ("",)) for grad in grads]
    return [" ".join(filter(None, (mode, dtype, given, "training" if grad else "forward"))) for given, grad in found]


def tiers_of(gpu: Gpu, mode: str, dtype: str) -> tuple[str, ...]:
    """The settings that a proof of a pair tries; an empty one leaves calls as they are."""
    cell = ALL_CELLS[mode]
    alone = ops.TIER or gpu.capability == ops.PLANNED or dtype == "float64" or not cell.recurrent or cell.statistics
    return ("",) if alone else (STEP, AUTO)


def describe(finding: dict[str, Any]) -> str:
    """A finding in a line."""
    ratios = [row[3] for speeds in finding["speeds"].values() for row in speeds]
    text = f", no slower than PyTorch at {sum(ratio >= 1 for ratio in ratios)} of {len(ratios)} shapes timed"
    detail = f": {finding['detail']}" if finding["detail"] else ""
    return finding["state"] + (text if finding["state"] == RIGHT else "") + detail


def summary(verdict: dict[str, Any]) -> str:
    """A verdict in a line."""
    states = [finding["state"] for finding in verdict["findings"].values()]
    return f"proven {verdict['date']}: {states.count(RIGHT)} of {len(states)} kinds of call right"


def gpu_at(index: int) -> Gpu | str:
    """The GPU, or why there are no kernels to prove on it. Starts no work on the GPU."""
    missing = ops.missing("cuda")
    if missing:
        return missing
    if index >= torch.cuda.device_count():
        return f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs, no cuda:{index}"
    capability = torch.cuda.get_device_capability(index)
    unfit = ext.why_not_device(capability, ext.build.cuda_archs)
    return unfit or Gpu(torch.cuda.get_device_name(index), "{}.{}".format(*capability))


def path_of(gpu: Gpu) -> Path:
    """The file of a GPU's verdict."""
    return kept.path_of("verdict", f"{gpu.name}-{gpu.capability}")


def stamp() -> dict[str, str]:
    """The stamp of a verdict that is found now."""
    driver = Path("/proc/driver/nvidia/version")  # Linux has it
    return kept.stamp(
        CUDA=torch.version.cuda or "",
        cuDNN=str(torch.backends.cudnn.version() or ""),
        driver=driver.read_text().partition("\n")[0] if driver.exists() else "",
        FASTRNN_CUDA_TIER=ops.TIER or "measured",
    )


def add(gpu: Gpu, findings: dict[str, dict]) -> None:
    """Adds findings to the GPU's file. A file that no longer counts is replaced."""
    known = read(gpu)
    before = {} if isinstance(known, str) else known["findings"]
    verdict = {"gpu": gpu, "date": kept.today(), "stamp": stamp(), "findings": before | findings}
    kept.write(path_of(gpu), verdict)
    reread()


def forget(gpu: Gpu) -> bool:
    """Deletes the GPU's file; whether there was one."""
    there = kept.remove(path_of(gpu))
    reread()
    return there


def read(gpu: Gpu) -> dict[str, Any] | str:
    """The GPU's verdict, or why there is none that counts."""

    def check(verdict: dict[str, Any]) -> None:
        if verdict["gpu"] != list(gpu):
            raise ValueError(f"it is about {verdict['gpu']}")
        for finding in verdict["findings"].values():
            if finding["state"] not in (RIGHT, WRONG, FAILED):
                raise ValueError(f"unknown state {finding['state']!r}")
            for speeds in finding["speeds"].values():
                nearest([(T, B, H, float(first), *map(float, more)) for T, B, H, first, *more in speeds], 1, 1, 1)
            describe(finding)
        _tiers_in(verdict)
        summary(verdict)

    found = kept.read(path_of(gpu), check, stamp())
    if isinstance(found, dict):
        return found if found["findings"] else UNPROVEN
    return f"{UNPROVEN} ({found})" if found else UNPROVEN


@functools.cache
def verdict_of(index: int) -> dict[str, Any] | str:
    """The verdict on ``cuda:index``, or why there is none; read once per process. The kernels follow its tiers."""
    gpu = gpu_at(index)
    if isinstance(gpu, str):
        return gpu
    verdict = read(gpu)
    ops.keep_tiers(index, [] if isinstance(verdict, str) else _tiers_in(verdict))
    return verdict


def _tiers_in(verdict: dict[str, Any]) -> list[tuple[int, torch.dtype, bool, bool, list]]:
    """The tiers of a verdict as ``ops.keep_tiers`` takes them."""
    kinds = []
    for kind, finding in verdict["findings"].items():
        if not finding.get("tiers"):
            continue
        mode, dtype, *precision, passes = kind.split()
        rows = [(float(T), float(B), float(H), {STEP: False, AUTO: True}[tier]) for T, B, H, tier in finding["tiers"]]
        nearest(rows, 1, 1, 1)
        kinds.append((ALL_CELLS[mode].index, getattr(torch, dtype), precision == ["tf32"], passes == "training", rows))
    return kinds


def reread() -> None:
    """Makes the next call read the files again."""
    verdict_of.cache_clear()
    _why_not.cache_clear()


def is_open(index: int, mode: str, dtype: str) -> bool:
    """Whether ``cuda:index`` has kernels, and no finding on a cell in a dtype that counts."""
    verdict = verdict_of(index)
    if isinstance(verdict, str):
        return not isinstance(gpu_at(index), str)
    return verdict["findings"].keys().isdisjoint(kinds_of(mode, dtype))


def variants_of(call: Call) -> tuple[str, ...]:
    """The ``VARIANTS`` that a call is. Reads no size that may be symbolic."""
    several = call.layers > 1, call.directions > 1, call.packed, call.P, call.extended
    several += call.masked, call.zoned, call.directions > 2
    applies = (call.step, not call.step, *(not call.step and it for it in several))
    return tuple(name for name, it in zip(VARIANTS, applies, strict=True) if it)


def precision_of(dtype: torch.dtype, one_step: bool) -> str:
    """The precision in which the kernels multiply float32. A single step uses tf32 only if torch allows it for layers
    and for matmul, because torch's cells follow the latter."""
    if dtype != torch.float32:
        return ""
    settings = ("rnn", "matmul") if one_step else ("rnn",)
    return "tf32" if all(torch._C._get_fp32_precision_getter("cuda", op) == "tf32" for op in settings) else "ieee"


def nearest(speeds: list, *sizes: int) -> list:
    """The rows (T, B, H, ...) nearest to a shape in the logarithms; several if they are equally near. The last sizes
    alone can be given: (H), then any T and B is as near."""
    wanted = [math.log2(max(size, 1)) for size in sizes]
    distances = [math.dist(wanted, map(math.log2, row[3 - len(sizes) : 3])) for row in speeds]
    return [row for row, distance in zip(speeds, distances) if distance <= min(distances) + 1e-9]


def _against(
    index: int, kind: str, variants: tuple[str, ...], sizes: tuple[int, ...], captured: bool = False
) -> str | None:
    """Why the verdict refuses a call of some ``sizes`` (T, B, H), or of any T and B where they are (H)."""
    verdict = verdict_of(index)
    finding = None if isinstance(verdict, str) else verdict["findings"].get(kind)
    if finding is None:
        return verdict if isinstance(verdict, str) else UNPROVEN
    if finding["state"] != RIGHT:
        return f"{COMMAND} on this GPU: {kind} {describe(finding)}"
    extended = "extended" in variants  # then torch has nothing to be measured against
    for variant in variants:
        speeds = finding["speeds"].get(variant)
        if speeds is None or not (speeds or extended):
            return f"{kind}, {variant}, could not run or was not timed on this GPU: {finding['detail']}"
        # The ratio of a launch of that kind; a CUDA graph that was not timed is taken for as fast as calls without one.
        which = -1 if captured else 3
        slow = [] if extended else [row for row in nearest(speeds, *sizes) if not row[which] >= 1]
        if slow:
            T, B, H, ratio = *(row := min(slow, key=lambda row: row[which]))[:3], row[which]
            what = f"{variant}, in a CUDA graph" if captured else variant
            return f"measured at {ratio:.2f} of torch's speed on this GPU at T={T} B={B} H={H} ({what})"
    return None


@functools.lru_cache(maxsize=4096)
def _why_not(call: Call, precision: str, captured: bool) -> str | None:
    (kind,) = kinds_of(call.mode, name_of(call.dtype), (call.grad,), (precision,))
    return _against(call.index, kind, variants_of(call), (call.T, call.B, call.H), captured)


def why_not(call: Call) -> str | None:
    """Why the automatic choice leaves a call on a GPU to others than the kernels; None if it takes them."""
    captured = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    return _why_not(call, precision_of(call.dtype, call.T == 1), captured)


def why_not_in_graphs(
    index: int, mode: str, dtype: torch.dtype, grad: bool, variants: tuple[str, ...], H: int
) -> str | None:
    """As :func:`why_not`, for a call whose T and B may be anything: at the nearest H every shape that was timed has to
    have been no slower than torch, in the precision that is set now."""
    (kind,) = kinds_of(mode, name_of(dtype), (grad,), (precision_of(dtype, "step" in variants),))
    return _against(index, kind, variants, (H,))


# Dynamo calls it while it traces and takes the result for a constant (torch.compiler.assume_constant_result, whose
# import of torch._dynamo would take a second).
why_not_in_graphs._dynamo_marked_constant = True
