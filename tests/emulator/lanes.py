"""The lanes of a wavefront without a GPU: they run at once and write down what was ordered, for any order to follow.

What a program of lanes may count on: a lane runs in order, and a wait comes after its mark. Everything else is up to
the device, so a program is right if every interleaving that keeps these two finds all inputs made, and if the allocator
was told of every tensor that a lane uses and another has made.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from fastrnn._call.wavefront import CALLER


class Entry(NamedTuple):
    """``kind`` is op, mark or wait; an op reads and makes memory, the others name a mark."""

    kind: str
    lane: int
    reads: frozenset[int] = frozenset()
    makes: frozenset[int] = frozenset()
    mark: int = 0


def tensors_in(*values) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Log(TorchFunctionMode):
    """Writes down, while it is entered, every operation that makes a tensor, with the lane that it ran on."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.used: set[tuple[int, int]] = set()
        self.lane, self._alive = CALLER, []

    def memory(self, value) -> frozenset[int]:
        found = tensors_in(value)
        self._alive += found  # no address is used twice
        return frozenset(t.untyped_storage().data_ptr() for t in found)

    def op(self, arguments, result) -> None:
        reads = self.memory(arguments)
        makes = self.memory(result) - reads  # a view makes nothing
        if makes:
            self.entries.append(Entry("op", self.lane, reads, makes))

    def order(self, kind: str, lane: int, mark: int) -> None:
        self.entries.append(Entry(kind, lane, mark=mark))

    def use(self, lane: int, tensors: list[Tensor]) -> None:
        self.used |= {(lane, memory) for memory in self.memory(tensors)}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.op([*args, *(kwargs or {}).values()], result)
        return result


class Kernels:
    """The emulated CUDA backend; its layer calls are written down too.

    ``forwards`` has the output of every forward call, ``backwards`` the positions there in the order of the backward
    calls.
    """

    def __init__(self, cuda, log: Log) -> None:
        self._cuda, self._log = cuda, log
        self.forwards: list[int] = []
        self.backwards: list[int] = []

    def __getattr__(self, name):
        return getattr(self._cuda, name)

    def layer_forward(self, *arguments):
        result = self._cuda.layer_forward(*arguments)
        self._log.op(arguments, result)
        self.forwards.append(result[0].data_ptr())
        return result

    def layer_backward(self, *arguments):
        self.backwards.append(self.forwards.index(arguments[5][0].data_ptr()))
        return self._cuda.layer_backward(*arguments)


def lanes_of(log) -> type:
    """In the place of ``_call.wavefront.Lanes``: ``log``, a Log or a graph, is told of lanes, marks and waits."""
    numbers = itertools.count()

    class Lanes:
        def __init__(self, device, count: int) -> None:
            pass

        @contextlib.contextmanager
        def on(self, lane):
            before, log.lane = log.lane, lane
            yield
            log.lane = before

        def mark(self, lane) -> int:
            number = next(numbers)
            log.order("mark", lane, number)
            return number

        def wait(self, lane, mark) -> None:
            log.order("wait", lane, mark)

        def use(self, lane, tensors) -> None:
            log.use(lane, list(tensors))

    return Lanes


def interleaving(entries: list[Entry], last: int) -> Iterator[Entry]:
    """The entries in the order of a device that holds lane ``last`` back for as long as another can go on.

    An op that nothing orders after one of this lane's runs before it here. So over all choices of ``last`` every
    missing order shows.
    """
    queues: dict[int, list[Entry]] = {}
    for entry in entries:
        queues.setdefault(entry.lane, []).append(entry)
    marked = set()

    def can_go(lane: int) -> bool:
        return bool(queues[lane]) and (queues[lane][0].kind != "wait" or queues[lane][0].mark in marked)

    while any(queues.values()):
        ready = [lane for lane in queues if can_go(lane)]
        assert ready, "every lane waits"
        entry = queues[min(ready, key=lambda lane: lane == last)].pop(0)
        if entry.kind == "mark":
            marked.add(entry.mark)
        yield entry


def made_too_late(entries: list[Entry], last: int) -> list[Entry]:
    """The ops that ran before their inputs were made, with lane ``last`` held back."""
    unmade, late = {memory for entry in entries for memory in entry.makes}, []
    for entry in interleaving(entries, last):
        if entry.reads & unmade:
            late.append(entry)
        unmade -= entry.makes
    return late


def is_ordered(entries: list[Entry]) -> bool:
    return not any(made_too_late(entries, lane) for lane in {entry.lane for entry in entries})


def crossing(entries: list[Entry]) -> set[tuple[int, int]]:
    """(lane, memory) wherever an op of a lane reads what another lane has made; the caller made what no op did."""
    maker = {memory: entry.lane for entry in entries for memory in entry.makes}
    return {(e.lane, m) for e in entries for m in e.reads if maker.get(m, CALLER) != e.lane}
