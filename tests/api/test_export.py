"""torch.export, AOTInductor and ONNX: a layer is one operator whose length and batch stay open."""

from __future__ import annotations

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from emulator import oracle
from emulator.build import compiler
from support import LAYERS, build, check, name_of, pairs, tensors, twins
from test_own_cells import states_of as random_states
from torch import nn
from torch.export import Dim, export, load, save
from torch.torch_version import TorchVersion

import fastrnn
from fastrnn._spec import pack
from fastrnn.registry import ALL_CELLS, BY_NUMBER, CELLS

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


@pairs(cell=LAYERS, strict=[False, True], no_grad=[False, True], batch_first=[False, True])
def test_length_and_batch_stay_open(cell, strict, no_grad, batch_first):
    ours, theirs, truth = models(cell, 4, 6, 2, bidirectional=True, batch_first=batch_first)
    with torch.set_grad_enabled(not no_grad):
        program = export(ours, (torch.randn(5, 3, 3),), dynamic_shapes=(ANY,), strict=strict)
    assert operators(program) == ["fastrnn.layer_forward.default"] * 2
    for sizes in ((5, 3), (2, 2), (40, 7)):
        x = torch.randn(*sizes, 3)
        check(program.module()(x), theirs(x), truth(x.double()))


def test_a_saved_program_computes_and_trains(tmp_path):
    """A program exported with gradients on keeps what backward needs."""
    ours, theirs, truth = models(LAYERS[1], 4, 6)
    save(export(ours, (torch.randn(5, 3, 3),), dynamic_shapes=(ANY,)), tmp_path / "model.pt2")
    program, x = load(tmp_path / "model.pt2").module(), torch.randn(7, 2, 3)
    check(program(x), theirs(x), truth(x.double()))
    program(x).square().sum().backward()
    ours(x).square().sum().backward()
    grads = {name: p.grad for name, p in program.named_parameters()}
    torch.testing.assert_close(grads, {name: p.grad for name, p in ours.named_parameters()})


@pytest.mark.skipif(compiler() is None, reason="torch's Inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_aot_inductor_package(tmp_path):
    """Compiled ahead of time, a layer and a frozen one; whoever loads the package imports fastrnn first, which brings
    the operators."""
    first, second = models(LAYERS[0], 4, 6, 2), models(LAYERS[1], 4, 6)
    ours, theirs, truth = (nn.Sequential(a, nn.Linear(2, 3).to(a.head.weight), b) for a, b in zip(first, second))
    for other in (theirs, truth):
        other[1].load_state_dict(ours[1].state_dict())
    ours[2] = fastrnn.freeze(ours[2])
    with torch.no_grad():
        program = export(ours, (torch.randn(5, 3, 3),), dynamic_shapes=(ANY,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        package = torch._inductor.aoti_load_package(path)
        for sizes in ((5, 3), (9, 4)):
            x = torch.randn(*sizes, 3)
            check(package(x), theirs(x), truth(x.double()))


# --- core ATen --------------------------------------------------------------------------------------------------------


class Asking(nn.Module):
    """A layer of any cell, called with states, and with what fastrnn's layers take besides."""

    def __init__(self, cell, layers=2, **options):
        super().__init__()
        kind = {"forget_gate": "exp"} if cell.mode == "SLSTM_EXP" else {}
        self.rnn = build(fastrnn, cell, 4, 6, layers, bidirectional=True, **kind, **options)

    def forward(self, x, hx, lengths=None, reset_mask=None):
        return self.rnn(x, tuple(hx) if len(hx) > 1 else hx[0], lengths=lengths, reset_mask=reset_mask)


def states_of(cell, module, batch):
    """Random ones, double, as a list."""
    rnn = module.rnn
    return list(random_states(cell, 2 * rnn.num_layers, batch, rnn.hidden_size, torch.float64, rnn.proj_size))


def timing_of(names, T, B):
    values = {"lengths": torch.randint(1, T + 1, (B,)), "reset_mask": torch.rand(B, T) < 0.3}
    values["lengths"][0] = 0
    return {name: values[name] for name in names}


def foreign(program) -> set[str]:
    """The namespaces of a program's operators, those inside its loops among them, that are not torch's own."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    targets = [node.target for graph in graphs for node in graph.nodes if node.op == "call_function"]
    names = {getattr(target, "namespace", "python") for target in targets}
    return names - {"aten", "higher_order", "python"}


def exported(module, x, hx, asked):
    """The program of a call, whose length and batch stay open."""
    B, T = Dim("B", min=2), Dim("T", min=2)
    sizes = {"lengths": {0: B}, "reset_mask": {0: B, 1: T}}
    shapes = {"x": {0: T, 1: B}, "hx": [{1: B} for _ in hx]} | {name: sizes[name] for name in asked}
    with torch.no_grad():
        return export(module, (x, hx), asked, dynamic_shapes=shapes)


OPTIONS = {
    "lengths": (("lengths",), {}, [cell.mode for cell in BY_NUMBER]),
    "resets": (("reset_mask", "lengths"), {"bias": False}, ("GRU", "SLSTM")),
    "zoneout": ((), {"zoneout": (0.2, 0.4)}, ("LSTM", "IND_RNN")),
    "projection": ((), {"proj_size": 3}, ("SLSTM",)),
    # torch 2.12 exports heads with a fixed batch alone.
    "heads": (("lengths",), {"num_heads": 2}, ("SLSTM",) if TorchVersion(torch.__version__) >= "2.13" else ()),
}


@pytest.mark.parametrize(
    "mode, names, options",
    [pytest.param(m, names, given, id=f"{m}-{key}") for key, (names, given, modes) in OPTIONS.items() for m in modes],
)
def test_loops_of_core_aten(mode, names, options):
    """Before and after the decomposition, against the formulas in double: at other sizes than the traced ones, forwards
    and backwards in time."""
    cell = ALL_CELLS[mode]
    module = Asking(cell, 2 if mode == "LSTM" else 1, **options).double().eval()
    hx, asked = states_of(cell, module, 3), timing_of(names, 5, 3)
    program = exported(module, torch.randn(5, 3, 4, dtype=torch.float64), hx, asked)
    assert foreign(program) == {"fastrnn"}
    decomposed = program.run_decompositions(fastrnn.decompositions())
    assert foreign(decomposed) == set()
    for T, B in ((5, 3), (2, 4), (11, 2)):
        x, hx, asked = torch.randn(T, B, 4, dtype=torch.float64), states_of(cell, module, B), timing_of(names, T, B)
        with torch.no_grad():
            output, final, _ = oracle.stack(module.rnn, x, hx, **asked)
            found = [tensors(made.module()(x, hx, **asked)) for made in (program, decomposed)]
        torch.testing.assert_close(found, [[output, *final]] * 2, rtol=1e-9, atol=1e-9)


WITHOUT_FASTRNN = """
import sys, torch
for dtype in sys.argv[1:]:
    model, x = torch.export.load(f"{dtype}.pt2").module(), torch.load(f"{dtype}.pt")
    torch.save(model(x), f"{dtype}-output.pt")
assert "fastrnn" not in sys.modules
"""


def test_programs_without_fastrnn(tmp_path):
    """Loaded by a process that never imports it."""
    modules, given = {}, torch.randn(2, 9, 3)
    for dtype in (torch.float32, torch.bfloat16):
        name = name_of(dtype)
        ours, theirs, truth = modules[dtype] = models(LAYERS[0], 4, 6, bidirectional=True, batch_first=True)
        ours.to(dtype), theirs.to(dtype), truth.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            program = export(ours, (torch.randn(3, 5, 3, dtype=dtype),), dynamic_shapes=(ANY,))
        save(program.run_decompositions(fastrnn.decompositions()), tmp_path / f"{name}.pt2")
        torch.save(given.to(dtype), tmp_path / f"{name}.pt")
    command = [sys.executable, "-c", WITHOUT_FASTRNN, *map(name_of, modules)]
    subprocess.run(command, cwd=tmp_path, check=True)
    for dtype, (_, theirs, truth) in modules.items():
        x = given.to(dtype)
        with torch.no_grad():
            check(torch.load(tmp_path / f"{name_of(dtype)}-output.pt"), theirs(x), truth(x.double()))


def test_the_gradients_of_loops():
    if TorchVersion(torch.__version__) < "2.13":
        with pytest.warns(UserWarning, match="computes wrong gradients where its initial state needs none"):
            fastrnn.decompositions()
        return
    ours, theirs, truth = twins(LAYERS[0], 4, 6, bidirectional=True)
    program = export(ours, (torch.randn(5, 3, 4),), dynamic_shapes=({0: Dim("T", min=2)},))
    program = program.run_decompositions(fastrnn.decompositions()).module()
    x = torch.randn(7, 3, 4)
    grads = []
    for module in (program, theirs, truth):
        weights = [getattr(module, name) for name, _ in ours.named_parameters()]
        grads.append(torch.autograd.grad(module(x.to(weights[0]))[0].square().sum(), weights))
    for triple in zip(*grads, strict=True):
        check(*triple)


def test_what_has_no_loop_is_refused():
    frozen = fastrnn.freeze(nn.Sequential(nn.GRU(4, 6)))
    program = export(frozen, (torch.randn(5, 3, 4),))
    if operators(program) == ["fastrnn.frozen.default"]:  # without the extension it is a layer like others
        with pytest.raises(RuntimeError, match=r"export fastrnn\.unfreeze\(model\)"):
            program.run_decompositions(fastrnn.decompositions())
    x = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 3, 4), [5, 3, 1])

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.GRU(4, 6)

        def forward(self, data, batch_sizes):
            return torch.ops.fastrnn.layer_forward(
                data, [batch_sizes, None, None, None, None], [data.new_zeros(1, 3, 6)], [*self.rnn._weights(), None],
                pack(1, 0), [],
            )[0]  # fmt: skip

    program = export(Packed(), (x.data, x.batch_sizes))
    with pytest.raises(RuntimeError, match="expected a padded input, got a PackedSequence"):
        program.run_decompositions(fastrnn.decompositions())


# --- ONNX -------------------------------------------------------------------------------------------------------------


def session_of(module, arguments, path, names, **options):
    """What onnxruntime makes of a model, and the types of the nodes that it was given, those in functions included."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install '.[onnx]': onnxruntime is not installed")
    onnx = pytest.importorskip("onnx", reason="pip install '.[onnx]': onnx is not installed")
    pytest.importorskip("onnxscript", reason="pip install '.[onnx]': onnxscript is not installed")
    torch.onnx.export(
        module, arguments, str(path), dynamo=True, verbose=False, input_names=names,
        custom_translation_table=fastrnn.onnx_translations(), **options,
    )  # fmt: skip
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    nodes = [node.op_type for graph in (model.graph, *model.functions) for node in graph.node]
    return onnxruntime.InferenceSession(str(path)), nodes


def run(session, *inputs):
    names = [i.name for i in session.get_inputs()]
    return [torch.from_numpy(t) for t in session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})]


def check_with_formulas(session, cell, module, names):
    """onnxruntime's results, at two sizes."""
    double = copy.deepcopy(module).double()
    for T, B in ((5, 3), (12, 4)):
        x, hx, asked = torch.randn(T, B, 4), states_of(cell, module, B), timing_of(names, T, B)
        with torch.no_grad():
            output, final, _ = oracle.stack(double.rnn, x.double(), hx, **asked)
        found = run(session, x, *(h.float() for h in hx), *asked.values())
        torch.testing.assert_close(found, [t.float() for t in (output, *final)], rtol=1e-5, atol=2e-6)


onnx_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@onnx_warnings
@pytest.mark.parametrize("mode, batch_first", [("LSTM", True), *((mode, False) for mode in CELLS)])
def test_onnx(mode, batch_first, tmp_path):
    """Each layer is one node, its length and batch are open, and onnxruntime computes what torch does."""
    cell, options = CELLS[mode], {"batch_first": True} if batch_first else {"bidirectional": True, "bias": False}
    ours, theirs, truth = models(cell, 4, 6, 2, **options)
    with torch.set_grad_enabled("bias" in options):  # what an operator saves for a backward is left out
        session, nodes = session_of(
            ours, (torch.randn(5, 3, 3),), tmp_path / "model.onnx", ["x"], dynamic_shapes=(ANY,)
        )
    assert nodes.count(cell.layer) == 2 and not {"Scan", "Loop"} & set(nodes)
    for sizes in ((5, 3), (9, 2), (2, 8)):
        x = torch.randn(*sizes, 3)
        with torch.no_grad():
            torch.testing.assert_close(run(session, x)[0], theirs(x), rtol=1e-5, atol=2e-6)
            check(ours(x), theirs(x), truth(x.double()))


WITH_LENGTHS = [(mode, 1) for mode in (*CELLS, "PEEPHOLE_LSTM", "CIFG_LSTM")]
WITH_HEADS = [(mode, 2) for mode in ("GRU", "RNN_TANH", "PEEPHOLE_LSTM")]


@onnx_warnings
@pytest.mark.parametrize("mode, heads", WITH_LENGTHS + WITH_HEADS)
def test_onnx_with_states_against_the_formulas(mode, heads, tmp_path):
    """With lengths, or with heads, of which each is an operator."""
    cell, names = ALL_CELLS[mode], () if heads > 1 else ("lengths",)
    module = Asking(cell, num_heads=heads).eval()
    hx, asked = states_of(cell, module, 3), timing_of(names, 5, 3)
    B, T = Dim("B", min=2), Dim("T", min=2)
    shapes = {"x": {0: T, 1: B}, "hx": [{1: B} for _ in hx]} | {name: {0: B} for name in names}
    session, nodes = session_of(
        module, (torch.randn(5, 3, 4), [h.float() for h in hx]), tmp_path / "model.onnx",
        ["x", *(f"h{k}" for k in range(len(hx))), *names], kwargs=asked, dynamic_shapes=shapes,
    )  # fmt: skip
    assert nodes.count("GRU" if cell.mode == "GRU" else "RNN" if cell.nonlinearity else "LSTM") == (2, 8)[heads - 1]
    check_with_formulas(session, cell, module, names)


@onnx_warnings
@pytest.mark.parametrize(
    "mode, options, names, what",
    [
        ("LSTM", {"zoneout": 0.1}, (), "zoneout"),
        ("LSTM", {"proj_size": 3}, (), "proj_size"),
        ("GRU", {}, ("reset_mask",), "reset_mask"),
        ("SLSTM", {}, (), "no operator for SLSTM"),
    ],
)
def test_onnx_by_loops_where_it_has_no_operator(mode, options, names, what, tmp_path):
    """The exporter says so, and takes the program after its decomposition."""
    cell = ALL_CELLS[mode]
    module = Asking(cell, 1, **options).eval()
    hx, asked = states_of(cell, module, 3), timing_of(names, 5, 3)
    program = exported(module, torch.randn(5, 3, 4), [h.float() for h in hx], asked)
    inputs = ["x", *(f"h{k}" for k in range(len(hx))), *names]
    with pytest.raises(Exception) as error:
        session_of(program, (), tmp_path / "model.onnx", inputs)
    causes, cause = "", error.value
    while cause is not None:
        causes, cause = causes + str(cause), cause.__cause__
    assert f"operators do not have this: {what}" in causes and "fastrnn.decompositions()" in causes
    program = program.run_decompositions(fastrnn.decompositions())
    session, nodes = session_of(program, (), tmp_path / "model.onnx", inputs)
    assert nodes.count("Scan") == 2
    check_with_formulas(session, cell, module, names)


def test_what_onnx_has_not_is_refused():
    translate = fastrnn.onnx_translations()
    with pytest.raises(
        RuntimeError, match=r"packed weights, which ONNX cannot read: export fastrnn\.unfreeze\(model\)"
    ):
        translate[torch.ops.fastrnn.frozen.default](*[None] * 6)
    layer, nothing = translate[torch.ops.fastrnn.layer_forward.default], [None] * 5
    for dtype, given, what in (
        ("BFLOAT16", nothing, "BFLOAT16; it has FLOAT, DOUBLE, FLOAT16"),
        ("FLOAT", ["batch_sizes", *nothing[1:]], "a PackedSequence; use lengths= on a padded input"),
        ("FLOAT", [*nothing[:3], "mask", None], "recurrent_dropout"),
    ):
        x = SimpleNamespace(dtype=SimpleNamespace(name=dtype))
        with pytest.raises(RuntimeError, match=f"do not have this: {what}"):
            layer(x, given, [], nothing, pack(1, 0), [])
