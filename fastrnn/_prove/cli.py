"""`python -m fastrnn prove`: measure, write the verdict, and say what will run on what."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from .. import _proof
from .._proof import COMMAND, FAILED, RIGHT, VARIANTS, WRONG, Finding, Gpu, Speed, Verdict
from ..registry import CELLS
from .supervisor import PATIENCE, UNREADY, Patience, outcomes
from .worker import Pair, Row, Task, work

# What most users run comes first: a run that is cut short keeps what it has found.
DTYPES = ("float32", "bfloat16", "float16", "float64")
PAIRS = tuple(Pair(mode, dtype) for dtype in DTYPES for mode in CELLS)
QUICK_SECONDS = 0.02
# With --only someone may be waiting (fastrnn._first_call); what is to be told in time is told before they give up.
HASTY = Patience(60.0, 60.0)
# What says nothing of the kernels, in the words of torch, CUDA's libraries and the supervisor.
_PASSING = re.compile(
    rf"out of memory|OutOfMemory|MemoryError|ALLOC_FAILED|allocate memory|SIG(KILL|TERM|INT)|{UNREADY}"
)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all was right, 1 if something was wrong or failed, 2 if there is nothing to prove, 130 if interrupted; with
    --only 3 if a pair could not be judged, for a reason that may pass."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        device = _device(args.device)
        gpu = _proof.gpu_at(device.index or 0)
        if isinstance(gpu, str):
            raise ValueError(gpu)
        if args.forget:
            there = _proof.forget(gpu)
            print(f"forgotten: {_proof.path_of(gpu)}" if there else f"{gpu.name} has no verdict to forget")
            return 0
        seconds = args.seconds or (QUICK_SECONDS if args.quick else Task.seconds)
        task = Task(tuple(args.only or PAIRS), str(device), seconds=seconds, quick=args.quick)
        return prove(task, gpu, HASTY if args.only else PATIENCE, afresh=not args.only)
    except KeyboardInterrupt:
        print("interrupted: the verdict holds what was found so far", file=sys.stderr)
        return 130
    except (ValueError, OSError) as reason:
        print(f"{COMMAND}: {reason}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Checks the CUDA kernels of every cell and dtype on a GPU against torch.nn, times both, and writes "
        "down what it finds: from then on calls run on them there by themselves, where they were right and no slower.",
    )
    parser.add_argument("--device", default="cuda:0", help="default: %(default)s")
    parser.add_argument("--seconds", type=_positive, help=f"for each time taken (default: {Task.seconds})")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, shorter times: a rougher verdict")
    parser.add_argument(
        "--only", type=_pair, nargs="+", metavar="CELL:DTYPE", help="these pairs alone; what is known of others stays"
    )
    parser.add_argument("--forget", action="store_true", help="delete the verdict on this GPU instead")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text}")
    return value


def _pair(text: str) -> Pair:
    pair = Pair(*text.partition(":")[::2])
    if pair not in PAIRS:
        known = f"{', '.join(CELLS)} with {', '.join(DTYPES)}"
        raise argparse.ArgumentTypeError(f"expected a pair such as LSTM:float32 ({known}), got {text!r}")
    return pair


def _device(text: str) -> torch.device:
    """ValueError where it is not a GPU's name."""
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type != "cuda":
        raise ValueError(f"--device: expected cuda or cuda:N, got {text!r}")
    return torch.device("cuda", device.index or 0)


def prove(task: Task, gpu: Gpu, patience: Patience = PATIENCE, doing: Callable = work, afresh: bool = True) -> int:
    """Measures the task's pairs and keeps the verdict up to date in its file; the exit status.

    ``afresh``: what is known of the GPU from before is forgotten at once, and the file has what this run finds. Else it
    stays, if it counts, and pairs that could not be judged are left out.
    """
    verdict = _proof.add(gpu, {}, afresh)
    heading = f"{gpu.name}, compute capability {gpu.capability}, torch {torch.__version__}"
    print(f"{heading}: {len(task.pairs)} pairs of cell and dtype", flush=True)
    found, unjudged = {}, []
    for pair, rows, why in outcomes(task, _print, patience, doing):
        if why:
            print(f"{pair}: FAILED  {why}", flush=True)
        if not afresh and (passing := _passing(rows, why)):
            unjudged.append(f"{pair} could not be judged: {passing}")
            continue
        found |= findings(pair, rows, why)
        verdict = _proof.add(gpu, found)
    verdict = replace(verdict, findings=found)
    print(f"\n{table(verdict)}\n\n{_closing(verdict)}\nwritten to {_proof.path_of(gpu)}")
    for line in unjudged:
        print(f"{COMMAND}: {line}", file=sys.stderr)
    return 3 if unjudged else 0 if all(finding.state == RIGHT for finding in found.values()) else 1


def _passing(rows: list[Row], why: str) -> str | None:
    """What kept a pair from being judged that may not do so the next time; a wrong result is judged in any case."""
    if any(row.status == "WRONG" for row in rows):
        return None
    said = (why, *(f"{row.shape}: {row.detail}" for row in rows if row.status == "error"))
    return next((text for text in said if _PASSING.search(text)), None)


def _print(row: Row) -> None:
    if row.status != "ok":
        print(f"{row.kind}  {row.shape}  {row.status}  {row.detail}", flush=True)
    else:
        speed = f"  {row.ratio:.2f}x" if row.ratio else ""
        print(f"{row.kind!s:<32} {row.shape:<52} ok{speed}", flush=True)


def findings(pair: Pair, rows: list[Row], why: str) -> dict[str, Finding]:
    """What the rows of a pair say of its kinds; ``why`` it failed, if it did."""
    if why:
        return {str(kind): Finding(FAILED, why) for kind in _proof.kinds_of(*pair)}
    found = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        found[str(kind)] = _finding([row for row in rows if row.kind == kind])
    return found


def _finding(rows: list[Row]) -> Finding:
    """Of one kind: one wrong result makes all of it wrong; a variant that cannot be run is lacking."""
    for row in rows:
        if row.status == "WRONG":
            first, *more = row.detail.split("; ")
            return Finding(WRONG, f"{row.shape}: {first}" + (f" and {len(more)} more" if more else ""))
    lacking = {row.variant: f"{row.shape}: {row.detail}" for row in rows if row.status != "ok"}
    if _proof.PLAIN in lacking:
        return Finding(FAILED, lacking[_proof.PLAIN])
    speeds = {
        variant: [Speed(*row.sizes, row.ratio) for row in rows if row.variant == variant and row.ratio]
        for variant in VARIANTS
    }
    return Finding(RIGHT, "", {variant: measured for variant, measured in speeds.items() if measured}, lacking)


def table(verdict: Verdict) -> str:
    """A line per kind: what was found, and at how many of the shapes timed the kernels serve from now on."""
    lines = [f"{'kind':<32} {'found':<7} {'slowest':>8} {'fastest':>8}  {'backend cuda'}"]
    for name, finding in verdict.findings.items():
        ratios = [speed.ratio for measured in finding.speeds.values() for speed in measured]
        if finding.state != RIGHT:
            lines.append(f"{name:<32} {finding.state:<7} {'':>8} {'':>8}  never: {finding.detail}")
            continue
        ours = sum(ratio >= 1 for ratio in ratios)
        times = f"{min(ratios):>7.2f}x {max(ratios):>7.2f}x" if ratios else f"{'':>17}"
        lines.append(f"{name:<32} {finding.state:<7} {times}  at {ours} of {len(ratios)} shapes timed")
        lines += [f"  without {variant}: {why}" for variant, why in finding.lacking.items()]
    return "\n".join(lines)


def _closing(verdict: Verdict) -> str:
    """What runs on what from now on, in a sentence or two."""
    found = verdict.findings.values()
    right = sum(finding.state == RIGHT for finding in found)
    text = f"{right} of {len(found)} kinds of call are right on this GPU."
    if right:
        text += (
            " Calls of these run on the CUDA kernels from now on where the nearest shape above was no slower than"
            " torch.nn, and on torch.nn's own kernels elsewhere."
        )
    if right < len(found):
        text += " The others stay with torch.nn's own kernels."
    if name := os.environ.get("FASTRNN_BACKEND"):
        text += f" While FASTRNN_BACKEND={name} is set, all of them run on that."
    return text
