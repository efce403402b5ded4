"""Arithmetic of PTX on numpy arrays, a value for each thread; what all threads share may be a scalar.

float32 and float64 are exact IEEE. fma.f32 rounds twice: the exact product and the sum in float64, then to float32.
fma.f64 rounds twice where long double is wider than double. The approximations (ex2, rcp) are numpy's functions, which
are more exact than a GPU's.
"""

from __future__ import annotations

import numpy as np

DTYPES = {"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64}
DTYPES |= {"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64}
DTYPES |= {"b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
DTYPES |= {"f16": np.float16, "f32": np.float32, "f64": np.float64, "pred": np.bool_}


def constant(text: str, kind: str):
    """An immediate operand as a value of this type: whole numbers, 0f and 0d with the bits in hexadecimal."""
    dtype = DTYPES[kind]
    if text[:2] in ("0f", "0F"):
        return np.uint32(int(text[2:], 16)).view(np.float32).astype(dtype)
    if text[:2] in ("0d", "0D"):
        return np.uint64(int(text[2:], 16)).view(np.float64).astype(dtype)
    number = int(text.rstrip("U"), 0)
    if kind == "pred":
        return np.bool_(number != 0)
    size = np.dtype(dtype).itemsize
    unsigned = DTYPES[f"u{8 * size}"]
    return unsigned(number & (1 << 8 * size) - 1).view(dtype)


def flush(x):
    """Subnormal float32 and float64 to zero of the same sign: .ftz."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def divide(a, b):
    """Integers, toward zero."""
    return np.floor_divide(a - np.fmod(a, b), b)


def fma(a, b, c):
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(a.dtype)


def fma_down(a, b, c):
    """float32, toward minus infinity."""
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    near = exact.astype(np.float32)
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def saturate(x):
    """To [0, 1], NaN to 0: .sat."""
    return np.where(np.isnan(x), x.dtype.type(0), np.minimum(np.maximum(x, x.dtype.type(0)), x.dtype.type(1)))


def insert_bits(a, b, begin, length):
    """bfi: the low bits of a, in b."""
    begin, length = int(begin) & 255, int(length) & 255
    bits = 8 * b.dtype.itemsize
    mask = ((1 << min(length, bits)) - 1) << begin & (1 << bits) - 1
    kind = b.dtype.type
    return (b & kind(~mask & (1 << bits) - 1)) | ((a << kind(begin)) & kind(mask))


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x):
    """To nearest, ties to even; NaN becomes the one that PTX documents."""
    bits = np.asarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def f32_to_tf32(x):
    """To ten bits of mantissa, ties away from zero: cvt.rna."""
    bits = np.asarray(x).view(np.uint32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)


def reciprocal_gross(x):
    """rcp.approx.ftz.f64: the upper half of the bits in and out."""
    upper = np.uint64(0xFFFFFFFF00000000)
    given = flush((np.asarray(x).view(np.uint64) & upper).view(np.float64))
    return (np.asarray(flush(1 / given)).view(np.uint64) & upper).view(np.float64)


def select(p, a, b):
    return np.where(p, a, b) if p.ndim else (a if p else b)


def pack(low, high, dtype):
    """Two values of half the bits as one, whatever their types."""
    half = DTYPES[f"u{4 * np.dtype(dtype).itemsize}"]
    whole = DTYPES[f"u{8 * np.dtype(dtype).itemsize}"]
    low, high = (np.asarray(x).view(half).astype(whole) for x in (low, high))
    return (low | high << whole(8 * np.dtype(half).itemsize)).view(dtype)


def unpack(word):
    word = np.asarray(word)
    bits = 4 * word.dtype.itemsize
    whole, half = DTYPES[f"u{2 * bits}"], DTYPES[f"u{bits}"]
    word = word.view(whole)
    return word.astype(half), (word >> whole(bits)).astype(half)
