"""torch.compile: one graph, forward and backward, for every sequence length; torch's switch for nn.LSTM stays alone."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from emulator.build import compiler
from support import (
    LAYERS,
    build,
    cells,
    check,
    check_all,
    evaluate,
    given,
    layers,
    pairs,
    random_states,
    tensors,
    twins,
    under_autocast,
)
from torch import nn
from torch._dynamo import testing

import fastrnn
from fastrnn._backends import dispatch, graph


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    assert torch._dynamo.config.allow_rnn is False


class Compiled:
    """A compiled module that :func:`support.evaluate` takes for the module."""

    def __init__(self, module, compile=fastrnn.compile, **options):
        self.run = compile(module, **{"backend": "aot_eager", "fullgraph": True, **options})
        self.batch_first = getattr(module, "batch_first", False)
        self.parameters, self.named_parameters = module.parameters, module.named_parameters

    def __call__(self, *args):
        return self.run(*args)


CASES = {
    "plain": ({}, False),
    "given states": ({"num_layers": 2, "batch_first": True}, True),
    "both ways": ({"num_layers": 2, "bidirectional": True, "bias": False}, False),
    "projected": ({"proj_size": 3, "bidirectional": True}, True),
}


@cells
@pytest.mark.parametrize("case", CASES)
def test_one_graph_gives_torchs_results_and_gradients(cell, case):
    options, given = CASES[case]
    if "proj_size" in options and cell.mode != "LSTM":
        pytest.skip("only an LSTM has projections")
    ours, theirs, truth = twins(cell, 4, 6, **options)
    x, hx = torch.randn(5, 3, 4), None
    if given:
        rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        hx = random_states(cell, rows, 5 if options.get("batch_first") else 3, 6, options.get("proj_size", 0))
    check_all(*(evaluate(module, x, hx) for module in (Compiled(ours), theirs, truth)))


@pytest.mark.skipif(compiler() is None, reason="torch's Inductor needs a C++ compiler")
@layers
def test_inductor(cell):
    """The default backend of torch.compile, inside a model."""
    ours, theirs, truth = (
        nn.Sequential(nn.Linear(3, 4), m) for m in twins(cell, 4, 6, 2, bidirectional=True, batch_first=True)
    )
    for other in (ours, theirs):
        other[0].load_state_dict(truth[0].state_dict())
    truth.double()
    check_all(*(evaluate(m, torch.randn(5, 3, 3)) for m in (Compiled(ours, backend="inductor"), theirs, truth)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
@cells
def test_on_a_gpu(cell):
    """The graph runs the CUDA kernels, or the reference where there are none."""
    ours, theirs, truth = twins(cell, 4, 6, 2, device="cuda")
    check_all(*(evaluate(m, torch.randn(5, 3, 4)) for m in (Compiled(ours, backend="inductor"), theirs, truth)))


SIZES = [(5, 3), (7, 4), (9, 2), (5, 3), (30, 20), (4, 4)]


def timing(T, B):
    resets = torch.rand(B, T) < 0.3
    return {"lengths": torch.randint(0, T + 1, (B,)), "reset_mask": resets, "all_states": True}


ASKED = {"plain": lambda *_: {}, "timing": timing}
ASKED |= {"chunks": lambda *_: {"checkpoint_chunks": 2}, "states": lambda *_: {"save": "states"}}


@pairs(cell=LAYERS, train={"inference": False, "training": True}, asked=ASKED)
def test_no_graph_of_its_own_for_a_length_or_a_batch(cell, train, asked):
    module, counter, counts = build(fastrnn, cell, 4, 6, 2), testing.CompileCounterWithBackend("aot_eager"), set()
    compiled = fastrnn.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for T, B in SIZES:
        x, given, results = torch.randn(T, B, 4), asked(T, B), []
        for run in (compiled, module):
            with torch.set_grad_enabled(train):
                outputs = tensors(run(x, **given))
            results.append([*outputs, *(torch.autograd.grad(outputs[0].sum(), module.parameters()) if train else ())])
        torch.testing.assert_close(*results)
        counts.add(counter.frame_count)
    assert len(counts) == 1 and counts.pop() > 0


def test_the_second_length_is_the_last_to_compile():
    """Without ``dynamic=True`` torch notices at the second size that sizes vary."""
    module, counter = fastrnn.LSTM(4, 6), testing.CompileCounterWithBackend("aot_eager")
    compiled = fastrnn.compile(module, fullgraph=True, backend=counter)
    counts = []
    for T, B in SIZES:
        compiled(torch.randn(T, B, 4))[0].sum().backward()
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2, 2, 2]


@cells
def test_cells_need_no_switch(cell):
    ours, theirs, truth = twins(cell, 4, 6, step=True)
    x, hx = torch.randn(3, 4), given([torch.randn(3, 6) for _ in range(cell.states)])
    check_all(*(evaluate(m, x, hx) for m in (Compiled(ours, torch.compile), theirs, truth)))


@layers
def test_dropout_draws_what_it_draws_uncompiled(cell):
    module, x = build(fastrnn, cell, 4, 6, 3, dropout=0.5), torch.randn(5, 3, 4)
    results = []
    for run in (Compiled(module), module):
        torch.manual_seed(5)
        results.append(run(x)[0])
    torch.testing.assert_close(*results)
    assert not torch.equal(results[1], module.eval()(x)[0])


@layers
def test_a_packed_batch_breaks_the_graph_and_nothing_else(cell):
    """Its batch size is a value that torch must read; the rest is compiled around that."""
    ours, theirs, truth = twins(cell, 4, 6, 2, bidirectional=True)
    counter, x = testing.CompileCounterWithBackend("aot_eager"), torch.randn(5, 3, 4)
    compiled = Compiled(ours, fullgraph=False, backend=counter)
    check_all(*(evaluate(m, x, lengths=[2, 5, 3]) for m in (compiled, theirs, truth)))
    assert counter.frame_count > 0


@layers
def test_autocast(cell):
    ours, theirs, truth = twins(cell, 4, 6)
    x = torch.randn(5, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = Compiled(ours)(x)[0]
    expected = under_autocast(theirs, torch.bfloat16, x)[0]
    check(output, expected, truth(x.double())[0])


def test_per_sample_gradients_in_a_graph():
    module = fastrnn.GRU(4, 6)
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x,))[0].square().sum()

    def per_sample(batch):
        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, batch)

    batch = torch.randn(3, 5, 4)
    found = fastrnn.compile(per_sample, fullgraph=True, backend="aot_eager")(batch)
    torch.testing.assert_close(found, per_sample(batch))


def test_the_switch_reaches_nothing_else():
    """Neither torch's own layers in this process nor another thread notice that fastrnn.compile was used."""
    compiled, seen = fastrnn.compile(fastrnn.LSTM(4, 6), fullgraph=True, backend=lambda graph, _: graph), []
    compiled(torch.randn(5, 3, 4))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(nn.LSTM(4, 6), fullgraph=True, backend="eager")(torch.randn(5, 3, 4))

    def watching(graph, _):
        thread = threading.Thread(target=lambda: seen.append(torch._dynamo.config.allow_rnn))
        thread.start()
        thread.join()
        return graph

    torch._dynamo.reset()
    fastrnn.compile(fastrnn.LSTM(4, 6), fullgraph=True, backend=watching)(torch.randn(5, 3, 4))
    assert seen == [False]


def test_an_error_leaves_the_switch_as_it_was():
    compiled = fastrnn.compile(fastrnn.LSTM(4, 6), backend="eager")
    with pytest.raises((RuntimeError, torch._dynamo.exc.TorchRuntimeError), match="Expected 4, got 7"):
        compiled(torch.randn(5, 3, 7))


def test_inside_another_compiled_function():
    """There the outer graph takes the layer in, if torch's own switch lets it."""
    inner = fastrnn.compile(fastrnn.LSTM(4, 6), backend="eager")
    outer = fastrnn.compile(lambda x: inner(x)[0] + 1, fullgraph=True, backend="eager")
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(outer(x), inner(x)[0] + 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("disable", [False, True])
def test_a_copy_is_compiled_and_computes_with_its_own_weights(copied, disable):
    model, x = nn.Sequential(fastrnn.LSTM(4, 6)), torch.randn(5, 3, 4)
    compiled = fastrnn.compile(model, backend="eager", disable=disable)
    assert "forward" not in vars(model)  # disabled, torch returns the model itself
    twin = copied(compiled)
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(twin(x), model(x))
    assert not torch._dynamo.utils.counters["graph_break"]
    assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) is not disable
    for weight in twin.parameters():
        nn.init.zeros_(weight)
    assert not twin(x)[0].any() and model(x)[0].any()


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"fastrnn.compile: expected a module or a function, got int"):
        fastrnn.compile(3)


def test_a_forced_backend_is_honoured_or_refused(monkeypatch):
    module, x = fastrnn.GRU(4, 6), torch.randn(5, 3, 4)
    compiled = Compiled(module)
    compiled(x)
    runs = "cpu" if "cpu" in graph.KERNELS else "reference"
    for name in {"reference", "aten", "cpu"} - {runs}:
        with fastrnn.backend(name), pytest.raises(RuntimeError, match=rf"backend\('{name}'\) does not reach into"):
            compiled(x)
    with fastrnn.backend(runs):
        compiled(x)
    torch._dynamo.reset()
    monkeypatch.setattr(dispatch, "_environment", "aten")
    graphs = []
    fastrnn.compile(module, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)(x)
    assert "fastrnn" not in graphs[0].code and "gru" in graphs[0].code


CANNOT = {
    "cuda": "the tensors are on cpu",
    "cpu": "the compiled extension is gone",
    "aten": "torch has no lengths",
    "fastest": "FASTRNN_BACKEND: expected one of",
}


@pytest.mark.parametrize("name", CANNOT)
@pytest.mark.parametrize("call", ["eager", "compile", "export"])
def test_a_backend_by_environment_that_cannot_serve_is_an_error(monkeypatch, name, call):
    """In graphs, too, with the same reasons."""
    monkeypatch.setattr(dispatch, "_environment", name)
    monkeypatch.setattr(dispatch.ops, "missing", lambda *_: "the compiled extension is gone")
    module, x, lengths = fastrnn.GRU(4, 6).eval(), torch.randn(5, 3, 4), torch.tensor([5, 2, 3])
    with pytest.raises(Exception, match=CANNOT[name]) as info:
        if call == "eager":
            module(x, lengths=lengths)
        elif call == "compile":
            fastrnn.compile(module, fullgraph=True, backend="eager")(x, lengths=lengths)
        else:
            torch.export.export(module, (x,), {"lengths": lengths})
    if name != "fastest":
        assert f"backend '{name}' was asked for but cannot serve this call: " in str(info.value)


def test_the_reference_by_environment_takes_every_type(monkeypatch):
    """In a graph as operations of torch."""
    module, x = fastrnn.GRU(4, 6, dtype=torch.complex64), torch.randn(5, 3, 4, dtype=torch.complex64)
    expected, graphs = module(x)[0], []
    monkeypatch.setattr(dispatch, "_environment", "reference")
    found = fastrnn.compile(module, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)(x)[0]
    torch.testing.assert_close(found, expected)
    assert "torch.gru" not in graphs[0].code and "fastrnn" not in graphs[0].code


def test_the_reference_by_environment():
    program = (
        "import torch, fastrnn\n"
        "from fastrnn import reference\n"
        "called, forward = [], reference.layer_forward\n"
        "reference.layer_forward = lambda *args: called.append(args) or forward(*args)\n"
        "fastrnn.compile(fastrnn.GRU(4, 6), fullgraph=True, backend='aot_eager')(torch.randn(5, 3, 4))\n"
        "assert len(called) == 1\n"
    )
    environment = {**os.environ, "FASTRNN_BACKEND": "reference"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
