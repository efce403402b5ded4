"""What belongs to a thread: whether it makes a graph, and dynamo's switch for recurrent layers."""

from __future__ import annotations

import threading

import pytest
import torch
from support import twins
from torch import nn
from torch.autograd import forward_ad

import fastrnn
from fastrnn.registry import CELLS


def in_threads(count, function):
    """``function`` in so many threads at once; what each returned or raised."""
    found, start = [None] * count, threading.Barrier(count)

    def run(index):
        start.wait()
        try:
            found[index] = function()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def fresh_model():
    """A model whose forward has code of its own, so that no recompile limit is met."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.GRU(4, 5)

    space = {}
    exec("def forward(self, x):\n    return self.rnn(x)[0]", space)
    Model.forward = space["forward"]
    return Model()


def test_compiled_models_called_first_in_several_threads():
    def call():
        model, x = fresh_model(), torch.randn(5, 2, 4)
        compiled = fastrnn.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), model(x))
        return "right"

    assert in_threads(4, call) == ["right"] * 4
    assert not torch._dynamo.config.allow_rnn


class Held:
    """A backend of torch.compile that holds its compilation open until told to go on."""

    def __init__(self):
        self.inside, self.leave = threading.Event(), threading.Event()

    def __call__(self, graph, inputs):
        self.inside.set()
        assert self.leave.wait(60)
        return graph


@pytest.fixture
def other_thread_compiles():
    torch._dynamo.reset()  # which compiles a function so many times, and then no more
    backend = Held()
    thread = threading.Thread(target=lambda: torch.compile(nn.Linear(2, 2), backend=backend)(torch.randn(1, 2)))
    thread.start()
    assert backend.inside.wait(60)
    assert torch.compiler.is_compiling()  # of the whole process
    yield
    backend.leave.set()
    thread.join()


def test_eager_calls_beside_a_compilation(other_thread_compiles):
    """They are no part of the other thread's graph."""
    (rnn, theirs, _), x = twins(CELLS["GRU"], 4, 4), torch.randn(5, 2, 4, requires_grad=True)
    (torchs,) = torch.autograd.grad(theirs(x)[0].sum(), x, create_graph=True)
    expected = rnn(x)[0]
    with fastrnn.backend("reference"):
        torch.testing.assert_close(rnn(x)[0], expected)
        assert fastrnn.explain(rnn, x).backend == "reference"
    with forward_ad.dual_level():
        dual = rnn(forward_ad.make_dual(x, torch.randn_like(x)))[0]
        assert forward_ad.unpack_dual(dual).tangent is not None
    torch.testing.assert_close(torch.func.grad(lambda x: rnn(x)[0].sum())(x.detach()), torchs)
    with pytest.raises(ValueError, match="lengths must be int64"):
        rnn(x, lengths=torch.tensor([9, 1]))
    (slope,) = torch.autograd.grad(rnn(x)[0].sum(), x, create_graph=True)
    torch.testing.assert_close(*(torch.autograd.grad(first.sum(), x)[0] for first in (slope, torchs)))
