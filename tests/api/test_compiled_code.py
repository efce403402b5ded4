"""Code around a layer in a compiled function: compiled too where the switch is on, right where it is off, and no memory
overwritten by what Inductor makes of it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulator.build import compiler
from support import build, check_all, cotangents, layers
from torch import nn
from torch._dynamo import testing

import fastrnn
from fastrnn.registry import CELLS


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


class Around(nn.Module):
    """Code before the layer, between two of them and after them."""

    def __init__(self, space, cell, breaking: bool = False):
        super().__init__()
        self.before, self.after = nn.Linear(3, 4), nn.Linear(6, 2)
        self.first, self.second = build(space, cell, 4, 6, batch_first=True), build(space, cell, 6, 6, 2)
        self.breaking = breaking

    def forward(self, x):
        x, last = self.first(torch.tanh(self.before(x)))
        x = torch.nn.functional.gelu(x).transpose(0, 1) * 2
        x, _ = self.second(x)
        if self.breaking:
            torch._dynamo.graph_break()
        last = last[0] if isinstance(last, tuple) else last
        return self.after(x.relu()).softmax(-1) + self.after(last)


def triple(cell, **options):
    """Ours, torch's, and torch's in float64."""
    theirs, ours = Around(nn, cell, **options), Around(fastrnn, cell, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, copy.deepcopy(theirs).double()


def results(run, module, x):
    x = x.to(module.before.weight).requires_grad_()
    output = run(x)
    sources = {"input": x} | dict(module.named_parameters())
    grads = torch.autograd.grad(output, list(sources.values()), cotangents([output], torch.float32))
    return {"output": output.detach()} | {f"gradient of {name}": g for name, g in zip(sources, grads)}


def agree(compiled, modules, sizes=((2, 5), (3, 7))):
    """The compiled module against the others uncompiled, for several sizes and twice for each."""
    for B, T in sizes:
        for _ in range(2):
            x = torch.randn(B, T, 3)
            check_all(*(results(run, m, x) for run, m in zip((compiled, *modules[1:]), modules)))


def allowing(module, **options):
    """torch.compile itself, with torch's switch on."""
    compiled = torch.compile(module, **options)

    def call(x):
        with torch._dynamo.config.patch(allow_rnn=True):
            return compiled(x)

    return call


@pytest.mark.parametrize(
    "mode, compile, backend",
    [("RNN_TANH", fastrnn.compile, "eager"), ("LSTM", fastrnn.compile, "aot_eager"), ("GRU", allowing, "aot_eager")],
)
def test_all_of_it_is_one_graph(mode, compile, backend):
    modules, counter = triple(CELLS[mode]), testing.CompileCounterWithBackend(backend)
    agree(compile(modules[0], backend=counter, fullgraph=True), modules)
    code = [graph.code for graph in counter.graphs]
    assert 1 <= len(code) <= 2 and all("gelu" in text and "softmax" in text and "tanh" in text for text in code)


@layers
def test_after_a_break_the_rest_is_compiled(cell):
    modules, counter = triple(cell, breaking=True), testing.CompileCounterWithBackend("aot_eager")
    agree(fastrnn.compile(modules[0], backend=counter), modules, sizes=[(2, 5)])
    assert ["softmax" in graph.code for graph in counter.graphs] == [False, True]
    assert "gelu" in counter.graphs[0].code


@layers
def test_without_the_switch_it_is_right_uncompiled(cell):
    """torch leaves the whole function alone then, as for its own layers."""
    modules = triple(cell)
    agree(torch.compile(modules[0], backend="aot_eager"), modules, sizes=[(2, 5)])


PROGRAM = """
import copy, torch
from torch import nn
import fastrnn

class Model(nn.Module):
    def __init__(self, space):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.lstm = space.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.gru = space.GRU(10, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().transpose(1, 2)
        x, (h, c) = self.lstm(x)
        y, last = self.gru(x * x.sum(-1, keepdim=True).sigmoid())
        return self.head(y).log_softmax(-1).sum(1) + h.sum() + c.mean() + last.amax()

torch.manual_seed(0)
theirs, ours = Model(nn), Model(fastrnn)
ours.load_state_dict(theirs.state_dict())
compiled = fastrnn.compile(ours, fullgraph=True, dynamic=True, backend="inductor")
for B, T in ((2, 9), (3, 17), (5, 4), (2, 9)) * 3:
    x = torch.randn(B, 3, T)
    found, expected = compiled(x), theirs(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    pairs = (found, ours), (expected, theirs)
    slopes = [torch.autograd.grad(output.square().sum(), list(model.parameters())) for output, model in pairs]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)
print("reached the end")
"""


@pytest.mark.skipif(compiler() is None, reason="torch's Inductor needs a C++ compiler")
def test_inductor_leaves_the_heap_alone():
    """In a process of its own, which glibc ends where a block's bounds were overwritten; freed memory is filled."""
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}
    checking = sorted(Path("/usr/lib").glob("*/libc_malloc_debug.so.0"))
    if checking:
        environment |= {"LD_PRELOAD": str(checking[0]), "MALLOC_CHECK_": "3"}
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and "reached the end" in ended.stdout, ended.stderr[-3000:]
