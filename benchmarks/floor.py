"""The least time of a recurrent layer on a GPU: a model, computed and not measured, to hold times against.

One step of the recurrence cannot begin before the step before it has ended, so a step costs at least the latency of its
own chain (wait, product, cell update, hand over) and of the barrier that ends it, and on top the slowest of three
streams, which may overlap one another: the matrix product, the weights re-read from shared memory, and the state that
the blocks exchange. The tiers differ in the barrier and in what they exchange:

    cta      (S) one block a batch tile, no barrier between blocks
    cluster  (C) a cluster of up to 16 blocks a batch tile, a cluster barrier, h by distributed shared memory
    grid     (G) blocks anywhere, a barrier through memory, h by the L2 cache
    step     (L) a launch a step, weights and h by the L2 cache

The constants of H200 say beside them where they come from; none was measured here. Those that are "chosen" make the
model meet a table of modelled times, which tests/test_floor.py holds it against. machine.py puts what ceilings.py and
barriers.cu measured in their place. The batch is dealt out evenly, and nothing is lost but by padding: a kernel that is
slower than its floor has room, one that is faster shows that the model is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

CLUSTER_SIZES = (2, 4, 8, 16)
TILE = 8  # batch rows that one tensor core product takes at least


@dataclass(frozen=True)
class Machine:
    """What a GPU can do, in bytes, operations and seconds; without barriers, the tiers that need them are left out.

    `matrix` is keyed by the type that is multiplied: a storage dtype, or `tf32` and `ieee` for float32. Barriers are
    keyed by the number of blocks in them; other numbers take the next larger one that is known.
    """

    name: str
    multiprocessors: int
    copy: float  # bytes a second, read and written
    matrix: Mapping[str, float]  # operations a second, all multiprocessors
    mma_share: float  # of `matrix`, that tensor core products of one warp reach
    shared: float  # bytes a second that one multiprocessor reads from its shared memory
    cache: float  # bytes a second that all multiprocessors read from the L2 cache
    weights_shared: float  # bytes of weights that one multiprocessor keeps in shared memory
    weights_registers: float  # bytes of weights that it keeps in registers
    chain: float  # seconds of a step's own latency inside a block
    grid_chain: float  # seconds of it that a grid barrier does not hide
    launch: float  # seconds from one launch to the next, in a stream
    graph_launch: float  # the same inside a CUDA graph
    cluster_barrier: Mapping[int, float] = field(default_factory=dict)
    grid_barrier: Mapping[int, float] = field(default_factory=dict)


H200 = Machine(
    name="NVIDIA H200",
    multiprocessors=132,  # data sheet
    copy=4.3e12,  # reported; data sheet 4.8e12
    matrix={
        "bfloat16": 790e12,  # reported; data sheet 989e12
        "float16": 790e12,  # as bfloat16
        "tf32": 395e12,  # half of bfloat16, by the data sheet
        "ieee": 43e12,  # chosen; 128 multiply-adds a clock and multiprocessor would be 60e12
    },
    mma_share=0.62,  # chosen; mma.sync falls short of wgmma on Hopper (arXiv 2501.12084)
    shared=128 * 1.755e9,  # 32 banks of 4 bytes a clock (CUDA programming guide) at the sustained clock
    cache=5.6e12,  # chosen
    weights_shared=200e3,  # of 227 KB; the rest holds h and the gates
    weights_registers=128e3,  # of 256 KB; the rest is for accumulators and addresses
    chain=0.30e-6,  # chosen: 0.37 us at H = 64
    grid_chain=0.1e-6,  # chosen: the barrier reported includes block barriers and a way through memory
    launch=2.1e-6,  # reported
    graph_launch=1.3e-6,  # reported
    cluster_barrier={16: 0.2e-6},  # reported between 0.13 and 0.3 us
    grid_barrier={132: 1.0e-6},  # reported between 1.0 and 1.4 us
)


@dataclass(frozen=True)
class Layer:
    """One layer as the recurrence sees it: G gates of H units, a batch of B, D directions at the same time."""

    gates: int
    hidden: int
    batch: int
    kind: str = "bfloat16"  # a key of Machine.matrix
    directions: int = 1

    @property
    def value_bytes(self) -> int:
        """Bytes of a stored value."""
        return 2 if self.kind in ("bfloat16", "float16") else 4

    @property
    def weight_bytes(self) -> int:
        """Bytes of the recurrent weights of one direction."""
        return self.gates * self.hidden**2 * self.value_bytes

    def flops(self, rows: float) -> float:
        """Operations of one step and direction for `rows` rows of the batch."""
        return 2 * self.gates * self.hidden**2 * rows


def step_seconds(machine: Machine, layer: Layer, *, backward: bool = False, graph: bool = False) -> dict[str, float]:
    """The least time of one step on every tier that can serve the layer.

    Backward exchanges partial sums of the state's gradient, in float32, where forward exchanges the state.
    """
    found = _cta(machine, layer) | _cluster(machine, layer, backward) | _grid(machine, layer, backward)
    return found | {"step": _step(machine, layer, backward, machine.graph_launch if graph else machine.launch)}


def _cta(machine: Machine, layer: Layer) -> dict[str, float]:
    if layer.weight_bytes > machine.weights_shared + machine.weights_registers:
        return {}
    return {"cta": machine.chain + _inside(machine, layer, blocks=1, teams=_blocks(machine, layer))}


def _cluster(machine: Machine, layer: Layer, backward: bool) -> dict[str, float]:
    times = []
    for size in CLUSTER_SIZES:
        teams = _blocks(machine, layer) // size
        if size > max(machine.cluster_barrier, default=0) or not teams or not _fits(machine, layer, size):
            continue
        rows = _rows(layer, teams)
        received = rows * layer.hidden * (4 if backward else layer.value_bytes) / machine.shared
        stream = max(received, _inside(machine, layer, size, teams))
        times.append(machine.chain + _barrier(machine.cluster_barrier, size) + stream)
    return {"cluster": min(times)} if times else {}


def _grid(machine: Machine, layer: Layer, backward: bool) -> dict[str, float]:
    """Fewer blocks exchange less, more blocks multiply faster: the best number of them."""
    most, times = _blocks(machine, layer), []
    for blocks in range(1, most + 1):
        if machine.grid_barrier and _fits(machine, layer, blocks):
            state = blocks * layer.batch * layer.hidden * layer.directions
            moved = state * (2 * 4 if backward else layer.value_bytes)  # partial sums are written, then read
            stream = max(moved / machine.cache, _inside(machine, layer, blocks, teams=1))
            times.append(machine.grid_chain + _barrier(machine.grid_barrier, blocks) + stream)
    return {"grid": min(times)} if times else {}


def _step(machine: Machine, layer: Layer, backward: bool, launch: float) -> float:
    state = layer.batch * layer.hidden * (layer.gates if backward else 1) * layer.value_bytes
    moved = layer.directions * (layer.weight_bytes + state) / machine.cache
    return launch + max(moved, layer.directions * layer.flops(layer.batch) / machine.matrix[layer.kind])


def _inside(machine: Machine, layer: Layer, blocks: int, teams: int) -> float:
    """The product of a step, or the weights it reads, whichever takes longer: `teams` of `blocks` blocks each."""
    rate = machine.matrix[layer.kind] / machine.multiprocessors
    registers = 0.0
    if layer.kind != "ieee":  # tensor cores take their weights from registers, which hold them for the whole sequence
        rate, registers = rate * machine.mma_share, machine.weights_registers
    read = max(0.0, layer.weight_bytes / blocks - registers)
    return max(layer.flops(_rows(layer, teams)) / blocks / rate, read / machine.shared)


def _rows(layer: Layer, teams: int) -> int:
    """Batch rows of the largest share; tensor cores take them by the tile."""
    tile = 1 if layer.kind == "ieee" else TILE
    return tile * math.ceil(layer.batch / (tile * teams))


def _blocks(machine: Machine, layer: Layer) -> int:
    return machine.multiprocessors // layer.directions


def _fits(machine: Machine, layer: Layer, blocks: int) -> bool:
    return layer.weight_bytes <= blocks * (machine.weights_shared + machine.weights_registers)


def _barrier(known: Mapping[int, float], blocks: int) -> float:
    return known[min((size for size in known if size >= blocks), default=max(known))]
