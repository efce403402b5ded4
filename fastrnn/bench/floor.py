"""The least time of a case on the machine at hand, from peaks and bandwidths that are measured in the same run.

    floor = max(FLOPs / peak of the dtype, bytes that must be read / bandwidth of the level they fit in)

FLOPs are those of the matrix products, a multiply-add being two; training has three products for each of forward.
A CPU reads the recurrent weights once a step and pass, from the level of memory that those of one layer and direction
fit in. A GPU may keep them on chip: there they are read once. Inputs, outputs and input weights are read or written
once in forward and three times in training.

The peak is the best rate of a square matrix product, the bandwidth that of a matrix-vector product over as many bytes,
both by torch: a kernel that is better than these two can be faster than its floor. So can one whose weights fit a
first-level cache: less than 128 KiB counts as read at the bandwidth of 128 KiB.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .case import Case, lengths_of

_PRODUCT = {"cpu": 1024, "cuda": 8192}
_SMALLEST, _LARGEST = 2**17, 2**28
"""Bytes: reading less takes as long as the call itself; more is in no cache."""
_SAMPLES, _SAMPLE_S = 5, 0.01


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes of a call."""

    flops: int
    recurrent: int
    """Bytes of the recurrent weights of one layer and direction,"""
    readings: int
    """which are read so often,"""
    once: int
    """and bytes of all else."""


def work_of(case: Case) -> Work:
    """What a case has to compute and to read at least."""
    training, out = case.mode == "training", case.P or case.H
    cell, rows = case.registered, int(lengths_of(case).sum())
    gates, heads = cell.gates * case.H, int(case.options.get("num_heads", 1))
    recurrent = (gates * out // heads if cell.recurrent else case.H) + case.P * case.H
    flops = once = 0
    for width in (case.I, *[out * case.directions] * (case.layers - 1)):
        flops += 2 * rows * case.directions * (gates * width + recurrent)
        once += case.directions * (gates * (width + 2) + rows * out) + rows * width
    passes, size = 3 if training else 1, case.torch_dtype.itemsize
    readings = case.T * case.layers * case.directions * (2 if training else 1)
    return Work(passes * flops, size * recurrent, readings, passes * size * once)


def floor_ms(case: Case, device: torch.device, precision: str = "") -> float:
    """The least time, in milliseconds, under torch's current settings of threads and precision."""
    work, threads = work_of(case), torch.get_num_threads()
    readings = 1 if device.type == "cuda" else work.readings
    seconds = work.recurrent * readings / bandwidth(work.recurrent, device, threads)
    seconds += work.once / bandwidth(work.once, device, threads)
    if case.torch_dtype.is_floating_point:  # torch has no product of int8 whose rate could be a peak
        seconds = max(seconds, work.flops / peak(case.torch_dtype, precision, device, threads))
    return 1e3 * seconds


@functools.cache
def peak(dtype: torch.dtype, precision: str, device: torch.device, threads: int) -> float:
    """FLOPs a second of a matrix product; ``precision`` and ``threads`` are in force, and tell results apart.

    On a CPU that of 16-bit types is float32's where torch is slower in them: a kernel may convert.
    """
    if device.type == "cpu" and dtype.itemsize == 2:
        wide = peak(torch.float32, precision, device, threads)
        # Where torch has no such product, a large one would take seconds.
        return wide if _rate(dtype, 128, device) < wide / 2 else max(wide, _rate(dtype, _PRODUCT["cpu"], device))
    return _rate(dtype, _PRODUCT[device.type], device)


def _rate(dtype: torch.dtype, n: int, device: torch.device) -> float:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / _seconds(lambda: a @ b, device)


def bandwidth(size: int, device: torch.device, threads: int) -> float:
    """Bytes a second at which ``size`` bytes that were read before are read again."""
    return _bandwidth(min(max(1 << (size - 1).bit_length(), _SMALLEST), _LARGEST), device, threads)


@functools.cache
def _bandwidth(size: int, device: torch.device, threads: int) -> float:
    if device.type == "cuda":
        source = torch.ones(_LARGEST, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)
    matrix, vector = torch.ones(size // 1024, 256), torch.ones(256)
    call = _seconds(lambda: matrix[:1] @ vector, device)
    whole = _seconds(lambda: matrix @ vector, device)
    return matrix.nbytes / max(whole - call, 0.1 * whole)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call: the best of a few samples, each of calls that take about ``_SAMPLE_S`` together."""

    def sample(calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / calls

    sample(1)
    calls = max(1, int(_SAMPLE_S / sample(1)))
    return min(sample(calls) for _ in range(_SAMPLES))
