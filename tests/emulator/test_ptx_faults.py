"""Faults planted in the kernels' PTX: the interpreter, or the comparison with the formulas, must notice every one."""

import pytest

from emulator import build, oracle
from emulator.cases import Layer, prescribe, timed_layers
from emulator.ptx import compiled
from emulator.ptx.executed import Executed
from emulator.ptx.faults import Planted
from emulator.ptx.parse import PtxError

pytestmark = [
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with"),
    pytest.mark.skipif(compiled.nvcc() is None, reason="nvcc was not found"),
]

STEP = "mma8", "bfloat16", "LSTM"
CLUSTER = "cluster8", "float16", "LSTM"
FMA = "cluster8", "float32", "LSTM"
GRID = "grid8", "bfloat16", "GRU"
CTA = "cta8", "tf32", "SLSTM"
FORWARD, BACKWARD = "resident_forward", "resident_backward"

D, A = r"(mma[^{]*\{[^}]*\}, \{", r"(mma[^{]*\{"
FIRST_OF_A = D + r")(%r\d+),\s?(%r\d+)", r"\1\3,\2"  # rows exchanged
MIDDLE_OF_A = D + r"%r\d+,)\s?(%r\d+),\s?(%r\d+)", r"\1\3,\2"  # rows with columns
B = D + r"[^}]*\}, \{)(%r\d+),\s?(%r\d+)", r"\1\3,\2"
SUMS = A + r")(%f\d+),\s?(%f\d+)", r"\1\3,\2"
RANK = r"(mapa\S+\s+\S+\s+\S+,) %r\d+", r"\1 0"
BARRIER = r"bar.sync\s+0;", ""
CLUSTER_BARRIER = r"barrier.cluster.wait.acquire.aligned;", ""
WAIT = r"mbarrier.try_wait.parity.shared::cta.b64 (%\w+), [^;]*;", r"setp.eq.u32 \1, 0, 0;"
PARITY = r"(mbarrier.try_wait[^;]*\]), [^;]*;", r"\1, 0;"
EXPECTED = r"(mbarrier.arrive.expect_tx[^;]*\]), [^;]*;", r"\1, 8;"
ARRIVAL = r"red.release[^;]*;", ""
LOOKS = r"\b67108864\b", "1"
POLL = r"setp.gt.s32(\s+%p\d+, %r\d+, -1;\s+add.s32[^;]*;\s+@%p\d+ bra)", r"setp.ne.s32\1"
COMPARISON = r"setp.lt.s32", "setp.ge.s32"
BRANCH = r"@(%p\d+ bra)", r"@!\1"
CHOICE = r"(selp\.\w+\s+%\w+), (\S+), (\S+), (%p\d+;)", r"\1, \3, \2, \4"
ROUNDING = r"cvt.rna.tf32.f32 (%r\d+), %f\d+;", r"mov.b32 \1, 0;"
STORE = r"(st.global.u16\s+\[[^+;]*)\]", r"\1+2]"
WIDE_LOAD = r"ld.global.v4.u32(\s+\{[^}]*\}, \[%rd\d+)", r"ld.global.v4.u32\1+8"
SHUFFLE = r"shfl.sync.bfly.b32(\s+\S+ \S+) %r\d+,", r"shfl.sync.bfly.b32\1 4,"
TYPE = r"f32\.bf16\.bf16\.f32", "f32.f16.f16.f32"

# Kernel, entry, what is changed and at which of its places, who runs ahead, what is said.
FAULTS = {
    "step: registers of a": (STEP, "forward_fused", FIRST_OF_A, 0, "together", "units of rounding"),
    "step: type of a product": (STEP, "forward_fused", TYPE, 0, "together", "units of rounding"),
    "step: block barrier": (STEP, "forward_fused", BARRIER, 0, "warps", "units of rounding"),
    "cluster: registers of a, backward": (CLUSTER, BACKWARD, MIDDLE_OF_A, 0, "together", "units of rounding"),
    "cluster: registers of b": (CLUSTER, FORWARD, B, 0, "together", "units of rounding"),
    "cluster: sums": (CLUSTER, BACKWARD, SUMS, 0, "together", "units of rounding"),
    "cluster: rank": (CLUSTER, FORWARD, RANK, 0, "together", "the barrier is not in the block"),
    "cluster: first block barrier": (CLUSTER, FORWARD, BARRIER, 0, "last warp", "units of rounding"),
    "cluster: third block barrier": (CLUSTER, FORWARD, BARRIER, 2, "last warp", "units of rounding"),
    "cluster: first wait": (CLUSTER, FORWARD, CLUSTER_BARRIER, 0, "blocks", "there is no barrier"),
    "cluster: wait of a step": (CLUSTER, FORWARD, WAIT, 0, "blocks", "shared memory this is has left"),
    "cluster: wait of a step, backward": (CLUSTER, BACKWARD, WAIT, 0, "warps", "arrives twice in a phase"),
    "cluster: parity of a wait": (CLUSTER, FORWARD, PARITY, 0, "together", "no thread can go on: .*try_wait"),
    "cluster: expected bytes": (CLUSTER, FORWARD, EXPECTED, 0, "together", "no thread can go on: .*try_wait"),
    "cluster: store": (CLUSTER, FORWARD, STORE, 0, "together", "units of rounding|global address"),
    "cluster: comparison": (CLUSTER, FORWARD, COMPARISON, 0, "together", "units of rounding|shared address"),
    "step: branch": (STEP, "forward_fused", BRANCH, 1, "together", "units of rounding|global address"),
    "step: predicate of a choice": (STEP, "forward_fused", CHOICE, 0, "together", "units of rounding|global address"),
    "fma: shuffle": (FMA, FORWARD, SHUFFLE, 0, "together", "units of rounding"),
    "grid: arrival": (GRID, FORWARD, ARRIVAL, 0, "together", "no thread can go on: .*ld.acquire"),
    "grid: looks before giving up": (GRID, FORWARD, LOOKS, 0, "warps", "the kernel gave up"),
    "grid: condition of the wait": (GRID, FORWARD, POLL, 0, "warps", "units of rounding"),
    "grid: block barrier, backward": (GRID, BACKWARD, BARRIER, 2, "warps", "units of rounding"),
    # The first of a weight that stays in a register.
    "cta: rounding to tf32": (CTA, FORWARD, ROUNDING, 64, "together", "units of rounding"),
    "cta: sums": (CTA, FORWARD, SUMS, 0, "together", "units of rounding"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(cuda, name):
    (form, precision, mode), within, (pattern, replacement), number, order, message = FAULTS[name]
    prescribe(cuda, form)
    cell, planted = oracle.MODES.index(mode), Planted(within, pattern, replacement, number)
    executed = Executed(cuda, 90, order, planted)
    with pytest.raises((PtxError, AssertionError), match=message):
        Layer(cell, precision, (3, 9, 2, 17), 2, packed=True).check(executed)
        next(timed_layers(cell, precision)).check(executed)
    assert planted.places > number


def test_a_wide_load_that_is_not_aligned_is_noticed(cuda):
    prescribe(cuda, "mma8")
    executed = Executed(cuda, 90, change=Planted("forward_fused", *WIDE_LOAD))
    with pytest.raises(PtxError, match=r"ld.global.v4.u32.* not a multiple of 16"):
        Layer(0, "bfloat16", (2, 9, 3, 40)).check(executed)


def test_without_a_fault_nothing_is_noticed(cuda):
    """The same launches, and an entry that was put together anew."""
    prescribe(cuda, "cluster8")
    planted = Planted(FORWARD, r"bar.sync\s+0;", "bar.sync 0;")
    Layer(0, "float16", (3, 9, 2, 17), 2, packed=True).check(Executed(cuda, 90, "last warp", planted))
    assert planted.places == 3
