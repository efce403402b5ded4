"""The CPU kernels and threads: any number, several callers at once, after fork, within backward."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty

import pytest
import torch
from support import build, cells, check_all, compiled, evaluate, random_states, twins, using

import fastrnn

pytestmark = compiled
# Large enough for the kernels to take a second thread, which they do not for a few microseconds of work.
T, B, I, H = 12, 16, 96, 128


@pytest.fixture(autouse=True)
def _cpu():
    with fastrnn.backend("cpu"):
        yield


def example(cell, steps=T, batch=B, dtype=torch.float32):
    torch.manual_seed(1)
    modules = twins(cell, I, H, bidirectional=batch > 1, dtype=dtype)
    return modules, torch.randn(steps, batch, I), random_states(cell, 1 + (batch > 1), batch, H)


@cells
@pytest.mark.parametrize(
    "steps, batch, packed, dtype",
    [(T, B, False, torch.float32), (T, B, True, torch.float32),
     (4 * T, 1, False, torch.float32), (4 * T, 1, False, torch.bfloat16)],
)  # fmt: skip
def test_any_number_of_threads(cell, steps, batch, packed, dtype):
    """Within the budget for every number, and the same bits again for the same number.

    Where rows are few, hidden units are divided down to single vectors of them.
    """
    modules, x, hx = example(cell, steps, batch, dtype)
    lengths = torch.arange(B) % T + 1 if packed else None
    theirs, truth = (evaluate(module, x, hx, lengths, dtype) for module in modules[1:])
    for count in (1, 2, 3, 5):
        with using(threads=count):
            first, second = (evaluate(modules[0], x, hx, lengths) for _ in range(2))
        check_all(first, theirs, truth)
        assert all(torch.equal(first[name], second[name]) for name in first), count


@cells
def test_several_callers_at_once(cell):
    """Four Python threads, forward and backward through one module, each with inputs of its own in size and memory."""
    module = build(fastrnn, cell, I, H, bidirectional=True)
    inputs = [torch.randn(T + 3 * i, 3 + i % 4, I) for i in range(8)]

    def work(x):
        # A backend is forced per thread, and so is the number of threads that torch uses.
        torch.set_num_threads(2)
        with fastrnn.backend("cpu"):
            return evaluate(module, x)

    expected = [work(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for mine, alone in zip(pool.map(work, inputs), expected):
                assert all(torch.equal(mine[name], alone[name]) for name in alone)
    torch.set_num_threads(1)


def _in_child(queue, module, x, hx, count):
    torch.set_num_threads(count)
    with fastrnn.backend("cpu"):
        if count == 1:
            results = evaluate(module, x, hx)
        else:
            with torch.no_grad():
                results = {"output": module(x, hx)[0]}
        queue.put({name: value.numpy() for name, value in results.items()})


@cells
@pytest.mark.parametrize("count", [1, 2])
def test_after_fork(cell, count):
    """The threads that the parent used do not exist in the child: it must neither wait for them nor miss their work.

    With two threads torch's own products and large copies hang there, so only our forward can be asked for.
    """
    with using(threads=2):
        modules, x, hx = example(cell)
        expected = evaluate(modules[0], x, hx)
        expected["output"] = expected["output 0"]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, modules[0], x, hx, count), daemon=True)
    child.start()
    try:
        got = queue.get(timeout=20)
    except Empty:
        pytest.fail("the child gave no answer within 20 s")
    finally:
        child.kill()
        child.join()
    assert got
    for name, value in got.items():
        torch.testing.assert_close(torch.from_numpy(value), expected[name], rtol=1e-4, atol=1e-4)


def test_other_python_threads_run_during_a_call():
    """The interpreter is free while a kernel works: a counter in another thread goes on."""
    module = fastrnn.LSTM(256, 256)
    x = torch.randn(200, 8, 256)
    with torch.no_grad():
        module(x)
        ticks, stop = [], threading.Event()

        def count():
            while not stop.is_set():
                ticks.append(time.perf_counter())
                time.sleep(0.0005)

        counter = threading.Thread(target=count)
        counter.start()
        try:
            during = 0
            for _ in range(20):
                begin = time.perf_counter()
                module(x)
                end = time.perf_counter()
                # Well inside the call: the wrapper around the kernel does hold the lock, at both ends.
                margin = (end - begin) / 4
                during += sum(begin + margin < tick < end - margin for tick in list(ticks))
                if during > 5:
                    break
        finally:
            stop.set()
            counter.join()
    assert during > 5, f"{during} ticks of another thread in {end - begin:.3f} s"


def test_a_call_within_backward():
    """From a hook, on the thread that autograd chose."""
    outer, inner = fastrnn.GRU(I, H), fastrnn.LSTM(I, H)
    x = torch.randn(T, B, I)
    with using(threads=2):
        expected = evaluate(inner, x)
        seen = []

        def hook(grad):
            with fastrnn.backend("cpu"), torch.enable_grad():
                seen.append(evaluate(inner, x))

        y = outer(x)[0]
        y.register_hook(hook)
        y.sum().backward()
    assert len(seen) == 1
    assert all(torch.equal(seen[0][name], expected[name]) for name in expected)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc/self/maps on this system")
def test_one_openmp_runtime():
    """A second one would bring a second pool of threads to the same cores."""
    with using(threads=2):
        fastrnn.LSTM(I, H)(torch.randn(T, B, I))
    files = set(re.findall(r"\S*/lib(?:gomp|iomp5|omp)\b\S*", Path("/proc/self/maps").read_text()))
    assert len({os.path.realpath(file) for file in files}) == 1, files
