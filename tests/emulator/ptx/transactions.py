"""Transaction barriers (mbarrier), which count the bytes that st.async brings into the shared memory of a block.

As the kernels use them: one thread a phase arrives, with the bytes that the phase expects. A phase ends when it has
arrived and they are there, whichever is last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .parse import SIZES, Instruction, PtxError


@dataclass
class Transactions:
    """One barrier. ``due``: bytes that were expected and have not come."""

    phase: int = 0
    arrived: bool = False
    due: int = 0

    def expect(self, size: int) -> None:
        if self.arrived:
            raise PtxError("arrives twice in a phase")
        self.arrived, self.due = True, self.due + size
        self._settle()

    def complete(self, size: int) -> None:
        self.due -= size
        self._settle()

    def _settle(self) -> None:
        if self.arrived and self.due == 0:
            self.phase, self.arrived = self.phase + 1, False


class TransactionMemory:
    """What a group of threads does with barriers; a mixin of Group. ``barriers`` by the index of their eight bytes."""

    barriers: dict[int, Transactions]

    def init_transactions(self, address, count, line) -> None:
        if not np.all(count == 1):
            raise self.error(line, f"expected a barrier of one arrival a phase, got {count}")
        _, index = self._shared(np.broadcast_to(address, self.count), 8, 1, line, False)
        self.barriers.update((int(i), Transactions()) for i in index)

    def expect_transactions(self, address, size, line) -> None:
        self._has_news()
        _, index = self._shared(np.broadcast_to(address, self.count), 8, 1, line, False)
        for i, expected in zip(index, np.broadcast_to(size, self.count)):
            self.named(line, self._barrier(i, line).expect, int(expected))

    def phase_is_over(self, address, parity, line):
        _, index = self._shared(address, 8, 1, line, False)
        index, parity = np.broadcast_arrays(index, parity)
        phases = {int(i): self._barrier(i, line).phase for i in np.unique(index)}
        over = np.array([phases[int(i)] % 2 != p for i, p in zip(index.flat, parity.flat)])
        return over.reshape(index.shape)[()]

    def send_shared(self, address, size, width, line, words, barrier) -> None:
        self._has_news()
        address, barrier = (np.broadcast_to(a, self.count) for a in (address, barrier))
        if (address // self.cluster_window != barrier // self.cluster_window).any():
            raise self.error(line, "the barrier is not in the block to which the bytes go")
        self.store_shared(address, size, width, line, words, True)
        _, index = self._shared(barrier, 8, 1, line, True)
        for i, times in zip(*np.unique(index, return_counts=True)):
            self._barrier(i, line).complete(int(times) * size * width)

    def _barrier(self, index, line) -> Transactions:
        if int(index) not in self.barriers:
            raise self.error(line, "there is no barrier")
        return self.barriers[int(index)]

    def _has_news(self) -> None:
        self.resident.work += 1
        self.resident.changed = True


class TransactionWriter:
    """The opcodes; a mixin of Writer."""

    def _mbarrier(self, one: Instruction, parts: list[str]) -> None:
        what = ".".join(parts)
        if what == "init.shared::cta.b64":
            where, count = one.operands
            self.block.lines.append(
                f"S.init_transactions({self.address(where, one)}, {self.read(count, 'u32', one)}, {one.line})"
            )
        elif what == "arrive.expect_tx.shared::cta.b64" and one.operands[0] == "_":
            _, where, size = one.operands
            self.block.lines.append(
                f"S.expect_transactions({self.address(where, one)}, {self.read(size, 'u32', one)}, {one.line})"
            )
        elif what == "try_wait.parity.shared::cta.b64":
            to, where, parity = one.operands
            self.block.polls = True
            given = f"{self.address(where, one)}, {self.read(parity, 'u32', one)}, {one.line}"
            self.write(to, f"S.phase_is_over({given})", "pred")
        else:
            raise self.unknown(one)

    def _fence(self, one: Instruction, parts: list[str]) -> None:
        """What initialises a barrier is seen by the cluster: here it is at once."""
        if parts != ["mbarrier_init", "release", "cluster"]:
            raise self.unknown(one)

    def _send(self, one: Instruction, parts: list[str]) -> None:
        """st.async to another block, or to this one."""
        space, how, *rest = parts
        if (space, how) != ("shared::cluster", "mbarrier::complete_tx::bytes") or rest[0] not in ("v2", "v4"):
            raise self.unknown(one)
        _, width, kind = self._access(one, ["shared", *rest])
        where, given, barrier = one.operands
        words = self.words(given, kind, one)
        given = f"{self.address(where, one)}, {SIZES[kind]}, {width}, {one.line}, {words}"
        self.block.lines.append(f"S.send_shared({given}, {self.address(barrier, one)})")
