"""The CPU kernels under AddressSanitizer, UBSan and ThreadSanitizer, by a driver without torch (tests/cpu/sanitize).

The driver runs every cell, dtype, instruction set and division of the work over small odd shapes and compares with
plain loops. Planted faults show that the sanitizers would see a real one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS, DRIVER = ROOT / "csrc/cpu", ROOT / "tests/cpu/sanitize"
CXX = shutil.which(os.environ.get("CXX", "g++"))
HEADERS = [f'-DFASTRNN_CELLS="{DRIVER}/cells.def"', f'-DFASTRNN_TILES="{DRIVER}/tiles.h"']
COMMON = ["-std=c++20", "-g1", "-Wall", "-Wextra", *HEADERS]
# -O0 for ASan: every access stays, and the kernels compile in two thirds of the time. -O1 for TSan, slow otherwise.
# ASan runs every level of the machine. With threads they do the same: TSan runs three.
ADDRESS = [*COMMON, "-O0", "-fopenmp", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREAD = [*COMMON, "-O1", "-fsanitize=thread", "-DFASTRNN_STD_THREADS"]
LEVELS = {"address": ("plain", "avx2", "avx512", "avx512_bf16", "amx_bf16"), "thread": ("plain", "avx512", "amx_bf16")}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CXX is None, reason="there is no g++")]


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


def key() -> str:
    """Of everything that a build depends on."""
    text = hashlib.sha256(f"{CXX} {ADDRESS} {THREAD} {[levels(kind) for kind in LEVELS]}".encode())
    text.update(subprocess.check_output([CXX, "--version"]))
    for path in sorted([*(ROOT / "csrc").rglob("*"), *DRIVER.iterdir()]):
        if path.suffix in (".h", ".cpp", ".def") and "bindings" not in path.parts:
            text.update(path.read_bytes())
    return text.hexdigest()[:16]


class Builds:
    """Objects and programs in one folder, each made once; a change of any source starts another folder."""

    def __init__(self):
        self.folder = Path(tempfile.gettempdir(), f"fastrnn-sanitizers-{os.getuid()}-{key()}")
        self.folder.mkdir(exist_ok=True)

    def compile(self, source: Path, flags: list[str]) -> Path:
        if source.parent == DRIVER:  # its loops take longer than the kernels
            flags = [*flags, "-O2"]
        elif source.stem == "dispatch":
            flags = [*flags, "-include", str(DRIVER / "tiles.h")]
        name = hashlib.sha256(f"{source} {flags}".encode()).hexdigest()[:12]
        made = self.folder / f"{source.stem}-{name}.o"
        if not made.exists():
            unfinished = made.with_suffix(".unfinished")
            run([CXX, *flags, "-c", str(source), "-o", str(unfinished)])
            unfinished.rename(made)
        return made

    def program(self, kind: str, *extra: str, main: str = "driver") -> Path:
        """A program under a sanitizer; `extra` flags are for parallel.cpp alone."""
        flags = {"address": ADDRESS, "thread": THREAD}[kind]
        made = self.folder / "-".join((main, kind, *(flag.strip("-D").replace("=", "") for flag in extra)))
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                sources = [KERNELS / "isa" / f"{level}.cpp" for level in levels(kind)]
                if main == "frozen":
                    sources = sorted((KERNELS / "isa").glob("frozen*.cpp"))
                sources += [path for path in sorted(KERNELS.glob("*.cpp")) if path.stem not in ("plan", "parallel")]
                sources += [DRIVER / f"{name}.cpp" for name in (main, "forced_plan", "absent_levels")]
                with ThreadPoolExecutor(2) as pool:
                    objects = list(pool.map(lambda source: self.compile(source, flags), sources))
                objects.append(self.compile(KERNELS / "parallel.cpp", [*flags, *extra]))
                run([CXX, *flags, *map(str, objects), "-o", str(made)])
        return made


def run(command: list, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    # Threads that wait for one another must sleep: there may be more of them than cores.
    settings = os.environ | {"OMP_WAIT_POLICY": "passive"} | environment
    done = subprocess.run(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check:
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}"
    return done


@pytest.fixture(scope="module")
def builds() -> Builds:
    probe = "int main() { return 0; }"
    for flags in (ADDRESS, THREAD):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text(probe)
            built = run([CXX, *flags, str(source), "-o", f"{folder}/probe"], check=False)
            done = built if built.returncode else run([f"{folder}/probe"], check=False)
        if done.returncode:
            pytest.skip(f"{CXX} {flags[-2]} makes no program that runs here: {done.stdout[-300:]}")
    return Builds()


def check_driver(program: Path, kind: str, **environment: str) -> None:
    for level in levels(kind):
        output = run([str(program), "--isa", level], **environment).stdout
        runs = int(re.search(r"^(\d+) runs, 0 failures$", output, re.MULTILINE)[1])
        assert runs > (1_500 if "bf16" in level else 5_000), output  # bfloat16 alone
        print(f"{kind}: {level}: {runs} runs")


def test_memory_and_undefined_behaviour(builds):
    check_driver(builds.program("address"), "address")


@pytest.mark.parametrize("kind", LEVELS)
def test_cells_with_norms(builds, kind):
    program = str(builds.program(kind, main="norms"))
    for level in levels(kind):
        output = run([program, level]).stdout
        runs = int(re.search(r"^(\d+) runs, 0 failures$", output, re.MULTILINE)[1])
        assert runs > (500 if "bf16" in level else 1_000), output
    done = run([program, "plain", "--short-workspace"], check=False)
    assert kind == "thread" or "heap-buffer-overflow" in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize("kind", LEVELS)
def test_frozen_stacks(builds, kind):
    program = str(builds.program(kind, main="frozen"))
    for level in levels(kind):
        output = run([program, level, "300"]).stdout
        assert re.search(r"^300 runs, 0 failures$", output, re.MULTILINE), output
    if kind == "address":
        done = run([program, "plain", "100", "1"], check=False)
        assert done.returncode != 0 and "heap-buffer-overflow" in done.stdout, done.stdout[-3000:]


def test_fewer_threads_granted_than_asked_for(builds):
    """OpenMP may give a smaller team: the call then runs on one thread, in the memory measured for more."""
    program = builds.program("address")
    output = run([str(program), "--isa", "plain", "--division", "1,1,2"], OMP_THREAD_LIMIT="1").stdout
    assert re.search(r"^\d+ runs, 0 failures$", output, re.MULTILINE), output


def test_races(builds):
    check_driver(builds.program("thread"), "thread")


def test_a_workspace_one_byte_short_is_seen(builds):
    command = [str(builds.program("address")), "--isa", "plain", "--division", "1,1,2", "--short-workspace"]
    done = run(command, check=False)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize("threads", [2, 4], ids=["between steps", "of the whole team"])
def test_a_missing_barrier_is_seen(builds, threads):
    """Division 1,2,2 has four threads that meet after packing, and pairs that meet in every step."""
    program = builds.program("thread", f"-DFASTRNN_DROP_BARRIER={threads}")
    command = [str(program), "--isa", "plain", "--division", "1,2,2"]
    done = run(command, check=False, TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode != 0 and "ThreadSanitizer: data race" in done.stdout, done.stdout[-3000:]
