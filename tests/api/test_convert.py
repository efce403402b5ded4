"""convert, convert_, revert_ and patch_torch swap classes and nothing else."""

from __future__ import annotations

import warnings

import pytest
import torch
from support import LAYERS, build
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fastrnn
from fastrnn.registry import CELLS, OWN_CELLS

NAMES = sorted({name for cell in CELLS.values() for name in (cell.layer, cell.step)})


class Model(nn.Module):
    """A layer and a step of every cell, one layer under two names, and something else."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({cell.mode: build(nn, cell, 4, 4) for cell in CELLS.values()})
        self.steps = nn.ModuleDict({cell.mode: build(nn, cell, 4, 4, step=True) for cell in CELLS.values()})
        self.again = self.layers["LSTM"]
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for layer in [*self.layers.values(), self.again]:
            x = layer(x)[0]
        for mode, step in self.steps.items():
            x = step(x) if x.dim() == 2 and mode != "LSTM" else step(x[-1])[0]
        return self.head(x)


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


def ours(model):
    return [name for name, kind in types(model).items() if kind.__module__.startswith("fastrnn")]


RECURRENT = [f"{group}.{mode}" for group in ("layers", "steps") for mode in CELLS]


def test_convert_in_place_changes_classes_only():
    model = Model()
    parameters, buffers = list(model.parameters()), dict(model.state_dict())
    x = torch.randn(3, 2, 4)
    before = model(x)
    report = fastrnn.convert_(model)
    assert report.converted == RECURRENT and report.skipped == {}
    assert ours(model) == RECURRENT and type(model.head) is nn.Linear
    assert type(model.layers["LSTM"]) is fastrnn.LSTM and type(model.steps["GRU"]) is fastrnn.GRUCell
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(buffers)
    torch.testing.assert_close(model(x), before)
    assert model.again is model.layers["LSTM"]


@pytest.mark.parametrize("function, recurrent", [(fastrnn.convert, RECURRENT), (fastrnn.revert, [])])
def test_convert_and_revert_copy(function, recurrent):
    model = Model().eval()
    if function is fastrnn.revert:
        fastrnn.convert_(model)
    was = types(model)
    copy = function(model)
    assert types(model) == was and ours(copy) == recurrent
    assert function is fastrnn.convert or types(copy) == types(Model())
    assert not any(a is b for a, b in zip(model.parameters(), copy.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    assert copy.again is copy.layers["LSTM"] and not copy.training


def test_root_may_be_recurrent():
    for cell in LAYERS:
        module = build(nn, cell, 3, 4)
        assert fastrnn.convert_(module).converted == [""]
        assert type(module) is getattr(fastrnn, cell.layer)
        assert type(fastrnn.convert(build(nn, cell, 3, 4))) is getattr(fastrnn, cell.layer)


def test_hooks_and_training_flag_stay():
    model, calls = nn.Sequential(nn.LSTM(4, 4, 2, dropout=0.5), nn.Flatten()), []
    model[0].register_forward_pre_hook(lambda module, args: calls.append("before"))
    model[0].register_forward_hook(lambda module, args, result: calls.append("after"))
    model[0].register_full_backward_hook(lambda module, grads, gone: calls.append("backward"))
    model.eval()
    model[0].requires_grad_(False)
    model[0].note = "mine"
    fastrnn.convert_(model)
    assert type(model[0]) is fastrnn.LSTM and not model[0].training and model[0].note == "mine"
    assert not any(p.requires_grad for p in model[0].parameters())
    model[0](torch.randn(3, 2, 4, requires_grad=True))[0].sum().backward()
    assert calls == ["before", "after", "backward"]


class MyLSTM(nn.LSTM):
    pass


class MyCell(nn.GRUCell):
    pass


class OurOwn(fastrnn.GRU):
    pass


def test_skipped_with_reasons():
    normed = parametrizations.weight_norm(nn.LSTM(4, 4), "weight_hh_l0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit.script itself
        scripted = torch.jit.script(nn.LSTM(4, 4))
    model = nn.ModuleDict(
        {"sub": MyLSTM(4, 4), "cell": MyCell(4, 4), "normed": normed, "scripted": scripted, "plain": nn.GRU(4, 4)}
    )
    was = types(model)
    report = fastrnn.convert_(model)
    assert report.converted == ["plain"]
    assert list(report.skipped) == ["sub", "cell", "normed", "scripted"]
    assert "MyLSTM" in report.skipped["sub"] and "MyCell" in report.skipped["cell"]
    assert report.skipped["normed"].startswith("parametrized")
    assert report.skipped["scripted"].startswith("scripted")
    assert types(model) == was | {"plain": fastrnn.GRU}
    assert parametrize.is_parametrized(model["normed"])
    assert "skipped sub: " in str(report) and "changed: plain" in str(report)


def test_fsdp_wrapped_is_skipped():
    """fully_shard puts a class of its own, derived from FSDPModule, in the place of the module's."""
    module = nn.LSTM(4, 4)
    module.__class__ = type("FSDPLSTM", (type("FSDPModule", (), {}), nn.LSTM), {})
    with pytest.warns(UserWarning, match="nothing to convert"):
        report = fastrnn.convert_(module)
    assert report.converted == [] and "FSDP" in report.skipped[""]


def test_filter():
    model, seen = Model(), []

    def only_gru(name, module):
        seen.append((name, module))
        return isinstance(module, nn.GRU)

    report = fastrnn.convert_(model, filter_fn=only_gru)
    assert report.converted == ["layers.GRU"] and ours(model) == ["layers.GRU"]
    assert [name for name, _ in seen] == RECURRENT
    assert set(report.skipped) == set(RECURRENT) - {"layers.GRU"}
    assert set(report.skipped.values()) == {"refused by filter_fn"}


def test_without_cells():
    model = Model()
    report = fastrnn.convert_(model, cells=False)
    assert ours(model) == report.converted == [f"layers.{mode}" for mode in CELLS] and report.skipped == {}


def test_idempotent_and_silent_the_second_time():
    model = Model()
    fastrnn.convert_(model)
    was = types(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = fastrnn.convert_(model)
    assert report.converted == [] and report.skipped == {} and types(model) == was


def test_warns_when_nothing_matched():
    with pytest.warns(UserWarning, match="nothing to convert in Sequential") as warned:
        report = fastrnn.convert_(nn.Sequential(nn.Linear(3, 3)))
        fastrnn.convert(nn.Sequential(nn.Linear(3, 3)))
    assert str(report) == "changed: nothing" and [w.filename for w in warned] == [__file__, __file__]


def test_revert():
    model = Model()
    was, parameters, x = types(model), list(model.parameters()), torch.randn(3, 2, 4)
    before = model(x)
    fastrnn.convert_(model)
    report = fastrnn.revert_(model)
    assert report.converted == RECURRENT and types(model) == was
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(x), before)
    native = nn.ModuleList([fastrnn.LSTM(4, 4), OurOwn(4, 4)])
    report = fastrnn.revert_(native)
    assert type(native[0]) is nn.LSTM and type(native[1]) is OurOwn
    assert report.converted == ["0"] and "OurOwn" in report.skipped["1"]


def test_revert_names_what_torch_has_not():
    kinds = {cell.layer for cell in OWN_CELLS.values()} | {cell.step for cell in OWN_CELLS.values()}
    model = nn.ModuleDict({kind: getattr(fastrnn, kind)(4, 4) for kind in sorted(kinds)})
    report = fastrnn.revert_(model)
    assert report.converted == [] and report.skipped == {kind: f"torch.nn has no {kind}" for kind in sorted(kinds)}


@pytest.mark.parametrize("function", [fastrnn.convert, fastrnn.convert_, fastrnn.revert_], ids=lambda f: f.__name__)
def test_not_a_module(function):
    with pytest.raises(TypeError, match=rf"fastrnn.{function.__name__}: expected a torch.nn.Module, got dict"):
        function({})


def torch_classes():
    return [getattr(space, name) for space in (nn, nn.modules, nn.modules.rnn) for name in NAMES]


@pytest.mark.parametrize("cells", [True, False])
def test_patch_torch(cells):
    before = torch_classes()
    with fastrnn.patch_torch(cells=cells):
        model = Model()
        assert ours(model) == (RECURRENT if cells else RECURRENT[: len(CELLS)])
        assert isinstance(nn.LSTM(3, 4), before[NAMES.index("LSTM")])
        with fastrnn.patch_torch():
            assert nn.GRUCell is fastrnn.GRUCell
        assert (nn.GRUCell is fastrnn.GRUCell) == cells
    assert torch_classes() == before
    assert type(model.layers["LSTM"]) is fastrnn.LSTM
    with pytest.raises(KeyError), fastrnn.patch_torch():
        raise KeyError("from the block")
    assert torch_classes() == before
