"""The process that measures a cell in a dtype: shapes for every kernel that the plan can choose, and every variant of a
call. A crash or a hang ends with this process."""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, product
from typing import NamedTuple

import torch

from .._kernels import ops
from ..bench.case import Case
from ..bench.measure import Measurement, Setting, measure
from ..bench.timing import Pace
from ..registry import ALL_CELLS, CELLS, Cell
from . import proof
from .proof import AUTO, FAILED, RIGHT, STEP, WRONG
from .prove import BROKEN, FULL_S, PASSING, QUICK_S

CHECK = Pace(0.0, least=1, most=1)
SCARCE = 2**30
"""Bytes free on the device below which an error may be for want of memory: CUDA's libraries do not tell by type."""


# Variant, (T, B, I, H), other fields of the case; what is only checked is small, and odd where it can be.
_CHECKED = (
    ("plain", (7, 3, 5, 6), {}),
    ("plain", (12, 33, 24, 136), {}),
    ("directions", (9, 12, 31, 72), {"directions": 2}),
    ("packed", (11, 9, 24, 40), {"directions": 2, "packed": True}),
    ("layers", (9, 5, 24, 40), {"layers": 3}),
    ("projected", (9, 9, 24, 40), {"directions": 2, "P": 17}),
    ("step", (1, 3, 5, 6), {"call": "step"}),
    ("extended", (9, 12, 31, 72), {"resets": 0.2}),
    ("extended", (11, 9, 24, 40), {"directions": 2, "packed": True, "call": "lengths"}),
    ("masked", (9, 12, 31, 72), {"option": "recurrent_dropout=0.2"}),
    ("zoned", (9, 12, 31, 72), {"option": "zoneout=0.2"}),
    ("headed", (9, 12, 31, 72), {"option": "num_heads=4"}),
)
_CHECKED_MORE = (
    ("plain", (3, 256, 40, 1024), {}),  # a library product a step
    ("plain", (2, 20, 64, 1152), {}),  # too large for a cluster
    ("plain", (5, 9, 31, 72), {"directions": 2, "call": "save"}),
    ("layers", (256, 4, 24, 64), {"layers": 3}),  # long enough for chunks of time
    ("extended", (9, 12, 31, 72), {"call": "all_states"}),
)
_TIMED = (
    ("plain", (1, 1, 256, 256), {}),
    ("plain", (64, 32, 128, 128), {}),
    ("plain", (64, 64, 512, 512), {}),
    ("plain", (256, 1, 128, 128), {}),
    ("step", (1, 64, 512, 512), {"call": "step"}),
    ("layers", (64, 32, 256, 256), {"layers": 2}),
    ("directions", (64, 32, 256, 256), {"directions": 2}),
    ("packed", (64, 32, 256, 256), {"packed": True}),
    ("projected", (64, 32, 256, 256), {"P": 64}),
)
_TIMED_MORE = (
    *(("plain", (64, B, H, H), {}) for H in (64, 128, 256, 512, 768, 1024, 2048) for B in (1, 16, 128)),
    *(("plain", (1024, B, H, H), {}) for B, H in ((1, 256), (16, 256), (16, 768), (64, 512))),
    ("plain", (1, 64, 1024, 1024), {}),
    ("step", (1, 1, 256, 256), {"call": "step"}),
    ("step", (1, 1, 1024, 1024), {"call": "step"}),
    ("step", (1, 256, 1024, 1024), {"call": "step"}),
    ("layers", (32, 16, 64, 64), {"layers": 4}),
    ("layers", (64, 32, 1024, 1024), {"layers": 2}),
    ("directions", (64, 32, 1024, 1024), {"directions": 2}),
    ("packed", (500, 32, 512, 512), {"layers": 2, "directions": 2, "packed": True}),
)


class Shape(NamedTuple):
    """A case of a variant of a call. What is not ``timed`` is run as long as it takes to check it."""

    variant: str
    timed: bool
    case: Case


def shapes_of(mode: str, dtype: str, quick: bool) -> Iterator[tuple[str, str, Shape]]:
    """All that is measured of a cell in a dtype, kind by kind: the kind, its precision and a shape."""
    cell = ALL_CELLS[mode]
    checked = _CHECKED + (() if quick else _CHECKED_MORE)
    for precision, grad in product(proof.PRECISIONS.get(dtype, ("",)), (False, True)):
        timed = _TIMED if mode in CELLS else ()
        if timed and not quick and precision != "ieee":  # which few set
            timed += _TIMED_MORE
        rows = [*((row, False) for row in checked), *((row, True) for row in timed)]
        (kind,) = proof.kinds_of(mode, dtype, (grad,), (precision,))
        fixed = {"dtype": dtype, "mode": "training" if grad else "forward", "nonlinearity": cell.nonlinearity or ""}
        for (variant, sizes, more), is_timed in rows:
            if (variant == "projected" and not cell.projects) or (variant == "headed" and not _has_heads(cell)):
                continue
            case = Case(cell.layer, *sizes, **fixed, **more)
            if mode == "SLSTM_EXP":
                case = replace(case, option=",".join(filter(None, ("forget_gate=exp", case.option))))
            yield kind, precision, Shape(variant, is_timed, case)


def _has_heads(cell: Cell) -> bool:
    """Units that meet in no product, or in a norm of all of them, cannot be divided."""
    return cell.recurrent and not cell.statistics


def main(task: dict, device: torch.device, backend: str = "cuda") -> int:
    """Returns the exit code. Writes findings to stdout, where nothing else may write."""
    say = _speech()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if why := _silence(device):
        say(why=why)
        return PASSING
    gc.freeze()  # a collection precedes each timing: keep torch's objects out of it
    pace, threads = Pace(QUICK_S if task["quick"] else FULL_S), torch.get_num_threads()
    found: list[dict[str, dict]] = []
    for tier in task["tiers"]:
        if tier:
            ops.override_tier(tier)
        rows: dict[str, list[tuple[Shape, list[Measurement]]]] = {}
        for kind, precision, shape in shapes_of(task["mode"], task["dtype"], task["quick"]):
            say(at=", ".join(filter(None, (kind, str(shape.case.shape), tier))))
            graph = "on" if shape.timed and not task["quick"] else "off"
            setting = Setting(device, backend, threads, precision, graph, pace=pace if shape.timed else CHECK)
            measured = measure(shape.case, setting)
            rows.setdefault(kind, []).append((shape, measured))
            failure = next((row for row in measured if row.status == "error"), None)
            if failure and (why := _silence(device)):
                say(why=f"{failure.detail} ({why})")
                return BROKEN
            if failure and _is_memory_short(failure.cause, device):
                say(why=failure.detail)
                return PASSING
        found.append({kind: finding_of(measured) for kind, measured in rows.items()})
        say(findings={kind: faster_of(*(each[kind] for each in found)) for kind in rows})
    return 0


def _speech() -> Callable[..., None]:
    """A function that writes a message to stdout; other writes to stdout go to stderr from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lambda **message: print(json.dumps(message), file=out, flush=True)


def _end_with_parent() -> None:
    """Ends this process when stdin ends: the parent holds it open as long as it lives."""
    while os.read(0, 1):  # no lock of sys.stdin is held when this process ends
        pass
    os._exit(PASSING)


def _silence(device: torch.device) -> str | None:
    """Why the device does not answer this process, as after an illegal access; None if it does."""
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).add_(1).item()
    except Exception as error:  # of whatever type, it is about the device
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _is_memory_short(cause: type[Exception] | None, device: torch.device) -> bool:
    """Whether an error may be for want of memory, and no fault of the kernels."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        if torch.cuda.mem_get_info(device)[0] < SCARCE:
            return True
    return cause is not None and issubclass(cause, (torch.OutOfMemoryError, MemoryError))


def finding_of(rows: list[tuple[Shape, list[Measurement]]]) -> dict:
    """The finding on a kind: one wrong result makes it wrong; a variant that cannot run is left out."""
    every = [(shape, found) for shape, measured in rows for found in measured]
    wrong = [f"{shape.case.shape}: {found.worst}" for shape, found in every if found.status == "WRONG"]
    if wrong:
        return {"state": WRONG, "detail": wrong[0], "speeds": {}}
    lacking = {
        shape.variant: f"{shape.case.shape}: {found.detail}"
        for shape, found in every
        if found.status == "error" or (found.status == "refused" and found.launch == "eager")
    }
    speeds = {shape.variant: [] for shape, _ in rows if shape.variant not in lacking}
    for shape, measured in rows:
        if shape.timed and shape.variant in speeds:
            ratios = [round(found.ratio, 4) for found in measured if found.status == "ok"]
            speeds[shape.variant].append((shape.case.T, shape.case.B, shape.case.H, *ratios))
    detail = "; ".join(f"without {variant}, {why}" for variant, why in lacking.items())
    return {"state": RIGHT if "plain" in speeds else FAILED, "detail": detail, "speeds": speeds}


def faster_of(steps: dict, resident: dict | None = None) -> dict:
    """The finding on a kind that was measured with a launch a step, and then with resident kernels: at each shape that
    was timed the tier that is faster over all variants. Resident kernels that are not right, or lack a variant, serve
    no call."""
    if resident is None or steps["state"] != RIGHT:
        return steps
    lacking = steps["speeds"].keys() - resident["speeds"].keys()
    if resident["state"] != RIGHT or lacking:
        why = f"without resident kernels, {resident['state']}: {resident['detail']}"
        return {**steps, "detail": "; ".join(filter(None, (steps["detail"], why)))}
    pairs = {
        variant: list(zip(rows, resident["speeds"][variant], strict=True)) for variant, rows in steps["speeds"].items()
    }
    gains: dict[tuple[int, ...], list[float]] = {}
    for before, after in chain.from_iterable(pairs.values()):
        gains.setdefault(before[:3], []).append(after[3] / before[3])
    ahead = {shape: math.prod(ratios) > 1 for shape, ratios in gains.items()}
    speeds = {variant: [pair[ahead[pair[0][:3]]] for pair in rows] for variant, rows in pairs.items()}
    return {**steps, "speeds": speeds, "tiers": [(*shape, AUTO if ahead[shape] else STEP) for shape in ahead]}


if __name__ == "__main__":
    given = json.loads(sys.argv[-1])
    sys.exit(main(given, torch.device("cuda", given["index"])))
