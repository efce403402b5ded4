"""The CUDA kernels under sanitizers, on the CPU: silent as they are, and not when a fault is planted.

Under AddressSanitizer and UndefinedBehaviorSanitizer each array ends where it does, a block's shared memory with the
bytes of its launch and with the block, and every value lies where its type may. ThreadSanitizer sees races.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from emulator import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")
KINDS = ["step", "norm", "cta", "cluster", "grid"]


def run(sanitizer, *arguments):
    """Without address randomisation, which ThreadSanitizer cannot live with on some systems."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    command = ["setarch", "-R", build.sanitized_program(sanitizer), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("kernels", [*KINDS, "barrier"])
@pytest.mark.parametrize("sanitizer", build.SANITIZERS)
def test_the_sanitizers_are_silent(sanitizer, kernels):
    done = run(sanitizer, kernels)
    assert done.returncode == 0 and done.stdout == "ran\n" and done.stderr == "", done.stderr[-3000:]


@pytest.mark.parametrize(
    "kernels, fault, text",
    [
        *((kernels, "short", "heap-buffer-overflow") for kernels in KINDS),
        *((kernels, "shifted", "misaligned address") for kernels in KINDS),
        ("cluster", "cluster", "use-after-poison"),  # a block that leaves before its cluster has read it
    ],
)
def test_a_planted_fault_is_seen(kernels, fault, text):
    done = run("address", kernels, fault)
    assert done.returncode != 0 and text in done.stderr, done.stderr[-3000:]


@pytest.mark.parametrize("arguments", [("norm", "block"), ("grid", "grid"), ("shuffle",)], ids="-".join)
def test_a_kind_of_barrier_that_is_missing_is_a_race(arguments):
    """A shuffle in place of one orders no memory."""
    done = run("thread", *arguments)
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-3000:]


def barriers():
    """Every place in the kernels' sources where threads wait for each other, as file.cuh:line; the barriers of norms
    and of the grid, a counter, are kinds of their own above."""
    wait = re.compile(r"(__syncthreads\(\)|cluster_wait\(\)|cuda::wait\(.*\));")
    for file in sorted(Path(build.CSRC, "cuda").glob("*.cuh")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if file.name != "primitives.cuh" and wait.search(line):
                yield f"{file.name}:{number}"


PLACES = list(barriers())
assert len(PLACES) > 10  # or a pattern without matches would test nothing


@pytest.mark.parametrize("place", PLACES)
def test_no_single_barrier_can_be_left_out(place):
    """Not all kernels need each: a second use of memory within a step is the grid's alone, which serves more tiles."""
    kind = place.partition(".")[0].removeprefix("resident_")
    results = [run("thread", name, place) for name in ([kind] if kind in KINDS else ["cta", "cluster", "grid"])]
    assert any(done.returncode == 66 and "data race" in done.stderr for done in results), results
