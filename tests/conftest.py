"""Fixtures of the whole suite."""

from __future__ import annotations

import gc
import os
import tempfile

import pytest
import torch
from emulator import build
from emulator.report import pytest_terminal_summary  # noqa: F401  pytest finds it here by its name
from support import OWN_BACKENDS, available

import fastrnn
from fastrnn.registry import ALL_CELLS

# Here and in all that the tests start, what `prove` and `tune` have kept on this machine does not count.
os.environ["FASTRNN_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"fastrnn-tests-{os.getpid()}")
# The cases are small and the machine may be shared: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)
# At the first backward autograd counts the devices. A test may have pretended by then that there is a GPU
# (FakeTensorMode on a torch with CUDA), and no forked child could run backward any more (test_cpu_threads.py).
torch.ones(1, requires_grad=True).sum().backward()


def pytest_addoption(parser):
    parser.addoption("--cells", help="leave out tests that are given another cell than these: LSTM,GRU")


def pytest_collection_modifyitems(config, items):
    if not (chosen := config.getoption("--cells")):
        return
    if unknown := set(chosen.split(",")) - set(ALL_CELLS):
        raise pytest.UsageError(f"--cells: expected cells among {', '.join(ALL_CELLS)}, got {', '.join(unknown)}")
    others, left_out = set(ALL_CELLS) - set(chosen.split(",")), []
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        cell = given.get("cell", given.get("mode"))
        if getattr(cell, "mode", cell) in others:
            left_out.append(item)
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish():
    """Leaves the tests out of garbage collection: every timing collects, and they would make that take a second."""
    gc.collect()
    gc.freeze()


def pytest_configure(config):
    """Silences what torch says of itself, so that a warning of ours is seen."""
    for text in ("LSTM with projections is not supported with oneDNN", "`torch.jit.script` is deprecated"):
        config.addinivalue_line("filterwarnings", f"ignore:{text}")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _emulated():
    emulated = build.load()
    emulated.follow_plan()  # not what a GPU does by default
    return emulated


@pytest.fixture
def cuda(_emulated):
    """The CUDA backend in the emulator; whatever the test prescribes to it ends with the test."""
    yield _emulated
    _emulated.follow_plan()
    _emulated.set_device()


def _forced(request):
    """A backend, forced while the test runs."""
    with fastrnn.backend(request.param):
        yield request.param


def _backends(names):
    return pytest.fixture(_forced, params=names, ids=lambda name: name or "automatic")


backend = _backends(available())
own_kernels = _backends(OWN_BACKENDS)
# With the automatic choice too, which may be torch's own layers.
any_backend = _backends([None, *available()])
own_backend = _backends([None, *OWN_BACKENDS])
