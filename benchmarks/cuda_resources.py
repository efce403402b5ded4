"""What the compiler has made of every CUDA kernel: registers, memory, tensor core instructions, loads waited for.

    python benchmarks/cuda_resources.py fastrnn/_C*.so --out benchmarks/results/cuda-resources.csv

Reads the machine code of the built extension, or of objects, for all architectures in it, with cuobjdump (from the CUDA
toolkit, or from the triton that comes with torch). No GPU is needed. A register that was spilled shows as stack bytes.
The dynamic shared memory of the resident kernels depends on the sizes of a call: see shared_bytes of plan_tiers.
Exits with 1 if a resident kernel, or one that takes a row's norms, has a stack, a tensor core kernel no tensor core
instruction, or a kernel of clusters a barrier of the cluster in its time loop (only what begins it may wait for the
memory of the whole device and empty the L1 cache).
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

FIELDS = ["arch", "kernel", "arguments", "registers", "stack_bytes", "shared_bytes", "mma_instructions"]
FIELDS += ["waited_loads", "cache_flushes"]
TIERS = {"1": "cta", "2": "cluster", "3": "grid"}


def find_cuobjdump() -> str:
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    bundled = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec else None
    if bundled and bundled.exists():
        return str(bundled)
    sys.exit("cuda_resources.py: cuobjdump was not found, in PATH or in an installed triton")


def output_of(*command) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def demangled(names: list[str]) -> dict[str, str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, text.splitlines()))


def usage(text: str) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(arch, mangled name) -> registers, stack bytes, static shared bytes; from cuobjdump -res-usage."""
    found, arch, name = {}, None, None
    for line in text.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r" Function (\S+):$", line):
            name = match[1]
        elif match := re.match(r"\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            found[arch, name] = tuple(map(int, match.groups()))
    return found


def instructions(text: str) -> dict[tuple[str, str], list[str]]:
    """(arch, mangled name) -> the machine instructions; from cuobjdump -sass."""
    found, arch, name = {}, None, None
    for line in text.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            name = match[1]
            found[arch, name] = []
        elif name and (match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line)):
            found[arch, name].append(match[1])
    return found


def waited_loads(code: list[str]) -> int:
    """Loads from global memory whose value is used between what a cluster's member sends and its wait for what the
    others send, which hides them no more."""
    used, pending, arrived = 0, set(), False
    for line in code:
        if re.search(r"\b(STAS|SYNCS\.PHASECHK)\b", line):
            arrived, pending = "STAS" in line, set()
        elif arrived and (match := re.match(r"(?:@!?U?P\d+ )?LDG\S* (R\d+)", line)):
            pending.add(match[1])
        elif arrived:
            read = {register for register in pending if re.search(rf"\b{register}\b", line.partition(",")[2])}
            used, pending = used + len(read), pending - read
    return used


def facts(code: list[str]) -> list[int]:
    """Tensor core instructions, waited_loads, and instructions that empty the L1 cache."""
    products, flushes = (sum(name in line for line in code) for name in ("HMMA.", "CCTL.IVALL"))
    return [products, waited_loads(code), flushes]


def readable(signature: str) -> tuple[str, str]:
    """(kernel, template arguments) of a demangled signature, in the project's words."""
    plain = re.sub(r"\(anonymous namespace\)::|fastrnn::cuda::|fastrnn::|\((?:int|bool)\)|^void ", "", signature)
    plain = re.sub(r"\(Tier\)(\d)", lambda match: TIERS[match[1]], plain)
    kernel, _, arguments = plain.partition("(")[0].partition("<")
    return kernel, arguments.removesuffix(">")


def rows_of(paths: list[Path]) -> list[dict]:
    cuobjdump, rows = find_cuobjdump(), []
    for path in paths:
        used, code = usage(output_of(cuobjdump, "-res-usage", path)), instructions(output_of(cuobjdump, "-sass", path))
        names = demangled(sorted({name for _, name in used}))
        for (arch, name), numbers in used.items():
            if "fastrnn" in name:
                rows.append(dict(zip(FIELDS, [arch, *readable(names[name]), *numbers, *facts(code[arch, name])])))
    return sorted(rows, key=lambda row: [row[field] for field in FIELDS[:3]])


def complaints(rows: list[dict]) -> list[str]:
    found = []
    for row in rows:
        where = " ".join(row[field] for field in FIELDS[:3])
        words = row["arguments"].split(", ")
        has_body = int(row["registers"]) >= 16  # else it is for newer devices: clusters, tensor cores of Ampere
        is_resident = row["kernel"].startswith("resident")
        if (is_resident or row["kernel"].endswith("_row")) and int(row["stack_bytes"]):
            found.append(f"{where}: {row['stack_bytes']} bytes of stack")
        if words[-1] == "cluster" and int(row["cache_flushes"]) > 1:
            found.append(f"{where}: a barrier of the cluster in the time loop")
        multiplies = is_resident or row["kernel"].endswith("_fused")
        if not multiplies or words[2] != "true" or not has_body:
            continue
        knows = row["arch"] != "sm_75" or words[1] == "__half"  # Turing's tensor cores multiply float16 alone
        if knows and not int(row["mma_instructions"]):
            found.append(f"{where}: no tensor core instruction")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="the built extension, or object files")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = rows_of(options.paths)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    found = complaints(rows)
    print(*found, sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
