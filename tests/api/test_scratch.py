"""Memory that one backward pass of the reference leaves to the next."""

from __future__ import annotations

import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn
from fastrnn.reference import scratch
from fastrnn.reference.scratch import Scratch

MIB = 2**20


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(scratch, "_kept", {})
    scratch._limit.cache_clear()
    yield
    scratch._limit.cache_clear()


def check_blocks(depth: int = 0) -> None:
    """Tensors keep their values while others are written: of this block, of one within it, and of another thread's."""
    with Scratch(torch.empty(0)) as memory, Scratch(torch.empty(0).double()) as other:
        sizes = (3, 5), (1,), (0, 7), (20, 20), (10_000,)
        tensors = [*(memory.empty(*size) for size in sizes), other.empty(1000)]
        for value, t in enumerate(tensors, 10 * depth):
            t.fill_(value)
        if depth < 2:
            thread = threading.Thread(target=check_blocks, args=(3,))
            thread.start()
            check_blocks(depth + 1)
            thread.join()
        assert [tuple(t.shape) for t in tensors[:-1]] == list(sizes) and tensors[-1].dtype == torch.float64
        assert all((t == value).all() for value, t in enumerate(tensors, 10 * depth))


def test_open_blocks_share_no_memory():
    for _ in range(3):  # the first with memory of its own, the others in what is kept
        check_blocks()


def test_the_next_block_gets_the_same_memory():
    def addresses(*counts):
        with Scratch(torch.empty(0)) as memory:
            return [memory.empty(count).data_ptr() for count in counts]

    addresses(100, 1000)
    kept = addresses(100, 1000)
    assert addresses(100, 1000) == kept and addresses(50) == kept[:1]
    with pytest.raises(KeyError), Scratch(torch.empty(0)):
        raise KeyError
    assert addresses(100, 1000) == kept
    assert addresses(100, 2000)[0] == kept[0]  # as far as it goes


def test_fake_tensors_leave_nothing():
    with FakeTensorMode(), Scratch(torch.empty(0)) as memory:
        memory.empty(1000)
    assert not scratch._kept


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_pass_in_inference_mode_leaves_memory_that_others_can_write(cell):
    module, x = getattr(fastrnn, cell)(64, 64), torch.randn(50, 32, 64)
    results = []
    with fastrnn.backend("reference"):
        for inside in (True, False):
            loss = module(x)[0].square().sum()
            with torch.inference_mode(inside):
                results.append(torch.autograd.grad(loss, module.parameters()))
    assert all(map(torch.equal, *results))


def train() -> None:
    with fastrnn.backend("reference"):
        fastrnn.LSTM(64, 128)(torch.randn(100, 16, 64))[0].sum().backward()


@pytest.mark.parametrize(("limit", "least", "most"), [("0", 0, 0), ("2", 2 * MIB, 2 * MIB), ("", 4 * MIB, 16 * MIB)])
def test_no_more_is_kept_than_allowed(monkeypatch, limit, least, most):
    monkeypatch.setenv("FASTRNN_CPU_CACHE_MB", limit)
    for _ in range(3):
        train()
    assert least <= sum(memory.nbytes for memory in scratch._kept.values()) <= most


@pytest.mark.parametrize("limit", ["many", "-1", "1.5", "99999999"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch, limit):
    monkeypatch.setenv("FASTRNN_CPU_CACHE_MB", limit)
    with pytest.raises(ValueError, match=f"FASTRNN_CPU_CACHE_MB: expected a whole number of MiB, got '{limit}'"):
        train()


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_gradients_outlive_the_passes_after_theirs(cell):
    """Nothing that a backward pass hands out lies in what the next one writes."""
    torch.manual_seed(0)
    module, x = getattr(fastrnn, cell)(5, 7, bidirectional=True).double(), torch.randn(6, 3, 5, dtype=torch.float64)
    expected = getattr(torch.nn, cell)(5, 7, bidirectional=True).double()
    expected.load_state_dict(module.state_dict())
    held = []
    with fastrnn.backend("reference"):
        for factor in (1.0, 2.0, 3.0):
            given = (factor * x).requires_grad_()
            held.append((given, torch.autograd.grad(module(given)[0].square().sum(), [given, *module.parameters()])))
    for given, grads in held:
        wanted = torch.autograd.grad(expected(given)[0].square().sum(), [given, *expected.parameters()])
        for got, want in zip(grads, wanted):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
