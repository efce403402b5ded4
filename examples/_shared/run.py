"""The run of a program: training in turns, checkpoints, the table, the comparison and the figure."""

from __future__ import annotations

import argparse
import math
import pickle
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fastrnn

from .arguments import LIBRARIES, NAMES, UsageError, recipe_of
from .files import interrupt_postponed, set_aside, write_atomically
from .learner import OPENING_STEPS, Epoch, Learner

OPENING_LIMIT, OPENING_LIMIT_TF32 = 1e-4, 1e-2
"""Relative differences of loss beyond which the sides do not learn the same thing.

Kernels round differently, and training amplifies that, so the first steps are the sharp test. On a GPU either side may
round products to TF32, which has 10 bits.
"""
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def run(learner: type[Learner], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Run a program; the exit status is 0, 1 (the sides disagree), 2 (bad arguments) or 130 (Ctrl-C)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        sides = prepare(learner, args)
    except (UsageError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    parameters = sum(parameter.numel() for parameter in sides[0].model.parameters())
    print(f"model: {parameters:,} parameters\nplace: {describe_place(args.device)}")
    try:
        train(sides, args)
    except KeyboardInterrupt:
        print_interrupted(sides, args, parser.prog, argv)
        return INTERRUPTED
    except FloatingPointError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    return finish(sides, args, parser.prog)


def prepare(learner: type[Learner], args: argparse.Namespace) -> list[Learner]:
    """Make the sides with equal weights; with --resume, in the state of their checkpoints."""
    impls = list(LIBRARIES) if args.impl == "both" else [args.impl]
    args.out.mkdir(parents=True, exist_ok=True)
    states = {impl: read_checkpoint(args, impl) for impl in impls} if args.resume else {}
    if args.resume and not any(states.values()):
        raise UsageError(f"expected a checkpoint in {args.out}, got none: run without --resume first")
    data = learner.load(args)
    sides = [learner(impl, args, data) for impl in impls]
    for side in sides[1:]:
        side.model.load_state_dict(sides[0].model.state_dict())
    for side in sides:
        if states.get(side.impl):
            side.load_state_dict(states[side.impl])
    if not args.resume:
        for path in set_aside(args.out):
            print(f"an earlier run's checkpoint is kept as {path}")
    return sides


def checkpoint_path(folder: Path, impl: str) -> Path:
    """Where the checkpoint of one side lies."""
    return folder / f"checkpoint-{impl}.pt"


def read_checkpoint(args: argparse.Namespace, impl: str) -> dict[str, Any] | None:
    """The checkpoint of one side, None if there is none; UsageError if it belongs to another recipe."""
    path = checkpoint_path(args.out, impl)
    if not path.exists():
        return None
    try:
        # weights_only: tensors and plain values, so a checkpoint from a stranger cannot run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["recipe"]
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise UsageError(f"expected a checkpoint of this program, got {path} ({error})") from None
    wanted = recipe_of(args)
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if names:
        differences = "; ".join(f"--{name} is {found.get(name)} there, {wanted.get(name)} here" for name in names)
        raise UsageError(f"expected a checkpoint with the arguments of this run, got {path}, whose {differences}")
    return state


def train(sides: Sequence[Learner], args: argparse.Namespace) -> None:
    """Train all sides to their ends, saving each epoch before it is reported."""
    for side in sides:
        side.warm_up()
    is_new = True
    for side in sides:
        for epoch in side.history:
            is_new = print_line(side, epoch, is_new)
    for side in turns(sides, args.epochs):
        epoch = side.train_epoch(progress_bar(side, args.epochs))
        if not math.isfinite(epoch.loss):  # and leave the last good checkpoint alone
            raise FloatingPointError(f"expected a finite loss, got {epoch.loss} in epoch {epoch.number}: try --lr")
        with interrupt_postponed():
            side.history.append(epoch)
            write_atomically(checkpoint_path(args.out, side.impl), partial(torch.save, side.state_dict()))
            is_new = print_line(side, epoch, is_new)


def turns(sides: Sequence[Learner], epochs: int) -> Iterator[Learner]:
    """Whose epoch is next, until all are done. Who goes first changes every epoch, so that order favours neither."""
    for number in range(1, epochs + 1):
        for side in sides if number % 2 else reversed(sides):
            if len(side.history) < number and not side.is_finished():
                yield side


def progress_bar(side: Learner, epochs: int) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """A progress bar for the batches of an epoch."""
    name = f"epoch {len(side.history) + 1}/{epochs} {NAMES[side.impl]}"
    # Into a file or a pipe every refresh is one more line to read, so refresh rarely there.
    every = 0.2 if sys.stderr.isatty() else 20.0
    return partial(tqdm, desc=name, unit="step", leave=False, mininterval=every, dynamic_ncols=True)


def print_line(side: Learner, epoch: Epoch, with_head: bool) -> bool:
    """One line of the table, and its head before the first; returns False, since the head is printed now."""
    if with_head:
        print(
            f"{'epoch':>5}  {'layers':<9}{'loss':>10}" + "".join(f"{name:>18}" for name in epoch.metrics) + "   seconds"
        )
    values = "".join(f"{value:>18.4f}" for value in epoch.metrics.values())
    print(f"{epoch.number:>5}  {NAMES[side.impl]:<9}{epoch.loss:>10.4f}{values}{epoch.seconds:>10.2f}", flush=True)
    return False


def print_interrupted(sides: Sequence[Learner], args: argparse.Namespace, program: str, argv: Sequence[str]) -> None:
    """What is saved, and how to go on."""
    if not any(side.history for side in sides):
        print("\ninterrupted before the first epoch was finished: nothing to resume")
        return
    saved = ", ".join(f"{NAMES[side.impl]} {len(side.history)}" for side in sides)
    print(f"\ninterrupted; finished epochs are saved in {args.out}: {saved}")
    command = shlex.join(["python", f"examples/{program}", *argv, *([] if args.resume else ["--resume"])])
    print(f"go on with: {command}")


@dataclass(frozen=True)
class Comparison:
    """Two sides of one recipe, over the epochs that both have."""

    opening: float  # largest relative difference of loss in the first steps, before rounding errors have grown
    loss: float  # largest absolute difference of an epoch's loss
    metrics: dict[str, float]  # and of each metric
    seconds: tuple[float, float]  # of training, the median epoch
    ratios: list[float]  # the first side's seconds over the second's, epoch by epoch


def compare(sides: Sequence[Learner]) -> Comparison:
    """Compare two sides epoch by epoch."""
    pairs = list(zip(sides[0].history, sides[1].history))
    first, second = pairs[0]
    names = first.metrics
    return Comparison(
        opening=largest([abs(a - b) / max(abs(a), 1e-6) for a, b in zip(first.opening, second.opening)]),
        loss=largest([abs(a.loss - b.loss) for a, b in pairs]),
        metrics={name: largest([abs(a.metrics[name] - b.metrics[name]) for a, b in pairs]) for name in names},
        # The median, because a burst of other work on the machine can make a single epoch several times slower.
        seconds=(statistics.median(a.seconds for a, _ in pairs), statistics.median(b.seconds for _, b in pairs)),
        ratios=[a.seconds / b.seconds for a, b in pairs],
    )


def largest(values: Sequence[float]) -> float:
    """The maximum; NaN if there is one, which Python's own max may overlook."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def finish(sides: Sequence[Learner], args: argparse.Namespace, program: str) -> int:
    """Compare, report and draw; returns the exit status."""
    from .plot import draw

    print()
    status = 0
    if len(sides) == 2:
        result = compare(sides)
        limit = opening_limit(sides[0])
        is_equal = result.opening <= limit
        status = int(not is_equal)
        differences = ", ".join(
            f"{name} {value:.2g}" for name, value in {"loss": result.loss, **result.metrics}.items()
        )
        ratio = statistics.median(result.ratios)  # neighbours in time, so that other work on the machine cancels out
        verdict = "the two learn the same" if is_equal else f"NOT EQUAL, expected at most {limit:.0e}"
        print(f"parity: losses of the first {OPENING_STEPS} steps differ by {result.opening:.1e} (relative): {verdict}")
        print(f"        largest difference over all epochs: {differences}")
        print(
            f"speed:  torch.nn {result.seconds[0]:.2f} s an epoch, fastrnn {result.seconds[1]:.2f} s (median epochs, "
            f"training alone): {ratio:.2f}x ({min(result.ratios):.2f}x to {max(result.ratios):.2f}x by epoch)"
        )
    for side in sides:
        for line in side.report():
            print(f"{NAMES[side.impl]}: {line}")
    figure = args.out / "curves.png"
    title = f"{program}, {describe_place(args.device)}"
    write_atomically(figure, lambda path: draw({NAMES[side.impl]: side.history for side in sides}, title, path))
    print(f"figure: {figure}")
    return status


def opening_limit(side: Learner) -> float:
    """How far the losses of the first steps may be apart."""
    if side.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return OPENING_LIMIT_TF32
    return OPENING_LIMIT


def describe_place(device: str) -> str:
    """Device and versions in a few words."""
    place = torch.device(device)
    if place.type == "cuda":
        where = torch.cuda.get_device_name(place)
    else:
        where = f"{place.type} ({platform.machine()}, {torch.get_num_threads()} thread(s))"
    return f"{where}, torch {torch.__version__}, fastrnn {fastrnn.__version__}"
