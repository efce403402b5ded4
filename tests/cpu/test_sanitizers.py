"""The CPU kernels under AddressSanitizer, UBSan and ThreadSanitizer, by drivers without torch (tests/cpu/sanitize).

They run cells, dtypes, instruction sets and divisions of the work over small odd shapes and compare with the plain
kernels on one thread. Planted faults show that the sanitizers would see a real one.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
from emulator import build

KERNELS, DRIVER = build.CSRC / "cpu", Path(__file__).with_name("sanitize")
HEADERS = [build.CSRC / "common", build.CSRC / "cells", KERNELS, DRIVER]
COMMON = ["-std=c++20", "-g1", "-Wall", "-Wextra"]
COMMON += [f'-DFASTRNN_CELLS="{DRIVER}/cells.def"', f'-DFASTRNN_TILES="{DRIVER}/tiles.h"']
# -O0 for ASan: every access stays, and the kernels compile in two thirds of the time. -O1 for TSan, slow otherwise.
FLAGS = {
    "address": [*COMMON, "-O0", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": [*COMMON, "-O1", "-fsanitize=thread", "-DFASTRNN_STD_THREADS"],
}
# ASan runs every level of the machine. With threads they do the same: TSan runs three.
LEVELS = {"address": ("plain", "avx2", "avx512", "avx512_bf16", "amx_bf16"), "thread": ("plain", "avx512", "amx_bf16")}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")]
kinds = pytest.mark.parametrize("kind", LEVELS)


def levels(kind: str) -> list[str]:
    """What is built and run: those of this machine. The driver itself refuses to run nothing."""
    if platform.machine() != "x86_64":
        return ["plain"]
    flags = set(re.search(r"flags\s*:(.*)", Path("/proc/cpuinfo").read_text())[1].split())
    needs = {"plain": set(), "avx2": {"avx2", "fma", "f16c"}}
    needs["avx512"] = needs["avx2"] | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
    needs["avx512_bf16"] = needs["avx512"] | {"avx512_bf16"}
    needs["amx_bf16"] = needs["avx512_bf16"]  # tiles are emulated
    return [level for level in LEVELS[kind] if needs[level] <= flags]


def program(kind: str, main: str = "driver", *of_parallel: str) -> Path:
    """A program under a sanitizer; the flags `of_parallel` are for parallel.cpp alone."""
    kernels = [KERNELS / "isa" / f"{level}.cpp" for level in levels(kind)]
    if main == "frozen":
        kernels = sorted((KERNELS / "isa").glob("frozen*.cpp"))
    drivers = [DRIVER / f"{name}.cpp" for name in (main, "forced_plan", "absent_levels")]
    extra = {source: ["-O2"] for source in drivers}  # their loops take longer than the kernels
    extra[KERNELS / "dispatch.cpp"] = ["-include", str(DRIVER / "tiles.h")]
    extra[KERNELS / "plan.cpp"] = ["-Dmake_plan=measured_plan"]
    extra[KERNELS / "parallel.cpp"] = list(of_parallel)
    sources = [*kernels, *sorted(KERNELS.glob("*.cpp")), *drivers]
    return build.link(main, sources, FLAGS[kind], folders=HEADERS, extra=extra)


def run(*command: str | Path, fails: bool = False, **environment: str) -> str:
    """What it prints."""
    # Threads that wait for one another must sleep: there may be more of them than cores.
    settings = os.environ | {"OMP_WAIT_POLICY": "passive"} | environment
    done = subprocess.run(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (done.returncode != 0) == fails, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def sanitizers_run(tmp_path_factory):
    source, probe = (tmp_path_factory.mktemp("probe") / name for name in ("probe.cpp", "probe"))
    source.write_text("int main() { return 0; }")
    for kind, flags in FLAGS.items():
        try:
            build.run([build.compiler(), *flags, source, "-o", probe])
            build.run([probe])
        except RuntimeError as error:
            pytest.skip(f"{build.compiler()} makes no program for {kind} that runs here: {str(error)[-300:]}")


@kinds
def test_layers(kind):
    output = run(program(kind))
    for level in levels(kind):
        runs = int(re.search(rf"^{level}: (\d+) runs$", output, re.MULTILINE)[1])
        assert runs > (2_500 if "bf16" in level else 10_000), output  # bfloat16 alone


@kinds
def test_frozen_stacks(kind):
    for level in levels(kind):
        output = run(program(kind, "frozen"), level, "300")
        assert re.search(r"^300 runs, 0 failures$", output, re.MULTILINE), output


def test_fewer_threads_granted_than_asked_for():
    """OpenMP may give a smaller team: the call then runs on one thread, in the memory measured for more."""
    output = run(program("address"), "plain", "1,1,2", OMP_THREAD_LIMIT="1")
    assert re.search(r"^0 failures$", output, re.MULTILINE), output


@pytest.mark.parametrize("main, division", [("driver", "1,1,2"), ("frozen", "100")], ids=["driver", "frozen"])
def test_a_workspace_one_byte_short_is_seen(main, division):
    assert "heap-buffer-overflow" in run(program("address", main), "plain", division, "1", fails=True)


@pytest.mark.parametrize("threads", [2, 4], ids=["between steps", "of the whole team"])
def test_a_missing_barrier_is_seen(threads):
    """Division 1,2,2 has four threads that meet after packing, and pairs that meet in every step."""
    planted = program("thread", "driver", f"-DFASTRNN_DROP_BARRIER={threads}")
    output = run(planted, "plain", "1,2,2", fails=True, TSAN_OPTIONS="halt_on_error=1")
    assert "ThreadSanitizer: data race" in output
