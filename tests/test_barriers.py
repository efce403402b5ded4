"""The program that times barriers and launches: compiles without a warning, and ends clearly without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import machine

SOURCE = Path(machine.__file__).with_name("barriers.cu")
NVCC = shutil.which("nvcc")
FLAGS = ("-std=c++20", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


def test_its_rows_are_those_that_the_model_reads():
    printed = re.findall(r'print\("(\w+)"', SOURCE.read_text())
    assert sorted(printed) == sorted((*machine.BARRIERS, *machine.LAUNCHES))
    assert r'"what,size,us\n"' in SOURCE.read_text()


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
    rows = [dict(zip(("what", "size", "us"), line.split(","))) for line in done.stdout.splitlines()[1:]]
    found = machine.latencies(rows)
    barriers = [*found["grid_barrier"].values(), *found["cluster_barrier"].values()]
    assert all(1e-8 < seconds < 1e-4 for seconds in (*barriers, found["launch"], found["graph_launch"]))
    assert set(found["cluster_barrier"]) >= ({2, 4, 8} if major >= 9 else set())
