"""The CUDA kernels under a race detector, on the CPU: silent as they are, and not when a barrier is missing."""

import os
import subprocess

import pytest
from emulator import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")


def race(*arguments):
    """Runs under ThreadSanitizer; without address randomisation, which it cannot live with on some systems."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    command = ["setarch", "-R", build.race_program(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("kernels", ["step", "cta", "cluster", "grid"])
def test_the_race_detector_is_silent(kernels):
    done = race(kernels)
    assert done.returncode == 0 and done.stdout == "ran\n" and done.stderr == "", done.stderr[-3000:]


@pytest.mark.parametrize(
    "kernels, without",
    [
        ("step", "block"),
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
