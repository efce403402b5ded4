"""What the device itself can do: copy bandwidth and matrix rate, to hold a kernel's figures against.

`python benchmarks/ceilings.py --device cuda --out ceilings.csv` prints the best of several sizes, each the median of
repeated runs, and appends them to a CSV that roofline.py reads.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from fastrnn.bench.environment import ALL_THREADS, environment
from fastrnn.bench.measure import PRECISIONS
from fastrnn.bench.timing import ClockRounds, EventRounds, Pace, interleave

COPY_MIB = {"cuda": (256, 1024, 4096), "cpu": (64, 256)}
MATRIX_SIZES = {"cuda": (4096, 8192), "cpu": (512, 1024)}
# float32 products on CUDA come in two precisions; a CPU's float16 is emulated
KINDS = {"cuda": ("bfloat16", "float16", "tf32", "ieee"), "cpu": ("bfloat16", "float32")}
FIELDS = ("device", "threads", "what", "value", "unit")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the device's ceilings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=ALL_THREADS)
    parser.add_argument("--seconds", type=float, default=0.5, help="time per size (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="CSV to append to")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch {torch.__version__} sees no CUDA device here")
    torch.set_num_threads(args.threads)
    facts = environment(device)
    where = f"driver {facts['driver']}, CUDA {facts['cuda']}" if facts["cuda"] else f"{args.threads} threads"
    print(f"{facts['device']}, {where}, torch {facts['torch']}")
    found = {}
    if facts["cuda"]:
        found["multiprocessors"] = (torch.cuda.get_device_properties(device).multi_processor_count, "")
    copied = max(copy_rate(size, device, args.seconds) for size in COPY_MIB[device.type])
    found["copy"] = (copied, "GB/s")
    print(f"copy: {copied:.0f} GB/s read + write", flush=True)
    for kind in KINDS[device.type]:
        rate = max(matrix_rate(n, kind, device, args.seconds) for n in MATRIX_SIZES[device.type])
        found[f"matrix {kind}"] = (rate, "TFLOP/s")
        print(f"matrix {kind}: {rate:.2f} TFLOP/s", flush=True)
    if args.out:
        append(args.out, facts["device"], args.threads, found)
    return 0


def append(path: Path, device: str, threads: int, found: Mapping[str, tuple[float, str]]) -> None:
    """Add a row per figure; the file's header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(FIELDS)
        writer.writerows((device, threads, what, f"{value:.6g}", unit) for what, (value, unit) in found.items())


def copy_rate(mib: int, device: torch.device, seconds: float) -> float:
    """GB/s of copying `mib` MiB, counting the bytes read and the bytes written."""
    source = torch.ones(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda _none: target.copy_(source), device, seconds) / 1e9


def matrix_rate(n: int, kind: str, device: torch.device, seconds: float) -> float:
    """TFLOP/s of an n x n x n matrix product of a dtype, or of float32 in the precision `kind`."""
    dtype = torch.float32 if kind in PRECISIONS else getattr(torch, kind)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    knob = torch.backends.cuda.matmul
    before = knob.fp32_precision
    if kind in PRECISIONS:
        knob.fp32_precision = kind
    try:
        return 2 * n**3 / _seconds(lambda _none: a @ b, device, seconds) / 1e12
    finally:
        knob.fp32_precision = before


def _seconds(work: Callable, device: torch.device, seconds: float) -> float:
    rounds = EventRounds(1) if device.type == "cuda" else ClockRounds()
    (samples,) = interleave([work], [None], Pace(seconds, least=3, most=200), rounds)
    return statistics.median(samples) / 1e3


if __name__ == "__main__":
    sys.exit(main())
