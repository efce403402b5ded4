"""The state spaces of a launch: parameters, shared memory of the blocks, global memory.

An access outside of what the launch knows, or not aligned to its own size, is an error that names the instruction.
Global addresses are those of the process; shared ones begin at BASE in every block, and the block of a cluster with
rank r is seen by all others at (r + 1) * CLUSTER.
"""

from __future__ import annotations

import bisect

import numpy as np

from .parse import PtxError
from .values import DTYPES

BASE = 1024
CLUSTER = 1 << 24
POISON = 0xFF  # NaN in every type


def at_address(address: int, count: int, dtype) -> np.ndarray:
    """An array over memory of this process."""
    holder = type("Memory", (), {})()
    kind = np.dtype(dtype)
    holder.__array_interface__ = {"data": (address, False), "shape": (count,), "typestr": kind.str, "version": 3}
    return np.asarray(holder)


class Global:
    """The buffers of a launch, as (address, bytes)."""

    def __init__(self, buffers) -> None:
        self.buffers = sorted(buffer for buffer in set(buffers) if buffer[1])
        self.starts = np.array([start for start, _ in self.buffers], np.uint64)
        self.ends = np.array([start + size for start, size in self.buffers], np.uint64)
        self.base = self.buffers[0][0] // 16 * 16 if self.buffers else 0
        span = int(self.ends.max()) - self.base if self.buffers else 0
        self._views = {size: at_address(self.base, span // size + 1, DTYPES[f"u{8 * size}"]) for size in (1, 2, 4, 8)}

    def places(self, address, size: int, width: int):
        """(array of words, indices) for accesses of ``width`` words of ``size`` bytes each."""
        address = np.asarray(address)
        low, high = int(address.min()), int(address.max())
        if int(np.bitwise_or.reduce(address, axis=None)) & (size * width - 1):
            raise PtxError(f"an address of global memory is not a multiple of {size * width}")
        at = bisect.bisect_right(self.buffers, (low, 1 << 62)) - 1
        if at < 0 or high + size * width > int(self.ends[at]):
            found = np.searchsorted(self.starts, address, "right") - 1
            good = (found >= 0) & (address + np.uint64(size * width) <= self.ends[found])
            if not good.all():
                raise PtxError(f"{self.describe(int(np.atleast_1d(address)[~np.atleast_1d(good)][0]))} is no buffer's")
        index = (address - np.uint64(self.base)) >> np.uint64(size.bit_length() - 1)
        return self._views[size], index.astype(np.intp)

    def describe(self, address: int) -> str:
        at = bisect.bisect_right(self.buffers, (address, 1 << 62)) - 1
        near = f", {address - self.buffers[at][0] - self.buffers[at][1]} bytes past the end of one" if at >= 0 else ""
        return f"global address {address:#x}{near}"


class Shared:
    """The shared memory of the blocks that are there at the same time, poisoned."""

    def __init__(self, blocks: int, size: int, cluster: int) -> None:
        self.size, self.cluster, self.stride = size, cluster, -(-size // 16) * 16
        self.bytes = np.full(max(blocks * self.stride, 16), POISON, np.uint8)
        self._views = {n: self.bytes.view(DTYPES[f"u{8 * n}"]) for n in (1, 2, 4, 8)}

    def places(self, address, slot, size: int, width: int, remote: bool):
        """As Global.places, for threads of the blocks ``slot``; and the blocks whose memory it is."""
        address = np.asarray(address).astype(np.int64)
        if remote:
            rank = address // CLUSTER
            if int(rank.max()) > self.cluster:
                raise PtxError(f"there is no block {int(rank.max()) - 1} in a cluster of {self.cluster}")
            slot = np.where(rank > 0, slot // self.cluster * self.cluster + rank - 1, slot)
            address = address % CLUSTER
        address = address - BASE
        low, high = int(address.min()), int(address.max())
        if low < 0 or high + size * width > self.size:
            worst = low if low < 0 else high
            raise PtxError(f"shared address {worst} of {size * width} bytes is not in the {self.size} of the block")
        if int(np.bitwise_or.reduce(address, axis=None)) & (size * width - 1):
            raise PtxError(f"an address of shared memory is not a multiple of {size * width}")
        return self._views[size], (slot * self.stride + address) >> (size.bit_length() - 1), slot

    def map(self, address, rank):
        """mapa: the same place in the block of this rank."""
        rank = np.asarray(rank).astype(np.uint32)
        if int(rank.max()) >= self.cluster:
            raise PtxError(f"there is no block {int(rank.max())} in a cluster of {self.cluster}")
        return address % np.uint32(CLUSTER) + (rank + np.uint32(1)) * np.uint32(CLUSTER)


class Params:
    """The bytes of all parameters; their addresses begin at 0."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        data += bytes(-len(data) % 16)
        self._views = {n: np.frombuffer(data, DTYPES[f"u{8 * n}"]) for n in (1, 2, 4, 8)}

    def places(self, address, size: int, width: int):
        address = np.asarray(address).astype(np.int64)
        if int(address.min()) < 0 or int(address.max()) + size * width > self.size:
            raise PtxError(f"parameter bytes at {int(address.max())} are not among the {self.size} of the launch")
        if int(np.bitwise_or.reduce(address, axis=None)) & (size * width - 1):
            raise PtxError(f"a parameter's address is not a multiple of {size * width}")
        return self._views[size], address >> (size.bit_length() - 1)
