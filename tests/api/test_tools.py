"""torch's tools that know recurrent modules by class or by source: each works on fastrnn's, or says what to do."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from support import build, cells, one_step
from torch import nn
from torch.fx import symbolic_trace
from torch.fx.proxy import TraceError

import fastrnn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


class Holder(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


def sample(step):
    return torch.randn(3, 4) if step else torch.randn(6, 3, 4)


@cells
@one_step
def test_jit_script(cell, step):
    """The scripted module is torch's, with the parameters of ours, and so is the model's from then on."""
    model, x = Holder(build(fastrnn, cell, 4, 5, step=step)), sample(step)
    expected = model(x)
    with pytest.warns(UserWarning, match=r"in the place of fastrnn.\w+: script fastrnn.revert\(model\)"):
        scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), expected)
    assert type(model.rnn).__module__.startswith("torch.nn")
    assert next(scripted.parameters()) is next(model.parameters())
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), model(x))


def test_jit_script_compiles_a_subclass_as_it_is():
    class Own(fastrnn.LSTM):
        def forward(self, x):
            return x + 1

    x = torch.randn(2)
    assert torch.equal(torch.jit.script(Own(4, 5))(x), x + 1)


@cells
@one_step
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
def test_jit_trace(cell, step, recording):
    """Traced with its own check, saved, loaded, called with other sizes and trained."""
    module, x = build(fastrnn, cell, 4, 5, step=step), sample(step)
    with torch.set_grad_enabled(recording):
        traced = torch.jit.trace(module, (x,))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    other = sample(step)
    torch.testing.assert_close(loaded(other), module(other))
    loaded(other)[0].sum().backward()
    module(other)[0].sum().backward()
    for ours, theirs in zip(module.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    "asked",
    [{"lengths": torch.tensor([6, 2, 4])}, {"all_states": True}, {"save": "states"}],
    ids=lambda asked: next(iter(asked)),
)
def test_jit_trace_of_what_torch_lacks(asked):
    """The operator, checked by the tracer without gradients and trained after."""

    class Model(Holder):
        def forward(self, x):
            return self.rnn(x, **asked)[0]

    model, x = Model(fastrnn.GRU(4, 5)), sample(False)
    with torch.no_grad():
        traced = torch.jit.trace(model, (x,))
    x.requires_grad_()
    for call in (traced, model):
        torch.testing.assert_close(call(x), model(x))
    (grad,) = torch.autograd.grad(traced(x).sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(model(x).sum(), x)[0])


@cells
@one_step
def test_fx(cell, step):
    """A leaf, as torch.nn's modules are: the graph calls the module."""
    model, x = Holder(build(fastrnn, cell, 4, 5, step=step)), sample(step)
    graph = symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["rnn"]
    assert torch.equal(graph(x), model(x)) and graph.rnn is model.rnn


@pytest.mark.parametrize("frozen", [False, True])
def test_fx_with_states_and_lengths(frozen):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.LSTM(4, 5)

        def forward(self, x, h, c, lengths):
            return self.rnn(x, (h, c), lengths=lengths)[0]

    model, args = Model(), (sample(False), *torch.randn(2, 1, 3, 5), torch.tensor([6, 2, 4]))
    model = fastrnn.freeze(model) if frozen else model
    assert torch.equal(symbolic_trace(model)(*args), model(*args))


@cells
@one_step
def test_fx_of_a_module_alone(cell, step):
    with pytest.raises(TraceError, match=r"trace a module that holds it, or fastrnn.revert\(model\)"):
        symbolic_trace(build(fastrnn, cell, 4, 5, step=step))


QUANTIZE = "leaves fastrnn.LSTM as it is: quantize fastrnn.revert"


def quantize(model, kinds=None):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*quantized tensor creation.*")
        return torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)


@pytest.mark.parametrize("kinds", [None, {nn.LSTM}], ids=["all", "LSTM"])
def test_quantize_dynamic(kinds):
    """It finds modules by their exact class: ours are told apart in a warning, and torch's quantizes after revert."""
    model = nn.Sequential(fastrnn.LSTM(8, 8))
    with pytest.warns(UserWarning, match=QUANTIZE):
        left = quantize(model, kinds)
    assert type(left[0]) is fastrnn.LSTM and not hasattr(left[0], "qconfig")
    quantized = quantize(fastrnn.revert(model), kinds)
    assert type(quantized[0]) is torch.ao.nn.quantized.dynamic.LSTM


def test_qconfig_is_an_attribute():
    """Set, copied, pickled and deleted like torch.nn's."""
    module = fastrnn.LSTM(3, 4)
    assert not hasattr(module, "qconfig")
    with pytest.warns(UserWarning, match=QUANTIZE):
        module.qconfig = "int8"
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.qconfig == "int8"
        del twin.qconfig
        assert not hasattr(twin, "qconfig")
    assert type(fastrnn.revert(module)) is nn.LSTM
