"""Cells of the user's own: layers against loops in plain torch, every path of a call, pickles, graphs.

What is wrong with a header, and what is kept of a cell, are in test_load_cell_build.py.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_cells import (
    KEPT,
    ROOT,
    SCHEDULES,
    STEPS,
    check_within_the_budget,
    compiled,
    load,
    make,
    states_of,
)
from support import check_compiled, check_exported, check_layouts, tensors, using
from test_readme import blocks

import fastrnn
from fastrnn.reference.scan import STEP
from fastrnn.registry import FIRST_USER_CELL

pytestmark = compiled
backends = pytest.mark.parametrize("backend", ["cpu", "reference"])


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    monkeypatch.setenv("FASTRNN_CACHE_DIR", KEPT)


@pytest.fixture(params=STEPS)
def cell(request):
    return load(request.param)


@pytest.fixture
def step(request):
    return STEPS[request.node.callspec.params["cell"]]


@backends
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_two_layers_in_both_directions_against_a_loop(cell, step, backend, schedule, precision):
    P = 2 * cell.projects * (precision == "float64")
    with fastrnn.backend(backend):
        check_within_the_budget(cell, step, schedule, precision, P=P)


def test_packed_rows_layouts_chunks_and_states(cell):
    module, x = make(cell, 3, 6, 2, bidirectional=True), torch.randn(5, 4, 3)
    hx, first = states_of(cell, 4, 4, 6), fastrnn.Layer(cell, 3, 6, 2, bidirectional=True, batch_first=True)
    expected = check_layouts(module, first, x, hx)
    one = tuple(h[:, 1] for h in hx) if cell.states > 1 else hx[:, 1]
    torch.testing.assert_close(module(x[:, 1], one)[0], expected[:, 1])
    initial = [torch.full((4, 4, 6), value) for value in cell.initial]
    torch.testing.assert_close(module(x)[0], module(x, tuple(initial) if cell.states > 1 else initial[0])[0])
    names, sources = zip(*module.named_parameters())
    plain = torch.autograd.grad(module(x, hx)[0].sin().sum(), sources)
    for asked in ({"checkpoint_chunks": 3}, {"save": "states"}, {"all_states": True}):
        again = torch.autograd.grad(module(x, hx, **asked)[0].sin().sum(), sources)
        torch.testing.assert_close(dict(zip(names, again)), dict(zip(names, plain)))
    states = module(x, hx, all_states=True)[2]
    assert len(states) == 2 and tensors(states[0])[-1].shape == (5, 4, 12)


def test_check_finds_no_fault_and_a_planted_one(cell, monkeypatch):
    assert cell.check()
    right = STEP[cell.registered.mode]
    monkeypatch.setitem(STEP, cell.registered.mode, lambda *given: tuple(1.001 * s for s in right(*given)))
    with pytest.raises(AssertionError, match="not close"):
        cell.check()


def test_transforms_and_explain(cell):
    module, x = make(cell, 2, 3, dtype=torch.float64), torch.randn(2, 4, 2, 2, dtype=torch.float64)
    many = torch.func.vmap(lambda x: module(x)[0])(x)
    torch.testing.assert_close(many[1], module(x[1])[0])
    assert fastrnn.explain(module, x[0]).backend == "cpu"
    asked = fastrnn.explain(module.to("meta"), x[0].to("meta"))
    assert asked.backend == "reference" and "the tensors are on meta" in asked.reasons["cuda"]
    assert asked.reasons["aten"] == [f"torch has no {cell.registered.mode}"]


def test_graphs(cell):
    module, hx, x = make(cell, 3, 6, 2, bidirectional=True), states_of(cell, 4, 4, 6), torch.randn(5, 4, 3)
    check_compiled(module, x, hx)
    assert check_exported(module, x, hx) == [cell.registered.index] * 2


def test_a_graph_of_a_cell_whose_gradients_read_no_state():
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    module = fastrnn.Layer(load("adder"), 3, 6, dtype=x.dtype)
    x_a, x_b = (x @ module.weight_ih_l0.t() + module.bias_ih_l0).chunk(2, -1)
    h = c = x.new_zeros(4, 6)
    for a, b in zip(x_a, x_b):
        h_a, h_b = (h @ module.weight_hh_l0.t() + module.bias_hh_l0).chunk(2, -1)
        c = c + a + h_a
        h = c + torch.tanh(b + h_b)
    made = fastrnn.compile(module, fullgraph=True, backend="aot_eager")
    output, final = made(x)
    torch.testing.assert_close((output[-1], *(s[0] for s in final)), (h, h, c))
    weights = list(module.parameters())
    found, truth = (torch.autograd.grad(t.sin().sum(), weights) for t in (output[-1], h))
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(cell, dtype):
    module, x = make(cell, 3, 6, 2, bidirectional=True), torch.randn(5, 4, 3)
    with torch.autocast("cpu", dtype):
        output, _ = module(x)
        output.float().sum().backward()
    assert output.dtype == dtype and module.weight_hh_l0.grad.dtype == torch.float32
    torch.testing.assert_close(output, module.to(dtype)(x.to(dtype))[0])


def test_parameters_and_copies():
    cell = load("scaled")
    module, x = make(cell, 3, 6, 2, bidirectional=True), torch.randn(5, 4, 3)
    ends = ["l0", "l0_reverse", "l1", "l1_reverse"]
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_scale"]
    assert list(module.state_dict()) == [f"{name}_{end}" for end in ends for name in names]
    assert module.weight_scale_l1_reverse.shape == (6,) and module.weight_ih_l1.shape == (12, 12)
    bound = 6**-0.5
    assert all(weight.abs().max() <= bound for weight in fastrnn.Layer(cell, 3, 6).parameters())
    other = copy.deepcopy(module)
    assert other.cell is cell and torch.equal(other(x)[0], module(x)[0])
    assert repr(fastrnn.Layer(cell, 3, 6, 2)) == "Layer(JanetScaled, 3, 6, num_layers=2)"
    assert torch.nn.utils.skip_init(fastrnn.Layer, cell, 3, 6).hidden_size == 6  # it looks for a device
    assert cell.params == ("weight_scale",) and cell.registered.index >= FIRST_USER_CELL and cell.projects
    assert load("scaled") is cell and not load("everything").projects
    with pytest.raises(ValueError, match="Layer: proj_size must be 0, got 2: each unit reads its own h"):
        fastrnn.Layer(load("everything"), 3, 6, proj_size=2)
    with pytest.raises(TypeError, match=r"expected cell to come from fastrnn\.load_cell, got str"):
        fastrnn.Layer("JanetScaled", 3, 6)
    module.weight_scale_l0 = torch.nn.Parameter(torch.ones(5))
    with pytest.raises(RuntimeError, match=r"weight_scale_l0 must have shape \(6,\), got \(5,\)"):
        module(x)


def test_two_threads_give_what_one_gives():
    module, x = fastrnn.Layer(load("scaled"), 64, 256), torch.randn(4, 32, 64)
    found = []
    for count in (1, 2):
        with using(threads=count):
            output, _ = module(x)
            found.append([output, *torch.autograd.grad(output.sin().sum(), list(module.parameters()))])
    torch.testing.assert_close(*found)


OTHER_PROCESS = """
import sys, torch, fastrnn
folder = sys.argv[1]
program = torch.export.load(f"{folder}/program.pt2").module()
x = torch.load(f"{folder}/x.pt")
try:
    program(x)
except RuntimeError as error:
    print("is not loaded: call fastrnn.load_cell" in str(error))
module = torch.load(f"{folder}/module.pt", weights_only=False)
print(torch.equal(module(x)[0], program(x)[0]), module.cell.name, module(x)[0].double().sum().item())
"""


def test_modules_and_graphs_in_another_process(tmp_path):
    load("janet")  # there it is not loaded, and the number of the other cell is the same
    module, x = make(load("scaled"), 3, 6), torch.randn(5, 4, 3)
    torch.save(module, tmp_path / "module.pt")
    torch.save(x, tmp_path / "x.pt")
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "program.pt2")
    Path(module.cell.path).unlink()
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    lines = done.stdout.splitlines()
    assert lines[0] == "True" and lines[1].startswith("True JanetScaled "), done.stderr[-2000:]
    assert float(lines[1].split()[2]) == pytest.approx(module(x)[0].double().sum().item(), rel=1e-12)


def test_blocks_of_the_page_of_examples(tmp_path, monkeypatch):
    load("janet"), load("fastgrnn")  # its cells
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    page = "examples/cells/README.md"
    found = blocks((ROOT / page).read_text(encoding="utf-8"))
    assert found
    for line, source, _ in found:
        exec(compile("\n" * (line - 1) + source, page, "exec"), {"__name__": "__main__"})


@backends
def test_the_options_of_every_layer_at_rates_of_one(backend):
    """Where everything is kept, or everything dropped, the result is known without drawing."""
    x = torch.randn(5, 4, 3)
    with fastrnn.backend(backend):
        kept, hx = make(load("scaled"), 3, 6, zoneout=1.0), states_of(load("scaled"), 1, 4, 6)
        output, final = kept(x, hx)
        torch.testing.assert_close(output, hx[0].expand(5, 4, 6))
        assert all(map(torch.equal, final, hx))
        for option in ("recurrent_dropout", "weight_dropout"):
            module = make(load("scaled"), 3, 6, **{option: 1.0})
            plain = fastrnn.Layer(load("scaled"), 3, 6)
            plain.load_state_dict(module.state_dict() | {"weight_hh_l0": torch.zeros(12, 6)})
            torch.testing.assert_close(module(x)[0], plain(x)[0])


def test_the_options_of_every_layer_draw_the_same_on_the_kernels_and_in_torch():
    module = make(load("janet"), 3, 6, 2, bidirectional=True, recurrent_dropout=0.3, weight_dropout=0.3, zoneout=0.4)
    x, found = torch.randn(5, 4, 3), []
    for backend in ("cpu", "reference"):
        torch.manual_seed(3)
        with fastrnn.backend(backend):
            output, states = module(x)
            grads = torch.autograd.grad(output.square().sum() + states[1].sum(), list(module.parameters()))
            found.append([output, *states, *grads])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert (found[0][0] - module.eval()(x)[0]).abs().max() > 1e-2


def test_a_parameter_whose_name_begins_like_a_matrix():
    module = make(load("named"), 3, 6, num_heads=2)
    assert module.weight_hh_scale_l0.shape == (6,) and module.weight_hh_l0.shape == (2, 6, 3)
    whole, x = make(load("scaled"), 3, 6), torch.randn(4, 2, 3)
    with torch.no_grad():
        whole.weight_hh_l0.zero_()
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(whole, name).copy_(getattr(module, name))
        whole.weight_scale_l0.copy_(module.weight_hh_scale_l0)
        for head, blocks_of in enumerate(module.weight_hh_l0.unflatten(1, (2, 3))):
            units = slice(3 * head, 3 * head + 3)
            whole.weight_hh_l0.view(2, 6, 6)[:, units, units] = blocks_of
    torch.testing.assert_close(tensors(module(x)), tensors(whole(x)))
    frozen = fastrnn.freeze(module.eval(), torch.bfloat16)
    assert torch.equal(frozen.weight_hh_scale_l0, module.weight_hh_scale_l0)
