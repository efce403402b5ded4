"""mma.sync and shfl.sync: whole warps at once. The layouts are written from the PTX ISA, section on mma fragments.

A fragment's layout is an array (rows, columns, 2) of the lane that holds an element and the element's number there.
Products are exact; a sum of a whole tile is rounded to float32 once. A GPU rounds more often.
"""

from __future__ import annotations

import functools

import numpy as np

WARP = 32


def _fragment(rows, columns, place):
    """place(group, thread, i) -> (row, column) of element i of the lane 4 * group + thread."""
    each = rows * columns // WARP
    layout = np.full((rows, columns, 2), -1)
    for lane in range(WARP):
        for i in range(each):
            layout[place(lane // 4, lane % 4, i)] = lane, i
    assert (layout >= 0).all()
    return layout


def _a16(group, thread, i):
    row = group if i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def _b16(group, thread, i):
    return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group


def _a8(group, thread, i):
    return group + (8 if i >= 2 else 0), thread * 2 + (i & 1)


def _b8(group, thread, i):
    return thread * 2 + i, group


def _a_tf32(group, thread, i):
    return group + (8 if i in (1, 3) else 0), thread + (4 if i >= 2 else 0)


def _b_tf32(group, thread, i):
    return thread + 4 * i, group


def _c(group, thread, i):
    return group + (8 if i >= 2 else 0), thread * 2 + (i & 1)


A16, B16 = _fragment(16, 16, _a16), _fragment(16, 8, _b16)
A8, B8 = _fragment(16, 8, _a8), _fragment(8, 8, _b8)
A_TF32, B_TF32 = _fragment(16, 8, _a_tf32), _fragment(8, 8, _b_tf32)
C = _fragment(16, 8, _c)

# Shape and type of the operands: layouts of a and b.
SHAPES = {
    "m16n8k16.row.col.f32.f16.f16.f32": ("f16", A16, B16),
    "m16n8k16.row.col.f32.bf16.bf16.f32": ("bf16", A16, B16),
    "m16n8k8.row.col.f32.f16.f16.f32": ("f16", A8, B8),
    "m16n8k8.row.col.f32.tf32.tf32.f32": ("tf32", A_TF32, B_TF32),
}


@functools.cache
def _gather(shape, operand):
    """(16, 8)-like array of the number of an element among all of a warp's."""
    layout = SHAPES[shape][1 + operand]
    return layout[..., 0] * (layout[..., 0].size // WARP) + layout[..., 1]


SCATTER_C = C[..., 0] * 4 + C[..., 1]
SLOTS_C = np.argsort(SCATTER_C, axis=None)


def _operand(shape, operand, registers, threads):
    """(warps, rows, columns) of float32."""
    kind = SHAPES[shape][0]
    words = np.empty((threads, len(registers)), np.uint32)
    for i, register in enumerate(registers):
        words[:, i] = np.asarray(register).view(np.uint32)
    if kind == "tf32":
        values = (words & np.uint32(0xFFFFE000)).view(np.float32)  # the hardware ignores the low bits
    elif kind == "f16":
        values = words.view(np.float16).astype(np.float32)
    else:
        values = (words.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.reshape(threads // WARP, -1)[:, _gather(shape, operand)]


def multiply(shape, a, b, c, threads):
    """d = a b + c; the operands are registers of ``threads`` threads, whole warps."""
    left = _operand(shape, 0, a, threads).astype(np.float64)
    right = _operand(shape, 1, b, threads).astype(np.float64)
    addend = np.empty((threads, 4), np.float32)
    for i, register in enumerate(c):
        addend[:, i] = register
    total = left @ right + addend.reshape(-1, WARP * 4)[:, SCATTER_C]
    d = total.astype(np.float32).reshape(-1, WARP * 4)[:, SLOTS_C].reshape(threads, 4)
    return tuple(np.ascontiguousarray(d[:, i]) for i in range(4))


def butterfly(a, b, c, threads):
    """shfl.sync.bfly.b32: values and predicates."""
    a, b, c = (np.broadcast_to(np.asarray(x), threads).reshape(-1, WARP) for x in (a, b, c))
    lane = np.arange(WARP, dtype=np.uint32)
    segment = c >> np.uint32(8) & np.uint32(31)
    most = (lane & segment) | (c & np.uint32(31) & ~segment)
    other = lane ^ (b & np.uint32(31))
    there = other <= most
    source = np.where(there, other, lane).astype(np.intp)
    return np.take_along_axis(a, source, 1).reshape(-1), there.reshape(-1)
