"""The memory that the CPU kernels keep from call to call: bounded, and never in two hands at a time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from support import compiled

import fastrnn
from fastrnn._kernels import ext

pytestmark = compiled

MIB = 2**20


@pytest.fixture(autouse=True)
def own_kernels():
    with fastrnn.backend("cpu"):
        yield


def test_what_is_freed_serves_the_next_call():
    module, x = fastrnn.GRU(64, 256), torch.randn(70, 4, 64)
    with torch.no_grad():
        output, _ = module(x)
        pointer, nbytes = output.data_ptr(), output.nbytes
        before = ext.load().cpu.cached_bytes()
        del output
        kept = ext.load().cpu.cached_bytes() - before
        assert nbytes <= kept <= 1.25 * nbytes
        assert module(x[:-1])[0].data_ptr() == pointer, "a sequence of nearly the same length gets the same memory"


def test_a_result_stays_as_it_is_while_others_come_and_go():
    module, results = fastrnn.LSTM(32, 96), []
    inputs = [torch.randn(64, 8, 32) for _ in range(6)]
    for x in inputs:
        output, _ = module(x)
        grads = torch.autograd.grad(output.sum(), list(module.parameters()))
        results.append([output.detach(), *grads, *(t.clone() for t in (output.detach(), *grads))])
    assert len({t.data_ptr() for tensors in results for t in tensors}) == sum(map(len, results))
    for tensors in results:
        half = len(tensors) // 2
        torch.testing.assert_close(tensors[:half], tensors[half:], rtol=0, atol=0)


def test_each_gradient_has_a_storage_of_its_own():
    module = fastrnn.LSTM(16, 64, proj_size=8, bidirectional=True)
    output, _ = module(torch.randn(5, 3, 16))
    grads = torch.autograd.grad(output.sum(), list(module.parameters()))
    assert len({g.untyped_storage().data_ptr() for g in grads}) == len(grads)
    assert all(g.untyped_storage().nbytes() == g.nbytes and g.data_ptr() % 64 == 0 for g in grads)
    for i, g in enumerate(grads):
        g.fill_(i)
    assert all((g == i).all() for i, g in enumerate(grads)), "what is written to one is seen in another"


TRAINING = """
import torch, fastrnn
from fastrnn._kernels import ext
with fastrnn.backend("cpu"):
    module, x = fastrnn.LSTM(64, 128), torch.randn(100, 16, 64)
    for _ in range(3):
        module(x)[0].sum().backward()
print(ext.load().cpu.cached_bytes(), ext.load().cpu.cache_limit())
"""


REFUSED = """
import os, torch, fastrnn
from fastrnn import _info
for limit in ("many", "-1", "1.5", "99999999"):
    os.environ["FASTRNN_CPU_CACHE_MB"] = limit
    try:
        with fastrnn.backend("cpu"):
            fastrnn.LSTM(64, 128)(torch.zeros(100, 16, 64))
    except RuntimeError as error:
        print(str(error).partition(chr(10))[0])
    print(*[line for line in _info.report().splitlines() if line.startswith("cpu memory")])
"""


def printed_by(program: str, **environment: str) -> str:
    command, env = [sys.executable, "-c", program], {**os.environ, **environment}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("limit", "least", "most"), [("0", 0, 0), ("2", MIB // 2, 2 * MIB), ("", 4 * MIB, 256 * MIB)])
def test_no_more_is_kept_than_allowed(limit, least, most):
    kept, allowed = map(int, printed_by(TRAINING, FASTRNN_CPU_CACHE_MB=limit).split())
    assert least <= kept <= most == allowed


def test_a_limit_that_is_no_number_is_refused():
    expected = "FASTRNN_CPU_CACHE_MB: expected a whole number of MiB, got "
    wrong = ("many", "-1", "1.5", "99999999")
    lines = printed_by(REFUSED).splitlines()
    assert lines[::2] == [f"{expected}'{limit}'" for limit in wrong]
    assert [line.split(maxsplit=2)[2] for line in lines[1::2]] == lines[::2]


OUT_OF_MEMORY = """
import resource, torch, fastrnn
from fastrnn._kernels import ext
with fastrnn.backend("cpu"), torch.no_grad():
    module = fastrnn.LSTM(8, 64)
    module(torch.randn(4000, 64, 8))
    kept = ext.load().cpu.cached_bytes()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, used + 2**20))
    output, _ = fastrnn.GRU(8, 60)(torch.ones(8).expand(3500, 64, 8))
    print(kept > 2**25, ext.load().cpu.cached_bytes() < kept)
    del output
    try:
        module(torch.ones(8).expand(100_000, 64, 8))
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_kept_goes_before_memory_is_short():
    first, error = printed_by(OUT_OF_MEMORY).splitlines()[:2]
    assert first == "True True"
    assert "not enough memory: tried to allocate" in error
