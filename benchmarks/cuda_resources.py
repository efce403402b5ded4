"""What the compiler makes of every CUDA kernel: registers, bytes spilled, tensor core instructions. Needs no GPU.

    python benchmarks/cuda_resources.py --arch sm_80 sm_90 --out benchmarks/results/cuda-resources.csv

The shared memory of the resident kernels depends on the sizes of a call; the planner says how much (plan_tiers).
Machine code is read by cuobjdump, from the CUDA toolkit or from torch's triton; without it the column stays empty.
Exits with 1 if a resident kernel spills or a tensor core kernel has no tensor core instruction.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

INST = Path(__file__).parents[1] / "csrc/cuda/inst"
FIELDS = ["arch", "file", "kernel", "arguments", "registers", "stack_bytes", "spilled_bytes", "mma_instructions"]


def find_cuobjdump():
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    bundled = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec else None
    return str(bundled) if bundled and bundled.exists() else None


def demangled(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, text.splitlines()))


def mma_counts(cuobjdump, compiled):
    """Tensor core instructions by mangled name."""
    text = subprocess.run([cuobjdump, "-sass", compiled], capture_output=True, text=True, check=True).stdout
    counts, name = {}, None
    for line in text.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            counts[name := match[1]] = 0
        elif name and re.search(r"\b(HMMA|QGMMA|HGMMA|UTCHMMA)\b", line):
            counts[name] += 1
    return counts


def kernels_of(arch, source, cuobjdump):
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder, "kernels.o")
        command = ["nvcc", "-std=c++20", "-O3", f"-arch={arch}", "-Xptxas", "-v", "-c", source, "-o", compiled]
        log = subprocess.run(command, capture_output=True, text=True)
        if log.returncode:
            raise RuntimeError(log.stderr)
        if warnings := [line for line in log.stderr.splitlines() if "warning" in line]:
            raise RuntimeError(f"{source} for {arch}: {warnings[0]}")
        counts = mma_counts(cuobjdump, compiled) if cuobjdump else {}
    pattern = r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) regi"
    found = re.findall(pattern, log.stderr, re.DOTALL)
    names = demangled([name for name, *_ in found])
    for name, stack, spilled, registers in found:
        plain = names[name].removeprefix("void ").split("(fastrnn::cuda::Sequence")[0]
        plain = plain.replace("(anonymous namespace)::", "").replace("fastrnn::cuda::", "").replace("fastrnn::", "")
        kernel, _, arguments = re.sub(r"\((?:int|bool|Tier)\)", "", plain).split("(")[0].partition("<")
        row = [arch, source.name, kernel, arguments.removesuffix(">"), registers, stack, spilled]
        yield dict(zip(FIELDS, [*row, counts.get(name, "")]))


def complaints(rows):
    for row in rows:
        where = " ".join(row[field] for field in FIELDS[:4])
        multiplies = row["kernel"].startswith("resident") or row["kernel"].endswith("fused")
        no_body = int(row["registers"]) < 16  # clusters before sm_90, tensor cores before sm_80
        tensor_cores = multiplies and row["arguments"].split(", ")[2] in ("1", "true") and not no_body
        if row["kernel"].startswith("resident") and int(row["spilled_bytes"]):
            yield f"{where}: {row['spilled_bytes']} bytes spilled"
        if tensor_cores and str(row["mma_instructions"]) == "0":
            yield f"{where}: no tensor core instruction"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90"])
    parser.add_argument("--files", default="*.cu", help="a pattern of names in csrc/cuda/inst")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cuobjdump = find_cuobjdump()
    jobs = [(arch, source, cuobjdump) for arch in options.arch for source in sorted(INST.glob(options.files))]
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = [row for rows in pool.map(lambda job: list(kernels_of(*job)), jobs) for row in rows]
    with options.out.open("w", newline="") if options.out else sys.stdout as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    found = list(complaints(rows))
    print(*found, sep="\n", file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
