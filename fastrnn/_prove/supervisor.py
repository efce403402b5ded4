"""The process that watches: it starts the one that measures, and outlives whatever becomes of it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .worker import Broken, Done, Pair, Ready, Row, Task, work


@dataclass(frozen=True)
class Patience:
    """Seconds without a word before a process is ended: until it is ready, and until each of its rows."""

    start: float = 180.0
    row: float = 90.0


PATIENCE = Patience()
UNREADY = "before anything was measured"


class _Child:
    """A process that works on a task."""

    def __init__(self, doing: Callable, task: Task):
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=doing, args=(theirs, task), daemon=True)
        self._process.start()
        theirs.close()  # the end of the process is then the end of the pipe

    def hear(self, seconds: float) -> Ready | Row | Done | Broken:
        """Its next word; Broken too if there is none."""
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            return Broken(_end(self._process.exitcode))
        return Broken(f"no result within {seconds:g} seconds")

    def stop(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        self._process.join(10)
        self._pipe.close()


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with exit status {code}"


def outcomes(
    task: Task, on_row: Callable[[Row], None], patience: Patience = PATIENCE, doing: Callable = work
) -> Iterator[tuple[Pair, list[Row], str]]:
    """(pair, its rows, why it failed or "") for every pair of the task, as soon as it is known.

    A pair whose process ends or falls silent has failed, and the others get a new one. Where a process does not even
    get ready, all that are left have failed.
    """
    left = list(task.pairs)
    while left:
        child = _Child(doing, replace(task, pairs=tuple(left)))
        try:
            said = child.hear(patience.start)
            if isinstance(said, Broken):
                for pair in left:
                    yield pair, [], f"{said.why}, {UNREADY}"
                return
            while left and not isinstance(said, Broken):
                rows: list[Row] = []
                while isinstance(said := child.hear(patience.row), Row):
                    rows.append(said)
                    on_row(said)
                yield left.pop(0), rows, said.why if isinstance(said, Broken) else ""
        finally:
            child.stop()
