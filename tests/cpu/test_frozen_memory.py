"""The kernels of frozen stacks under AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastrnn._kernels import ext, ops

ROOT = Path(__file__).resolve().parents[2]
CXX = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = ["-std=c++20", "-g1", "-O0", "-Wall", "-Wextra", "-fopenmp"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ISAS = ext.load().cpu.supported_isas() if ops.missing("cpu") is None else ["plain"]
SOURCES = [
    *(ROOT / "tests/cpu/sanitize" / name for name in ("frozen.cpp", "forced_plan.cpp", "absent_levels.cpp")),
    *(ROOT / "csrc/cpu" / name for name in ("frozen.cpp", "parallel.cpp", "isa/frozen.cpp")),
    *sorted((ROOT / "csrc/cpu/isa").glob("frozen_*.cpp")),
]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CXX is None, reason="there is no g++")]


def run(command: list) -> subprocess.CompletedProcess:
    settings = os.environ | {"OMP_WAIT_POLICY": "passive"}
    return subprocess.run(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_memory_and_undefined_behaviour(tmp_path):
    """And a workspace one byte short is seen. One test, for the program takes long to build."""
    (tmp_path / "probe.cpp").write_text("int main() { return 0; }")
    probe = run([CXX, *SANITIZE, str(tmp_path / "probe.cpp"), "-o", str(tmp_path / "probe")])
    if probe.returncode or run([str(tmp_path / "probe")]).returncode:
        pytest.skip(f"{CXX} {SANITIZE[0]} makes no program that runs here: {probe.stdout[-300:]}")
    program = str(tmp_path / "frozen")
    built = run([CXX, *FLAGS, *SANITIZE, *map(str, SOURCES), "-o", program])
    assert built.returncode == 0, built.stdout[-6000:]
    for isa in ISAS:
        done = run([program, isa, "300"])
        assert re.search(r"^300 runs, 0 failures$", done.stdout, re.MULTILINE), done.stdout[-3000:]
    done = run([program, "plain", "100", "1"])
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stdout, done.stdout[-3000:]
