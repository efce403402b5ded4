"""The CUDA kernels under a race detector, on the CPU: silent as they are, and not when a barrier is missing."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from emulator import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")


def race(*arguments):
    """Runs under ThreadSanitizer; without address randomisation, which it cannot live with on some systems."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    command = ["setarch", "-R", build.sanitized_program("thread"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("kernels", ["step", "norm", "cta", "cluster", "grid", "barrier"])
def test_the_race_detector_is_silent(kernels):
    done = race(kernels)
    assert done.returncode == 0 and done.stdout == "ran\n" and done.stderr == "", done.stderr[-3000:]


@pytest.mark.parametrize(
    "kernels, without",
    [
        ("step", "block"),
        ("norm", "block"),
        ("cta", "block"),
        ("cluster", "block"),
        ("cluster", "cluster"),
        ("grid", "block"),
        ("grid", "grid"),
    ],
)
def test_the_race_detector_speaks_when_a_barrier_is_missing(kernels, without):
    done = race(kernels, without)
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-3000:]


def test_a_shuffle_orders_no_memory():
    done = race("shuffle")
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-3000:]


def barriers():
    """Every place in the kernels' sources where threads wait for each other, as file.cuh:line; the grid's own barrier,
    a counter, is a kind of its own above."""
    wait = re.compile(r"(__syncthreads\(\)|cluster_wait\(\)|cuda::wait\(.*\));")
    for file in sorted(Path(build.CSRC, "cuda").glob("*.cuh")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if file.name != "primitives.cuh" and wait.search(line):
                yield f"{file.name}:{number}"


@pytest.mark.parametrize("place", list(barriers()))
def test_no_single_barrier_can_be_left_out(place):
    """Not all kernels need each: a second use of memory within a step is the grid's alone, which serves more tiles."""
    kind = place.partition(".")[0].removeprefix("resident_")
    kernels = [kind] if kind in ("step", "cta", "cluster", "grid") else ["cta", "cluster", "grid"]
    results = [race(name, place) for name in kernels]
    assert 66 in [done.returncode for done in results], [done.stderr[-1000:] for done in results]
    assert any("data race" in done.stderr for done in results)
