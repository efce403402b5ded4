"""What the translated code sees: the registers and the memory of the threads that run it together."""

from __future__ import annotations

import numpy as np

from .memory import CLUSTER, Global, Params, Shared
from .parse import PtxError
from .transactions import TransactionMemory
from .values import DTYPES


class Group(TransactionMemory):
    """Values are arrays over the threads of the group, or scalars where all threads share them; none is changed in
    place. ``chosen`` is None where the group is all threads."""

    def __init__(self, resident, translation, launch, blocks: range, memory: Global, shared: Shared, params: Params):
        self.resident, self.entry = resident, translation.entry
        self.instructions = translation.instructions
        self.memory, self.shared, self.params = memory, shared, params
        self.barriers, self.cluster_window = {}, CLUSTER
        self.total = resident.count
        kinds = [DTYPES[translation.entry.type_of(name)] for name in translation.registers]
        self.poison = [np.bool_(True) if k == np.bool_ else np.frombuffer(b"\xff" * 8, k)[0] for k in kinds]
        self.registers: list = list(self.poison)
        self.threads, self.chosen, self.count = np.arange(self.total), None, self.total
        x, y, _ = launch.grid
        number = np.repeat(np.arange(blocks.start, blocks.stop, dtype=np.uint32), launch.threads)
        slot = np.repeat(np.arange(len(blocks)), launch.threads)
        self.slots = slot if len(blocks) > 1 else slot[:1].reshape(())
        self._special = {"tid.x": np.tile(np.arange(launch.threads, dtype=np.uint32), len(blocks))}
        self._special |= {"ctaid.x": number % x, "ctaid.y": number // x % y}
        self._special = {
            name: a.astype(np.uint32) if a.min() != a.max() else np.uint32(a[0]) for name, a in self._special.items()
        }

    def run(self, code, threads: np.ndarray):
        self.threads, self.count = threads, len(threads)
        self.chosen = None if self.count == self.total else threads
        code.has_run = True
        return code.run(self)

    def get(self, number: int):
        value = self.registers[number]
        return value if self.chosen is None or value.ndim == 0 else value[self.chosen]

    def put(self, number: int, value) -> None:
        if self.chosen is None:
            self.registers[number] = value
            return
        old = self.registers[number]
        whole = np.full(self.total, old) if old.ndim == 0 else old.copy()
        whole[self.chosen] = value
        self.registers[number] = whole

    def special(self, name: str):
        value = self._special[name]
        return value if self.chosen is None or value.ndim == 0 else value[self.chosen]

    def slot(self):
        return self.slots if self.chosen is None or self.slots.ndim == 0 else self.slots[self.chosen]

    # Memory. A line is that of the instruction, for messages.

    def error(self, line: int, why: object) -> PtxError:
        text = next(str(one) for one in self.instructions if one.line == line)
        return PtxError(f"{self.entry.name}, {text}: {why}")

    def named(self, line: int, function, *arguments):
        """What the function returns; an error of it names the instruction."""
        try:
            return function(*arguments)
        except PtxError as why:
            raise self.error(line, why) from None

    def load_param(self, address, size, width, line):
        array, index = self.named(line, self.params.places, address, size, width)
        return tuple(array[index + i] for i in range(width))

    def load_global(self, address, size, width, line):
        array, index = self.named(line, self.memory.places, address, size, width)
        return tuple(array[index + i] for i in range(width))

    def store_global(self, address, size, width, line, words):
        self.resident.work += 1
        array, index = self.named(line, self.memory.places, address, size, width)
        _store(array, index, words)

    def add_global(self, address, value, line):
        self.resident.work += 1
        self.resident.changed = True
        array, index = self.named(line, self.memory.places, np.broadcast_to(address, self.count), 4, 1)
        once, place = np.unique(index, return_inverse=True)
        sums = array[once]
        np.add.at(sums, place, value)
        array[once] = sums

    def load_shared(self, address, size, width, line):
        array, index = self._shared(address, size, width, line, False)
        return tuple(array[index + i] for i in range(width))

    def store_shared(self, address, size, width, line, words, remote=False):
        self.resident.work += 1
        array, index = self._shared(address, size, width, line, remote)
        _store(array, index, words)

    def _shared(self, address, size, width, line, remote):
        array, index, slot = self.named(line, self.shared.places, address, self.slot(), size, width, remote)
        if remote and self.resident.exited.any():
            left = self.resident.exited.reshape(-1, self.resident.threads).all(1)
            if left[slot].any():
                raise self.error(line, "the block whose shared memory this is has left")
        return array, index

    def map(self, address, rank, line):
        return self.named(line, self.shared.map, np.asarray(address) % np.uint32(CLUSTER), rank)

    def whole(self, members, line) -> None:
        if not np.all(members == np.uint32(0xFFFFFFFF)):
            raise self.error(line, "not all threads of the warp are members")

    def trap(self, line) -> None:
        raise self.error(line, "the kernel gave up")


def _store(array, index, words) -> None:
    for i, word in enumerate(words):
        place = index + i
        array[np.broadcast_to(place, np.shape(word)) if np.ndim(place) == 0 else place] = word
