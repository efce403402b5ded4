"""What the device itself can do: copy bandwidth and matrix rate, to hold a kernel's figures against.

`python benchmarks/ceilings.py --device cuda` prints the best of several sizes, each the median of repeated runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence

import torch

from fastrnn._bench.environment import ALL_THREADS, environment
from fastrnn._bench.timing import ClockRounds, EventRounds, Pace, interleave

COPY_MIB = {"cuda": (256, 1024, 4096), "cpu": (64, 256)}
MATRIX_SIZES = {"cuda": (4096, 8192), "cpu": (512, 1024)}
DTYPES = {"cuda": ("bfloat16", "float16", "float32"), "cpu": ("bfloat16", "float32")}  # a CPU's float16 is emulated


def main(argv: Sequence[str] | None = None) -> int:
    """Print the device's ceilings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=ALL_THREADS)
    parser.add_argument("--seconds", type=float, default=0.5, help="time per size (default: %(default)s)")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch {torch.__version__} sees no CUDA device here")
    torch.set_num_threads(args.threads)
    facts = environment(device)
    where = f"driver {facts['driver']}, CUDA {facts['cuda']}" if facts["cuda"] else f"{args.threads} threads"
    print(f"{facts['device']}, {where}, torch {facts['torch']}")
    copied = max(copy_rate(size, device, args.seconds) for size in COPY_MIB[device.type])
    print(f"copy: {copied:.0f} GB/s read + write", flush=True)
    for dtype in DTYPES[device.type]:
        rate = max(matrix_rate(n, dtype, device, args.seconds) for n in MATRIX_SIZES[device.type])
        precision = f" ({torch.backends.cuda.matmul.fp32_precision})" if dtype == "float32" and facts["cuda"] else ""
        print(f"matrix {dtype}{precision}: {rate:.2f} TFLOP/s", flush=True)
    return 0


def copy_rate(mib: int, device: torch.device, seconds: float) -> float:
    """GB/s of copying `mib` MiB, counting the bytes read and the bytes written."""
    source = torch.ones(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda _none: target.copy_(source), device, seconds) / 1e9


def matrix_rate(n: int, dtype: str, device: torch.device, seconds: float) -> float:
    """TFLOP/s of an n x n x n matrix product."""
    a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
    b = torch.randn(n, n, device=device).to(getattr(torch, dtype))
    return 2 * n**3 / _seconds(lambda _none: a @ b, device, seconds) / 1e12


def _seconds(work: Callable, device: torch.device, seconds: float) -> float:
    rounds = EventRounds(1) if device.type == "cuda" else ClockRounds()
    (samples,) = interleave([work], [None], Pace(seconds, least=3, most=200), rounds)
    return statistics.median(samples) / 1e3


if __name__ == "__main__":
    sys.exit(main())
