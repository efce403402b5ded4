"""torch.export, AOTInductor and ONNX: a layer is one operator whose length and batch stay open."""

from __future__ import annotations

import pytest
import torch
from emulator.build import compiler
from support import LAYERS, build, check, name_of, twins
from torch import nn
from torch.export import Dim, export, load, save

import fastrnn

layers = pytest.mark.parametrize("cell", LAYERS, ids=name_of)
ANY = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}


class Model(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, rnn: nn.Module):
        super().__init__()
        width = rnn.hidden_size * (2 if rnn.bidirectional else 1)
        self.embed, self.rnn, self.head = nn.Linear(3, rnn.input_size), rnn, nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0])


def models(cell, *sizes, **options):
    ours, theirs, truth = (Model(rnn) for rnn in twins(cell, *sizes, **options))
    theirs.load_state_dict(ours.state_dict())
    truth.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval(), truth.double().eval()


def operators(program) -> list[str]:
    return [str(n.target) for n in program.graph.nodes if n.op == "call_function" and "fastrnn" in str(n.target)]


@layers
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("no_grad", [False, True], ids=["grad", "no-grad"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_length_and_batch_stay_open(cell, strict, no_grad, batch_first):
    ours, theirs, truth = models(cell, 4, 6, 2, bidirectional=True, batch_first=batch_first)
    with torch.set_grad_enabled(not no_grad):
        program = export(ours, (torch.randn(5, 3, 3),), dynamic_shapes=(ANY,), strict=strict)
    assert operators(program) == ["fastrnn.layer_forward.default"] * 2
    for sizes in ((5, 3), (2, 2), (40, 7)):
        x = torch.randn(*sizes, 3)
        check(program.module()(x), theirs(x), truth(x.double()))


def test_states_are_inputs_too():
    ours, theirs, truth = twins(LAYERS[0], 4, 6)
    hx = (torch.randn(1, 3, 6), torch.randn(1, 3, 6))
    T, B = Dim("T", min=2), Dim("B", min=2)
    program = export(ours, (torch.randn(5, 3, 4), hx), dynamic_shapes=({0: T, 1: B}, ({1: B}, {1: B})))
    x, hx = torch.randn(9, 2, 4), (torch.randn(1, 2, 6), torch.randn(1, 2, 6))
    output, (h, c) = program.module()(x, hx)
    expected = [(o, *s) for o, s in (theirs(x, hx), truth(x.double(), tuple(s.double() for s in hx)))]
    for triple in zip((output, h, c), *expected):
        check(*triple)


def test_the_exported_program_trains():
    """A program exported with gradients on keeps what backward needs."""
    ours, *_ = models(LAYERS[1], 4, 6)
    program = export(ours, (torch.randn(5, 3, 3),), dynamic_shapes=(ANY,)).module()
    x = torch.randn(7, 2, 3)
    program(x).square().sum().backward()
    ours(x).square().sum().backward()
    grads = {name: p.grad for name, p in program.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, msg=name)


def test_saved_and_loaded(tmp_path):
    ours, theirs, truth = models(LAYERS[0], 4, 6)
    save(export(ours, (torch.randn(5, 3, 3),), dynamic_shapes=(ANY,)), tmp_path / "model.pt2")
    x = torch.randn(7, 2, 3)
    check(load(tmp_path / "model.pt2").module()(x), theirs(x), truth(x.double()))


@pytest.mark.skipif(compiler() is None, reason="torch's Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_aot_inductor_package(tmp_path):
    """Compiled ahead of time; whoever loads the package imports fastrnn first, which brings the operator."""
    ours, theirs, truth = models(LAYERS[0], 4, 6, 2)
    with torch.no_grad():
        program = export(ours, (torch.randn(5, 3, 3),), dynamic_shapes=(ANY,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        package = torch._inductor.aoti_load_package(path)
        for sizes in ((5, 3), (9, 4)):
            x = torch.randn(*sizes, 3)
            check(package(x), theirs(x), truth(x.double()))


@layers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_by_way_of_torchs_modules(cell, tmp_path):
    """A copy with torch's modules is exported, by the exporter of torch's two that keeps the length open."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[onnx]': onnxruntime is not installed")
    pytest.importorskip("onnx", reason="pip install '.[onnx]': onnx is not installed")
    ours, theirs, truth = models(cell, 4, 6, 2, bidirectional=True)
    path, axes = str(tmp_path / "model.onnx"), {"x": {0: "T", 1: "B"}}
    example = (torch.randn(5, 3, 3),)
    torch.onnx.export(fastrnn.revert(ours), example, path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path)
    for sizes in ((5, 3), (9, 2)):
        x = torch.randn(*sizes, 3)
        found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        with torch.no_grad():
            torch.testing.assert_close(found, theirs(x), rtol=1e-5, atol=1e-6)
            check(ours(x), theirs(x), truth(x.double()))


@layers
def test_revert_returns_a_copy(cell):
    ours = Model(build(fastrnn, cell, 4, 6)).eval()
    copy = fastrnn.revert(ours)
    assert type(copy.rnn) is getattr(nn, cell.layer) and type(ours.rnn) is getattr(fastrnn, cell.layer)
    assert not copy.training and copy.rnn.weight_ih_l0 is not ours.rnn.weight_ih_l0
    torch.testing.assert_close(copy.state_dict(), ours.state_dict(), rtol=0, atol=0)
