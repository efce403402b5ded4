"""Files that are whole or not there, and Ctrl-C that waits for them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


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


def set_aside(folder: Path) -> list[Path]:
    """Rename the checkpoints of an earlier run, so that a new one neither destroys them nor is mixed up with them."""
    kept = []
    for path in sorted(folder.glob("checkpoint-*.pt")):
        os.replace(path, path.with_suffix(".pt.previous"))
        kept.append(path.with_suffix(".pt.previous"))
    return kept
