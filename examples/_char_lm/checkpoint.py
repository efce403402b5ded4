"""Checkpoints: saving and resuming."""

from __future__ import annotations

import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _shared.files import write_atomically

from .train import Recipe, Run


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued; the message says why."""


def checkpoint_path(folder: Path, impl: str) -> Path:
    """Where the checkpoint of one side lies."""
    return folder / f"checkpoint-{impl}.pt"


def save(run: Run, folder: Path) -> None:
    """Write the run's checkpoint. Where several processes share the run, all of them call this and one writes."""
    state = run.state_dict()
    run.saved = len(run.history)
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
