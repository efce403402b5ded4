"""The program that times barriers and launches: compiles without a warning, and ends clearly without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks/barriers.cu"
NVCC = shutil.which("nvcc")
FLAGS = ("-std=c++20", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


def test_every_call_is_checked():
    source = re.sub(r"//.*", "", SOURCE.read_text())
    checked = re.compile(r"(CHECK\(|cudaError_t error = |\(void\)\s?)$")
    calls = list(re.finditer(r"\bcuda[A-Z]\w+(?=\()", source))
    unchecked = {call[0] for call in calls if not checked.search(source, 0, call.start())}
    assert unchecked == {"cudaGetErrorString"} and len(calls) > 20
    assert "<<<" not in source  # a launch of that form returns nothing to check


@needs_nvcc
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_it_compiles_without_a_warning(arch, tmp_path):
    program = tmp_path / "barriers"
    command = [NVCC, *FLAGS, f"-arch=sm_{arch}", "-o", str(program), str(SOURCE)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0 and built.stderr == "", built.stderr
    if not torch.cuda.is_available():
        done = subprocess.run([program], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("barriers: cudaGetDeviceCount(&devices): ")


@needs_nvcc
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_it_measures_is_plausible(tmp_path):
    major, minor = torch.cuda.get_device_capability()
    program = tmp_path / "barriers"
    subprocess.run([NVCC, *FLAGS, f"-arch=sm_{major}{minor}", "-o", str(program), str(SOURCE)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split(",") for line in done.stdout.splitlines()[1:]]
    assert all(1e-2 < float(us) < 100 for _, _, us in rows)
    assert {what for what, _, _ in rows} >= {"grid_barrier", "launch", "graph_launch"}
    sizes = {int(size) for what, size, _ in rows if what == "cluster_barrier"}
    assert sizes >= ({2, 4, 8} if major >= 9 else set())
