"""The process that measures. What it does to the GPU, or the GPU to it, ends with it."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from .._bench.measure import PRECISIONS, Setting, measure
from .._bench.timing import Pace
from .._proof import Kind
from .shapes import items


class Pair(NamedTuple):
    """A cell in a dtype: what is proven in one go, and fails together."""

    mode: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.mode} {self.dtype}"


@dataclass(frozen=True)
class Task:
    """What is to be measured: on which device and backend, and how long each time is taken."""

    pairs: tuple[Pair, ...]
    device: str
    backend: str = "cuda"
    seconds: float = 0.1
    quick: bool = False


class Row(NamedTuple):
    """One shape: ``status`` as of a Measurement, ``ratio`` 0 where nothing was timed."""

    kind: Kind
    variant: str
    shape: str
    sizes: tuple[int, int, int]
    status: str
    ratio: float
    detail: str


class Ready(NamedTuple):
    """Said once, when the process is up and the device answers."""


class Done(NamedTuple):
    """Said after the last row of a pair."""


class Broken(NamedTuple):
    """Said last, where the device stopped serving this process."""

    why: str


def work(pipe: Connection, task: Task) -> None:
    """Measures the task's pairs in order, and sends a Row for every shape."""
    device = torch.device(task.device)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()
    except Exception as error:  # of whatever type, it is about the device
        pipe.send(Broken(f"{type(error).__name__}: {error}".splitlines()[0]))
        return
    gc.freeze()  # each time taken begins with a collection: it need not look through all of torch
    pipe.send(Ready())
    for pair in task.pairs:
        precisions = PRECISIONS if pair.dtype == "float32" else ("",)
        for item in items(*pair, precisions, task.quick):
            pace = Pace(task.seconds) if item.timed else Pace(0.0, least=1, most=1)
            setting = Setting(
                device, task.backend, torch.get_num_threads(), item.kind.precision, graph="off", pace=pace
            )
            (found,) = measure(item.shape, setting)
            if found.status == "error" and (why := _silence(device)):
                pipe.send(Broken(f"{item.kind}, {item.shape.shape}: {found.detail} ({why})"))
                return
            shape, ratio = item.shape, found.ratio if item.timed and found.status == "ok" else 0.0
            sizes = shape.T, shape.B, shape.H
            pipe.send(Row(item.kind, item.variant, shape.shape, sizes, found.status, ratio, found.detail))
        pipe.send(Done())


def _silence(device: torch.device) -> str | None:
    """Why the device does not answer this process any more, as after an illegal access; None if it does."""
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None
