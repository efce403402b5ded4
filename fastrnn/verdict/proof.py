"""What is known of the CUDA kernels on the GPU at hand, and what follows for a call (``docs/verdict.md``)."""

from __future__ import annotations

import functools
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .._kernels import ops
from .._spec import Call
from ..registry import ALL_CELLS, CELLS
from . import kept

COMMAND = "python -m fastrnn prove"
OPT_IN = "opt in with fastrnn.backend('cuda')"
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


class Verdict(NamedTuple):
    """What counts for a GPU: findings by kind, each with its ``source``, and in a line where they are from."""

    gpu: Gpu
    findings: dict[str, dict]
    summary: str


def unproven(gpu: Gpu, kernels: str = "the CUDA kernels") -> str:
    """What to do for kernels that nothing is known of."""
    return (
        f"{kernels} have not been proven on this GPU ({gpu.name}, compute capability {gpu.capability}): `{COMMAND}` "
        f"does it once (--quick in a few minutes), or {OPT_IN}"
    )


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
    return finding["state"] + (text if finding["state"] == RIGHT and ratios else "") + detail


def gpu_at(index: int) -> Gpu | str:
    """The GPU, or why there are no kernels to prove on it. Starts no work on the GPU."""
    missing = ops.missing("cuda", index)
    if missing:
        return missing
    if index >= torch.cuda.device_count():
        return f"torch {torch.__version__} sees {torch.cuda.device_count()} GPUs, no cuda:{index}"
    capability = torch.cuda.get_device_capability(index)
    return Gpu(torch.cuda.get_device_name(index), "{}.{}".format(*capability))


def path_of(gpu: Gpu) -> Path:
    """The file of what was measured of a GPU on this machine."""
    return kept.path_of("verdict", f"{gpu.name}-{gpu.capability}")


def table_of(capability: str) -> Path:
    """The file that the package may have for all GPUs of a compute capability: a verdict as ``prove`` wrote it."""
    return Path(__file__).with_name(f"proven-{capability}.json")


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
    """Adds findings to the machine's file. A file that no longer counts is replaced."""
    known = read(gpu)
    before = known["findings"] if isinstance(known, dict) else {}
    verdict = {"gpu": gpu, "date": kept.today(), "stamp": stamp(), "findings": before | findings}
    kept.write(path_of(gpu), verdict)
    reread()


def forget(gpu: Gpu) -> bool:
    """Deletes the machine's file; whether there was one."""
    there = kept.remove(path_of(gpu))
    reread()
    return there


def read(gpu: Gpu) -> dict[str, Any] | str | None:
    """What was measured on this machine; in words why it does not count; None if nothing was."""
    return kept.read(path_of(gpu), partial(_check, list(gpu)), stamp())


def _read_table(gpu: Gpu) -> dict[str, Any] | str | None:
    """What the package has for the GPU, whatever the driver, torch and the build; likewise."""
    path = table_of(gpu.capability)
    if ops.TIER and path.exists():
        return f"{path} does not count with FASTRNN_CUDA_TIER={ops.TIER}"
    return kept.read(path, partial(_check, [gpu.capability]), {})


def _check(gpu: list[str], verdict: dict[str, Any]) -> None:
    """Raises one of ``kept.DAMAGE`` for what is no verdict on a GPU that ends so."""
    if len(verdict["gpu"]) != 2 or verdict["gpu"][-len(gpu) :] != gpu:
        raise ValueError(f"it is about {verdict['gpu']}")
    for finding in verdict["findings"].values():
        if finding["state"] not in (RIGHT, WRONG, FAILED):
            raise ValueError(f"unknown state {finding['state']!r}")
        for speeds in finding["speeds"].values():
            nearest([(T, B, H, float(first), *map(float, more)) for T, B, H, first, *more in speeds], 1, 1, 1)
        describe(finding)
    _tiers_in(verdict["findings"])
    str(verdict["date"])


def in_force(gpu: Gpu) -> Verdict | str:
    """What the table says, and before it what was measured on this machine; or why nothing counts."""
    findings: dict[str, dict] = {}
    lines, notes = [], []
    for found, source in (_read_table(gpu), "{gpu[0]}, {date}, shipped with fastrnn"), (read(gpu), "this GPU, {date}"):
        if isinstance(found, str):
            notes.append(found)
        elif found and (mine := found["findings"]):
            where = source.format(**found)
            findings |= {kind: finding | {"source": where} for kind, finding in mine.items()}
            right = sum(finding["state"] == RIGHT for finding in mine.values())
            lines.insert(0, f"proven on {where}: {right} of {len(mine)} kinds of call right")
    if not findings:
        return unproven(gpu) + "".join(f" ({note})" for note in notes)
    return Verdict(gpu, findings, "; ".join(lines + notes))


@functools.cache
def verdict_of(index: int) -> Verdict | str:
    """What counts for ``cuda:index``, or why nothing does; read once per process. The kernels follow its tiers."""
    gpu = gpu_at(index)
    if isinstance(gpu, str):
        return gpu
    verdict = in_force(gpu)
    ops.keep_tiers(index, [] if isinstance(verdict, str) else _tiers_in(verdict.findings))
    return verdict


def _tiers_in(findings: dict[str, dict]) -> list[tuple[int, torch.dtype, bool, bool, list]]:
    """The tiers of findings as ``ops.keep_tiers`` takes them."""
    kinds = []
    for kind, finding in findings.items():
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
    if isinstance(verdict, str):
        return verdict
    finding = verdict.findings.get(kind)
    if finding is None:
        return unproven(verdict.gpu, f"the kernels of {kind}")
    where = f"on {finding['source']}"
    if finding["state"] != RIGHT:
        return f"{COMMAND} {where}: {kind} {describe(finding)}"
    timed = "extended" not in variants and kind.split()[0] in CELLS  # else torch has nothing to be measured against
    for variant in variants:
        speeds = finding["speeds"].get(variant)
        if speeds is None or (timed and not speeds):
            return f"{kind}, {variant}, could not run or was not timed {where}: {finding['detail']}"
        # A capture has to be no slower without a CUDA graph too: what warms it up then makes the kernels ready for it.
        for launch, which in (("", 3), (", in a CUDA graph", -1))[: 1 + captured]:
            slow = [row for row in nearest(speeds, *sizes) if not row[which] >= 1] if timed else []
            if slow:
                T, B, H, ratio = *(row := min(slow, key=lambda row: row[which]))[:3], row[which]
                what = f"T={T} B={B} H={H} ({variant}{launch})"
                return f"measured at {ratio:.2f} of torch's speed {where}, at {what}"
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
