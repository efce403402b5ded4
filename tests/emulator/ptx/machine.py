"""Runs a launch: blocks of code over all threads that stand there, until every thread has left.

Threads that stand at the same basic block run it together, the one that comes first in the text before the others; so
a warp that has diverged comes together again. What needs a whole warp (mma, shfl, the aligned barriers) waits for it.
The blocks of a cluster, or of a cooperative grid, are there at the same time; of other grids, as many as are quick.

``order`` is who runs ahead of the others for as long as it can: nobody ("together"), the first block ("blocks"), the
first warp ("warps") or the last one ("last warp"). A missing barrier shows where the one that runs ahead, or one of
those left behind, reads the wrong value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .blocks import EXIT, Translation
from .group import Group
from .memory import Global, Params, Shared
from .parse import PtxError

WARP = 32
MOST_THREADS = 4096  # at the same time, where the launch does not ask for more
MOST_RUNS = 5_000_000  # of basic blocks, in a launch


@dataclass
class Launch:
    grid: tuple[int, int, int]
    cluster: int  # blocks along x
    threads: int  # of a block
    shared_bytes: int
    cooperative: bool
    parameters: bytes


def run(translation: Translation, launch: Launch, memory: Global, order: str = "together") -> None:
    blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
    if launch.threads % WARP:
        raise PtxError(f"blocks of {launch.threads} threads, which are no whole warps")
    least = blocks if launch.cooperative else launch.cluster
    step = least * max(1, MOST_THREADS // (least * launch.threads))
    with np.errstate(all="ignore"):
        for first in range(0, blocks, step):
            Resident(translation, launch, memory, range(first, min(first + step, blocks)), order).run()


class Resident:
    """The blocks that are there at the same time, in shared memory of their own."""

    def __init__(self, translation, launch: Launch, memory: Global, blocks: range, order: str) -> None:
        self.code, self.translation = translation.blocks, translation
        self.threads, self.count = launch.threads, len(blocks) * launch.threads
        self.cluster_threads = launch.cluster * launch.threads
        shared = Shared(len(blocks), launch.shared_bytes, launch.cluster)
        params = Params(launch.parameters)
        self.group = Group(self, translation, launch, blocks, memory, shared, params)
        self.unit = {"together": self.count, "blocks": launch.threads}.get(order, WARP)
        self.ready: list[dict[int, list[np.ndarray]]] = [{} for _ in range(self.count // self.unit)]
        turns = range(len(self.ready))
        self.turn, self.turns = 0, turns[::-1] if order == "last warp" else turns
        self.stalled: dict[int, np.ndarray] = {}  # parts of warps
        self.polling: list[tuple[int, np.ndarray]] = []
        self.work = self.work_seen = 0  # what may let a polling thread go on
        self.changed = False  # what it may poll
        self.polled_at = np.full(self.count, -1)
        self.exited = np.zeros(self.count, bool)
        self.waits_at = np.full(self.count, -1)  # the code whose barrier a thread waits at
        self.arrived = np.zeros(len(blocks), int)
        self.arrivals, self.passed = np.zeros(self.count, int), np.zeros(self.count, int)  # cluster barriers
        self.waits_for_cluster = np.zeros(self.count, bool)

    def run(self) -> None:
        self.push(0, np.arange(self.count))
        for _ in range(MOST_RUNS):
            if not self.find_turn():
                if self.exited.all():
                    return
                self.wake()
                continue
            self.step()
        raise PtxError(f"{self.translation.entry.name}: no end after {MOST_RUNS} basic blocks")

    def find_turn(self) -> bool:
        """The first part of the threads that can go on has its turn; who polls looks at every change."""
        if self.changed and self.polling and len(self.ready) > 1:
            self.retry()
        self.changed = False
        for turn in self.turns:
            if self.ready[turn]:
                self.turn = turn
                return True
        return False

    def wake(self) -> None:
        """Nobody can go on, but those who poll."""
        if not self.polling or self.work == self.work_seen:
            raise PtxError(f"{self.translation.entry.name}: no thread can go on: {self.places()}")
        self.work_seen = self.work
        self.retry()

    def retry(self) -> None:
        polling, self.polling = self.polling, []
        for pc, threads in polling:
            self.split(pc, threads)

    def push(self, pc: int, threads: np.ndarray) -> None:
        if pc == EXIT:
            return self.leave(threads)
        if len(threads) and self.code[pc].polls:  # once, and again after a change
            again = self.polled_at[threads] == self.work
            self.polled_at[threads] = self.work
            if again.any():
                self.polling.append((pc, threads[again]))
            threads = threads[~again]
        if len(threads):
            self.split(pc, threads)
        return None

    def split(self, pc: int, threads: np.ndarray) -> None:
        if len(self.ready) == 1:
            self.ready[0].setdefault(pc, []).append(threads)
            return
        part = threads // self.unit
        cuts = np.flatnonzero(np.diff(part)) + 1
        for piece in np.split(threads, cuts):
            self.ready[piece[0] // self.unit].setdefault(pc, []).append(piece)

    def step(self) -> None:
        ready = self.ready[self.turn]
        pc = min(ready)
        threads = _merge(ready.pop(pc))
        code = self.code[pc]
        if code.collective:
            threads = self.whole_warps(pc, threads)
            if not len(threads):
                return
        taken = self.group.run(code, threads)
        getattr(self, f"_{code.kind.replace('.', '_')}")(pc, code, threads, taken)

    def whole_warps(self, pc: int, threads: np.ndarray) -> np.ndarray:
        """Those that may run code for whole warps; the others wait for the rest of their warps."""
        if pc in self.stalled:
            threads = _merge([threads, self.stalled.pop(pc)])
        if len(threads) == self.count:
            return threads
        there = np.bincount(threads // WARP, minlength=self.count // WARP)[threads // WARP] == WARP
        if not there.all():
            self.stalled[pc] = threads[~there]
        return threads[there]

    # How code ends.

    def _goto(self, pc, code, threads, taken) -> None:
        self.push(code.targets[0], threads)

    def _branch(self, pc, code, threads, taken) -> None:
        if taken.ndim == 0:
            return self.push(code.targets[0 if taken else 1], threads)
        self.push(code.targets[0], threads[taken])
        return self.push(code.targets[1], threads[~taken])

    def _exit(self, pc, code, threads, taken) -> None:
        self.leave(threads)

    def leave(self, threads) -> None:
        self.work += 1
        self.exited[threads] = True
        self.release_clusters()

    def _bar_sync(self, pc, code, threads, taken) -> None:
        """Every thread of the block; one that has left never comes."""
        self.work += 1
        if len(threads) == self.count:
            return self.push(code.targets[0], threads)
        self.waits_at[threads] = pc
        self.arrived += np.bincount(threads // self.threads, minlength=len(self.arrived))
        done = self.arrived == self.threads
        if not done.any():
            return None
        self.arrived[done] = 0
        released = np.flatnonzero(np.repeat(done, self.threads))
        places = self.waits_at[released]
        self.waits_at[released] = -1
        for place in np.unique(places):
            self.push(self.code[place].targets[0], released[places == place])
        return None

    def _barrier_cluster_arrive(self, pc, code, threads, taken) -> None:
        self.work += 1
        if (self.arrivals[threads] != self.passed[threads]).any():
            raise PtxError(f"{self.translation.entry.name}, {code.last}: arrives twice without a wait")
        self.arrivals[threads] += 1
        self.push(code.targets[0], threads)
        self.release_clusters()

    def _barrier_cluster_wait(self, pc, code, threads, taken) -> None:
        if (self.arrivals[threads] != self.passed[threads] + 1).any():
            raise PtxError(f"{self.translation.entry.name}, {code.last}: waits without having arrived")
        self.waits_for_cluster[threads] = True
        self.waits_at[threads] = pc
        self.release_clusters()

    def release_clusters(self) -> None:
        """Those who wait for a barrier at which every thread of the cluster has arrived, or that has left."""
        if not self.waits_for_cluster.any():
            return
        arrivals = np.where(self.exited, np.iinfo(int).max, self.arrivals).reshape(-1, self.cluster_threads).min(1)
        released = self.waits_for_cluster & (np.repeat(arrivals, self.cluster_threads) > self.passed)
        released = np.flatnonzero(released)
        places = self.waits_at[released]
        self.waits_at[released], self.waits_for_cluster[released] = -1, False
        self.passed[released] += 1
        for place in np.unique(places):
            self.push(self.code[place].targets[0], released[places == place])

    def places(self) -> str:
        """Where the threads stand that have not left."""
        found = [(self.code[pc].last, np.flatnonzero(self.waits_at == pc)) for pc in set(self.waits_at) - {-1}]
        found += [(self.code[pc].first, threads) for pc, threads in self.stalled.items()]
        found += [(self.code[pc].first, threads) for pc, threads in self.polling]
        found = [(one, np.concatenate([threads for other, threads in found if other is one])) for one, _ in found]
        found = {one.line: (one, threads) for one, threads in found}.values()
        texts = [
            f"{len(threads)} at {instruction} (thread {threads[0] % self.threads} of block "
            f"{threads[0] // self.threads} is one)"
            for instruction, threads in sorted(found, key=lambda pair: pair[0].line)
        ]
        return "; ".join([*texts, f"{self.exited.sum()} have left"])


def _merge(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))
