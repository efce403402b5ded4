"""The interpreter of PTX itself, on small kernels written here: arithmetic, fragments, barriers, errors."""

import numpy as np
import pytest

from emulator.ptx import machine, mma, values
from emulator.ptx.blocks import Translation
from emulator.ptx.memory import Global
from emulator.ptx.parse import Module, PtxError

HEAD = """
.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 memory[];
.visible .entry kernel(.param .u64 out_param)
{
    .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<29>; .reg .f32 %f<29>; .reg .b64 %rd<9>; .reg .f64 %fd<9>;
    ld.param.u64 %rd1, [out_param];
    cvta.to.global.u64 %rd1, %rd1;
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 8;
    add.s64 %rd2, %rd1, %rd2;
"""


def launched(body, out, threads=32, grid=(1, 1, 1), cluster=1, cooperative=False, shared_bytes=512, order="together"):
    module = Module((HEAD + body + "\n}\n").replace("; .reg", ";\n.reg"))
    launch = machine.Launch(grid, cluster, threads, shared_bytes, cooperative, np.uint64(out.ctypes.data).tobytes())
    memory = Global([(out.ctypes.data, out.nbytes)])
    machine.run(Translation(module, module.entry("kernel")), launch, memory, order)
    return out


def value_of(instructions, register, kind, dtype):
    """What the instructions leave in a register, of thread 0."""
    body = f"{instructions}\nst.global.{kind} [%rd2], {register};\nret;"
    return launched(body, np.zeros(32, np.uint64)).view(dtype)[0]


@pytest.mark.parametrize(
    "instructions, want",
    [
        ("mov.u32 %r2, -7; div.s32 %r2, %r2, 2;", -3),
        ("mov.u32 %r2, -7; rem.s32 %r2, %r2, 2;", -1),
        ("mov.u32 %r2, -7; div.u32 %r2, %r2, 2;", 0x7FFFFFFC),
        ("mov.u32 %r2, -8; shr.s32 %r2, %r2, 1;", -4),
        ("mov.u32 %r2, -8; shr.u32 %r2, %r2, 28;", 15),
        ("mov.u32 %r2, 0x7fffffff; add.s32 %r2, %r2, 1;", -(2**31)),
        ("mov.u32 %r2, -3; mul.wide.s32 %rd3, %r2, 5; cvt.u32.u64 %r2, %rd3;", -15),
        ("mov.u32 %r2, -3; mul.wide.s32 %rd3, %r2, 5; shr.u64 %rd3, %rd3, 32; cvt.u32.u64 %r2, %rd3;", -1),
        ("mov.u32 %r2, -3; cvt.u64.u32 %rd3, %r2; shr.u64 %rd3, %rd3, 32; cvt.u32.u64 %r2, %rd3;", 0),
        ("mov.u32 %r2, 6; mad.lo.s32 %r2, %r2, 7, -2;", 40),
        ("mov.u32 %r2, 5; mov.u32 %r3, 0xff0; bfi.b32 %r2, %r2, %r3, 4, 4;", 0xF50),
        ("mov.u32 %r2, -1; min.s32 %r2, %r2, 3;", -1),
        ("mov.u32 %r2, -1; setp.lt.u32 %p1, %r2, 3; selp.b32 %r2, 1, 2, %p1;", 2),
        ("mov.u32 %r2, -1; setp.lt.s32 %p1, %r2, 3; selp.b32 %r2, 1, 2, %p1;", 1),
        ("mov.f32 %f1, 0f7FC00000; setp.lt.f32 %p1, %f1, %f1; selp.b32 %r2, 1, 2, %p1;", 2),
        ("mov.f32 %f1, 0f7FC00000; setp.geu.f32 %p1, %f1, %f1; selp.b32 %r2, 1, 2, %p1;", 1),
        ("mov.f32 %f1, 0f7FC00000; setp.nan.f32 %p1, %f1, %f1; selp.b32 %r2, 1, 2, %p1;", 1),
        ("mov.b32 %r2, {3, 1}; mov.b32 {%rs1, %rs2}, %r2; cvt.u32.u16 %r2, %rs2;", 1),
        ("mov.f32 %f1, 0f3F801000; cvt.rna.tf32.f32 %r2, %f1;", 0x3F802000),
        ("mov.f32 %f1, 0f3F800FFF; cvt.rna.tf32.f32 %r2, %f1;", 0x3F800000),
        ("mov.f32 %f1, 0f3F808000; cvt.rn.bf16.f32 %rs1, %f1; cvt.u32.u16 %r2, %rs1;", 0x3F80),  # a tie, to even
        ("mov.f32 %f1, 0f3F818000; cvt.rn.bf16.f32 %rs1, %f1; cvt.u32.u16 %r2, %rs1;", 0x3F82),
        ("mov.f32 %f1, 0f3F801000; cvt.rn.f16.f32 %rs1, %f1; cvt.u32.u16 %r2, %rs1;", 0x3C00),
        ("mov.f32 %f1, 0f3F803000; cvt.rn.f16.f32 %rs1, %f1; cvt.u32.u16 %r2, %rs1;", 0x3C02),
        ("mov.pred %p1, -1; selp.b32 %r2, 2, 3, %p1;", 2),
    ],
)
def test_integers_comparisons_and_conversions(instructions, want):
    assert value_of(instructions.replace("; ", ";\n"), "%r2", "u32", np.int32) == np.int64(want).astype(np.int32)


A = 1 + 2.0**-12  # its square ends between two numbers of float32


@pytest.mark.parametrize(
    "instruction, operands, want",
    [
        ("fma.rn.f32", (A, A, 0), 1 + 2.0**-11),
        ("fma.rn.f32", (A, A, 2.0**-40), 1 + 2.0**-11 + 2.0**-23),
        ("fma.rm.f32", (A, A, 2.0**-40), 1 + 2.0**-11),
        ("fma.rm.f32", (-A, A, 0), -(1 + 2.0**-11 + 2.0**-23)),
        ("mul.f32", (A, A), 1 + 2.0**-11),
        ("copysign.f32", (-2.0, 3.0), -3.0),
        ("cvt.sat.f32.f32", (A,), 1),
        ("cvt.sat.f32.f32", (np.nan,), 0),
        ("cvt.rni.f32.f32", (2.5,), 2),
        ("ex2.approx.ftz.f32", (3,), 8),
        ("ex2.approx.ftz.f32", (-130,), 0),
        ("rcp.rn.f32", (np.inf,), 0),
        ("min.f32", (np.nan, 1), 1),
    ],
)
def test_floats(instruction, operands, want):
    names = [f"%f{i + 1}" for i in range(len(operands))]
    given = [f"mov.f32 {n}, 0f{np.float32(x).view(np.uint32):08X};" for n, x in zip(names, operands)]
    body = "\n".join([*given, f"{instruction} %f9, {', '.join(names)};"])
    assert value_of(body, "%f9", "f32", np.float32) == np.float32(want)


def test_fma_of_float64_keeps_what_the_product_rounds_off():
    a = 1 + 2.0**-30
    assert values.fma(np.float64(a), np.float64(a), np.float64(-a * a)) == 2.0**-60


@pytest.mark.parametrize("shape", mma.SHAPES)
def test_mma_multiplies(shape):
    """Random fragments, against a product whose operands were put together element by element from the layouts."""
    kind, a_layout, b_layout = mma.SHAPES[shape]
    rng, dtype = np.random.default_rng(0), np.uint16 if kind != "tf32" else np.uint32
    per_word = 4 // np.dtype(dtype).itemsize
    operands, matrices = [], []
    for layout in (a_layout, b_layout):
        matrix = rng.integers(-8, 8, layout.shape[:2]).astype(np.float32)
        words = np.zeros((32, layout[..., 0].size // 32), dtype)
        bits = {"f16": lambda x: x.astype(np.float16).view(np.uint16), "tf32": lambda x: x.view(np.uint32)}
        coded = bits.get(kind, lambda x: (x.view(np.uint32) >> 16).astype(np.uint16))(matrix)
        words[layout[..., 0], layout[..., 1]] = coded
        registers = words.reshape(32, -1, per_word).view(np.uint32)[..., 0]
        operands.append([registers[:, i] for i in range(registers.shape[1])])
        matrices.append(matrix)
    c = rng.integers(-8, 8, (16, 8)).astype(np.float32)
    held = np.zeros((32, 4), np.float32)
    held[mma.C[..., 0], mma.C[..., 1]] = c
    d = np.stack(mma.multiply(shape, *operands, [held[:, i] for i in range(4)], 32), 1)
    assert (d[mma.C[..., 0], mma.C[..., 1]] == matrices[0] @ matrices[1] + c).all()


@pytest.mark.parametrize("shape", mma.SHAPES)
def test_fragments_lie_as_in_cutes_tables(shape):
    """An independent table: CuTe's traits, offsets in (M, K), (N, K) and (M, N) with the first axis fastest."""
    atoms = pytest.importorskip("tensor_layouts.atoms_nv", reason="tensor-layouts is not installed")
    atom = next(a for a in vars(atoms).values() if getattr(a, "ptx", "") == f"mma.sync.aligned.{shape}")
    _, a, b = mma.SHAPES[shape]
    for ours, theirs in ((a, atom.a_layout), (b.transpose(1, 0, 2), atom.b_layout), (mma.C, atom.c_layout)):
        rows, columns, _ = ours.shape
        for row in range(rows):
            for column in range(columns):
                lane, i = map(int, ours[row, column])
                assert theirs(lane, i) == row + column * rows, (row, column)


def test_a_warp_that_diverged_comes_together_for_a_shuffle():
    body = """
    and.b32 %r2, %r1, 1;
    setp.eq.s32 %p1, %r2, 0;
    mov.u32 %r3, 100;
    @%p1 bra $even;
    mov.u32 %r3, 200;
    $even:
    add.s32 %r3, %r3, %r1;
    shfl.sync.bfly.b32 %r4|%p2, %r3, 1, 31, -1;
    st.global.u32 [%rd2], %r4;
    ret;"""
    lanes = np.arange(32)
    found = launched(body, np.zeros(32, np.uint64))
    assert (found == np.where(lanes % 2, 100, 200) + (lanes ^ 1)).all()


RING = """
    mov.u32 %r2, memory;
    shl.b32 %r3, %r1, 2;
    add.s32 %r3, %r2, %r3;
    st.shared.u32 [%r3], %r1;
    {barrier}
    xor.b32 %r4, %r1, 63;
    shl.b32 %r4, %r4, 2;
    add.s32 %r4, %r2, %r4;
    ld.shared.u32 %r5, [%r4];
    st.global.u32 [%rd2], %r5;
    ret;"""


@pytest.mark.parametrize("order", ["together", "blocks", "warps"])
def test_a_block_barrier_and_its_absence(order):
    want = 63 - np.arange(64)
    assert (launched(RING.format(barrier="bar.sync 0;"), np.zeros(64, np.uint64), 64, order=order) == want).all()
    without = launched(RING.format(barrier=""), np.zeros(64, np.uint64), 64, order=order)
    assert (without == want).all() == (order != "warps")
    if order == "warps":
        assert (without[:32] == 0xFFFFFFFF).all()  # the poison


SEND = """
    mov.u32 %r2, memory;
    mov.u32 %r6, %ctaid.x;
    xor.b32 %r7, %r6, 1;
    setp.ne.s32 %p1, %r1, 0;
    @%p1 bra $ready;
    mbarrier.init.shared::cta.b64 [%r2], 1;
    fence.mbarrier_init.release.cluster;
    $ready:
    barrier.cluster.arrive.release.aligned;
    barrier.cluster.wait.acquire.aligned;
    @%p1 bra $send;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {bytes};
    $send:
    mapa.shared::cluster.u32 %r8, %r2, %r7;
    shl.b32 %r9, %r1, 3;
    add.s32 %r9, %r8, %r9;
    mapa.shared::cluster.u32 %r8, %r2, {rank};
    st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r9+16], {{%r6, %r1}}, [{barrier}];
    $again:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], {parity};
    @!%p2 bra $again;
    ld.shared.u32 %r5, [%r2+264];
    mul.wide.u32 %rd3, %r6, 256;
    add.s64 %rd3, %rd2, %rd3;
    st.global.u32 [%rd3], %r5;
    {end}
    ret;"""
END = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;"


@pytest.mark.parametrize("order", ["together", "blocks", "warps", "last warp"])
def test_what_is_sent_within_a_cluster(order):
    """Each thread sends its block's rank and its own number; every one reads the rank that the last one has sent."""

    def found(**changes):
        usual = {"bytes": 256, "rank": "%r7", "barrier": "%r8", "parity": 0, "end": END}
        body, out = SEND.format(**usual | changes), np.zeros(64, np.uint64)
        return launched(body, out, grid=(2, 1, 1), cluster=2, order=order)

    assert (found() == np.repeat([1, 0], 32)).all()
    with pytest.raises(PtxError, match=r"no thread can go on: 64 at line \d+: mbarrier.try_wait"):
        found(bytes=264)
    with pytest.raises(PtxError, match="the barrier is not in the block to which the bytes go"):
        found(rank="%r6")
    with pytest.raises(PtxError, match="there is no barrier"):
        found(barrier="%r8+8")
    with pytest.raises(PtxError, match=r"line \d+: mapa.*there is no block 2 in a cluster of 2"):
        found(rank="2")
    with pytest.raises(PtxError, match=r"no thread can go on: .*mbarrier.try_wait"):
        found(parity=1)  # of the phase before the first, which is over until the first is
    ahead_leaves = "no thread can go on" if order == "together" else "whose shared memory this is has left"
    with pytest.raises(PtxError, match=ahead_leaves):
        found(parity=1, end="")


MEET = """
    mov.u32 %r6, %ctaid.x;
    setp.ne.s32 %p1, %r1, 0;
    @%p1 bra $met;
    red.release.gpu.global.add.u32 [%rd1], 1;
    $again:
    ld.acquire.gpu.global.u32 %r3, [%rd1];
    setp.lt.s32 %p2, %r3, {count};
    @%p2 bra $again;
    $met:
    bar.sync 0;
    ret;"""


@pytest.mark.parametrize("order", ["together", "blocks", "warps"])
def test_a_grid_meets_or_says_who_waits(order):
    launch = {"grid": (3, 1, 1), "cooperative": True, "order": order}
    assert launched(MEET.format(count=3), np.zeros(1, np.uint64), **launch)[0] == 3
    with pytest.raises(PtxError, match=r"no thread can go on: 3 at line \d+: ld.acquire.*93 at line \d+: bar.sync"):
        launched(MEET.format(count=4), np.zeros(1, np.uint64), **launch)


@pytest.mark.parametrize(
    "body, message",
    [
        ("st.global.u32 [%rd2+256], %r1;", r"line \d+: st.global.u32 \[%rd2\+256\].*: global address .* past the end"),
        ("st.global.u32 [%rd2+-8], %r1;", "global address"),
        ("st.global.u32 [%rd2+2], %r1;", "not a multiple of 4"),
        ("ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd2];", "not a multiple of 16"),
        ("mov.u32 %r2, memory;\nld.shared.u32 %r3, [%r2+512];", "is not in the 512 of the block"),
        ("mov.u32 %r2, memory;\nld.shared.u32 %r3, [%r2+-4];", "is not in the 512 of the block"),
        ("mov.u32 %r2, memory;\nst.shared.u32 [%r2+1], %r1;", "not a multiple of 4"),
        ("ld.param.u64 %rd3, [out_param+8];", "not among the 8 of the launch"),
        ("shfl.sync.bfly.b32 %r4|%p2, %r1, 1, 31, 15;", "not all threads of the warp are members"),
        ("trap;", "gave up"),
        ("popc.b32 %r2, %r1;", "popc.b32 %r2, %r1: not implemented"),
        ("bar.sync 1;", "bar.sync 1: not implemented"),
        ("barrier.cluster.arrive.relaxed;", "not implemented"),
        ("mbarrier.arrive.shared::cta.b64 _, [%r2];", "not implemented"),
        ("fence.acq_rel.cluster;", "not implemented"),
        ("mov.u32 %r2, memory;\nmbarrier.init.shared::cta.b64 [%r2], 2;", "expected a barrier of one arrival"),
        (
            "mov.u32 %r2, memory;\nmbarrier.init.shared::cta.b64 [%r2], 1;\n"
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 8;",
            "arrives twice in a phase",
        ),
        ("bar.warp.sync 1;", "not all threads of the warp are members"),
        ("max.bf16 %rs1, %rs1, %rs1;", "not implemented"),
        ("max.f32 %f1, %f1, %f1;", "not implemented"),
        ("add.ftz.f32 %f1, %f1, %f1;", "not implemented"),
        ("abs.ftz.f32 %f1, %f1;", "not implemented"),
        ("ex2.approx.f32 %f1, %f1;", "not implemented"),
        ("cvt.rzi.s32.f32 %r2, %f1;", "not implemented"),
        ("setp.ne.f32 %p1, %f1, %f1;", "not implemented"),
        ("shl.b32 %r2, %r1, %r1;", "not implemented"),
        ("mov.pred %p1, -1;\n@%p1 mov.u32 %r2, 2;", "@%p1 mov.u32 %r2, 2: not implemented with a predicate"),
        ("mov.u32 %r2, %clock;", "not implemented|not declared"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r1}, {%f1};", "not implemented"),
        ("bar.sync 0;\n$a:\nbra $a;", "no end after"),
        (
            "setp.lt.u32 %p1, %r1, 16;\n@%p1 bra $out;\nbar.sync 0;\n$out:\nret;",
            "can go on: 16 at .*bar.sync",
        ),
        ("barrier.cluster.wait.acquire.aligned;", "waits without having arrived"),
        ("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.arrive.release.aligned;", "arrives twice"),
        ("bra $nowhere;", "no such label"),
    ],
)
def test_errors_name_the_instruction(monkeypatch, body, message):
    monkeypatch.setattr(machine, "MOST_RUNS", 1000)
    with pytest.raises(PtxError, match=message):
        launched(body + "\nret;", np.zeros(32, np.uint64))
