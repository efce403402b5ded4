"""Files that are whole or not there: checkpoints and everything else the program writes."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .train import Recipe, Run


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued; the message says why."""


def checkpoint_path(folder: Path, impl: str) -> Path:
    """Where the checkpoint of one side lies."""
    return folder / f"checkpoint-{impl}.pt"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Whoever opens `path`, at whatever moment the program dies, finds the old file or the new one, never a part of one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def interrupt_postponed() -> Iterator[None]:
    """Hold back a Ctrl-C until the block is done, so that a finished epoch is also a saved one."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals, and only it may set a handler
        return
    caught: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if caught:
            signal.raise_signal(signal.SIGINT)


def save(run: Run, folder: Path) -> None:
    """Write the run's checkpoint. Where several processes share the run, all of them call this and one writes."""
    state = run.state_dict()
    if run.writes:
        write_atomically(checkpoint_path(folder, run.impl), lambda path: torch.save(state, path))


def read(folder: Path, impl: str, recipe: Recipe) -> dict[str, Any] | None:
    """The checkpoint of one side, None if there is none; CheckpointError if it belongs to another recipe."""
    path = checkpoint_path(folder, impl)
    if not path.exists():
        return None
    try:
        # weights_only: tensors and plain values, so a checkpoint from a stranger cannot run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["arguments"]
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise CheckpointError(f"expected a checkpoint of this program, got {path} ({error})") from None
    wanted = asdict(recipe)
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if names:
        differences = "; ".join(
            f"{name.replace('_', '-')} is {found.get(name)!r} there, {wanted.get(name)!r} here" for name in names
        )
        raise CheckpointError(f"expected a checkpoint with the arguments of this run, got {path}, whose {differences}")
    return state


def set_aside(folder: Path) -> list[Path]:
    """Rename the checkpoints of an earlier run, so that a new one neither destroys them nor is mixed up with them."""
    kept = []
    for path in sorted(folder.glob("checkpoint-*.pt")):
        os.replace(path, path.with_suffix(".pt.previous"))
        kept.append(path.with_suffix(".pt.previous"))
    return kept
