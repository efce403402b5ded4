"""The CUDA kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on the CPU: each array ends where it does, a
block's shared memory ends with the bytes of its launch and with the block, and every value lies where its type may."""

import subprocess

import pytest

from emulator import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")
each_tier = pytest.mark.parametrize("kernels", ["step", "norm", "cta", "cluster", "grid"])


def run(*arguments):
    command = [build.sanitized_program("address"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@each_tier
def test_memory_and_undefined_behaviour(kernels):
    done = run(kernels)
    assert done.returncode == 0 and done.stdout == "ran\n", done.stderr[-3000:]


@each_tier
@pytest.mark.parametrize("fault, text", [("short", "heap-buffer-overflow"), ("shifted", "misaligned address")])
def test_a_planted_fault_is_seen(kernels, fault, text):
    done = run(kernels, fault)
    assert done.returncode != 0 and text in done.stderr, done.stderr[-3000:]


def test_a_block_that_leaves_before_its_cluster_has_read_it_is_seen():
    done = run("cluster", "cluster")
    assert done.returncode != 0 and "use-after-poison" in done.stderr, done.stderr[-3000:]
