"""The division of CPU work among threads, asked of csrc/cpu/plan.cpp by a program of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CXX = shutil.which(os.environ.get("CXX", "g++"))


@pytest.mark.skipif(CXX is None, reason="there is no g++")
@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the sources")
def test_every_thread_of_a_single_row_has_a_share(tmp_path):
    """A plan once reckoned with single vectors where the kernels cut blocks: three threads for the work of two."""
    program = tmp_path / "plans"
    sources = [ROOT / "tests/cpu/sanitize" / "plans.cpp", ROOT / "csrc" / "cpu" / "plan.cpp"]
    subprocess.run([CXX, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-o", program, *sources], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
