"""A cell's backward, made of its forward by the compiler, is the one written by hand; the CPU's vector functions; and
the division of CPU work among threads.

tests/cpu/derive has the programs; what they check while they compile are the constants of the cells.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "derive"
CSRC = Path(__file__).parents[2] / "csrc"
CXX = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wno-unused-function"]
LEVELS = {0: ([], set()), 1: (["-mavx2", "-mfma", "-mf16c"], {"avx2", "fma", "f16c"})}
LEVELS[2] = ([*LEVELS[1][0], "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"], {*LEVELS[1][1], "avx512dq"})

pytestmark = [
    pytest.mark.skipif(CXX is None, reason="there is no g++"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="needs the sources"),
]


def cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = [line for line in info.read_text().splitlines() if line.startswith("flags")] if info.exists() else []
    return set(lines[0].split()) if lines else set()


def check(source: Path, folder: Path, *more: str) -> None:
    command = [CXX, *FLAGS, *more, str(source), "-o", str(folder / "program")]
    built = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert built.returncode == 0, built.stdout[-4000:]
    done = subprocess.run([folder / "program"], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stdout.endswith("0 failures\n"), done.stdout[-4000:]


def test_derived_cells_are_those_written_by_hand(tmp_path):
    check(SOURCES / "derive.cpp", tmp_path)


def test_every_thread_of_a_single_row_has_a_share(tmp_path):
    """A plan once reckoned with single vectors where the kernels cut blocks: three threads for the work of two."""
    check(SOURCES.with_name("sanitize") / "plans.cpp", tmp_path, "-Werror", str(CSRC / "cpu" / "plan.cpp"))


@pytest.mark.parametrize("level", LEVELS)
def test_vector_functions(level, tmp_path):
    flags, needs = LEVELS[level]
    if not needs <= cpu_flags():
        pytest.skip(f"this CPU lacks {', '.join(sorted(needs - cpu_flags()))}")
    check(SOURCES / "vectors.cpp", tmp_path, f"-DFASTRNN_LEVEL={level}", *flags)
