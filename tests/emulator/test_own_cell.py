"""Cells of the user's own on the CUDA kernels, in the emulator: the library that nvcc makes on a user's machine."""

import ctypes
import types

import pytest
import torch
from own_cells import SCHEDULES, STEPS, TEXTS, check_within_the_budget, compiled, load, make, states_of
from support import pairs, tensors

import fastrnn
from emulator import build
from emulator.cases import KERNELS, fp32_precision
from fastrnn._backends import dispatch
from fastrnn._kernels import cell_library, ext
from fastrnn._spec import pack

pytestmark = [
    compiled,
    pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with"),
]
FORMS = [
    pytest.param(kernel, precision, id=f"{name}-{precision}")
    for name, kernel, precisions in KERNELS
    for precision in precisions
]


@pytest.fixture(params=STEPS)
def name(request):
    return request.param


@pytest.fixture
def cell(name, cuda, monkeypatch):
    """One whose CUDA kernels are added to the emulator, which is in the place of the extension and serves all calls."""
    cell = load(name)
    library = build.own_cell(TEXTS[name], cell.name)
    cuda.add_cell(cell.registered.index, cell_library.address_in(lambda: library, "fastrnn_user_kernels"))
    monkeypatch.setattr(ext, "load", lambda: types.SimpleNamespace(cuda=cuda, cpu=cuda))
    monkeypatch.setattr(dispatch, "choose", lambda call, explained=False: dispatch.forced() or "cuda")
    return cell


@pytest.mark.parametrize("kernel, precision", FORMS)
def test_every_kernel_against_a_loop(cuda, cell, name, kernel, precision):
    cuda.override_plan(**kernel)
    with fp32_precision("tf32" if precision == "tf32" else "ieee"):
        for schedule in SCHEDULES:
            check_within_the_budget(cell, STEPS[name], schedule, precision)


OPTIONS = {
    "heads": {"num_heads": 2},
    "dropped": {"recurrent_dropout": 0.3, "weight_dropout": 0.3},
    "zoneout": {"zoneout": (0.3, 0.6)},
    "no biases": {"bias": False},
}


ASKED = [{}, {"save": "states"}, {"all_states": True}, {"checkpoint_chunks": 2}]


@pairs(name=list(STEPS), option=list(OPTIONS), asked={str(asked): asked for asked in ASKED}, fused=[False, True])
def test_the_options_of_every_layer_as_in_the_reference(cuda, cell, option, asked, fused):
    cuda.override_plan(fused=fused, rows=8 if fused else 0)
    module = make(cell, 3, 6, 2, bidirectional=True, dtype=torch.float64, **OPTIONS[option])
    x, hx = torch.randn(5, 4, 3, dtype=torch.float64), states_of(cell, 4, 4, 6, torch.float64)
    found = []
    for backend in ("cuda", "reference"):
        torch.manual_seed(3)
        with fastrnn.backend(backend):
            output, final, *sequences = module(x, hx, **SCHEDULES["both"], **asked)
        results = [output, *tensors(final)]
        grads = torch.autograd.grad(sum(t.sin().sum() for t in results), list(module.parameters()))
        found.append([*results, *sequences, *grads])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def test_no_resident_kernel_is_planned_nor_asked_for(cuda, cell):
    like, sizes = torch.zeros(1), dict(batch=4, hidden=8, recurrent=8, directions=1, layers=2, steps=300)
    module, x, outputs = make(cell, 3, 8, 2), torch.randn(5, 4, 3), []
    for tier in ("step", "auto", "cta", "grid"):
        cuda.override_tier(tier)
        plan = cuda.plan_stack(like, cell.registered.index, **sizes)
        assert plan["layers"][1] == 0
        for each in ("forward", "backward"):
            assert plan[each]["step"]["fused"] and plan[each]["resident"] == [] and plan[each]["chosen"] == -1
        outputs.append(module(x)[0])
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_a_library_of_other_sources_and_a_cell_without_kernels_are_refused(cuda):
    cell = load("adder")
    library = ctypes.CDLL(str(build.own_cell(TEXTS["adder"], cell.name)))
    library.fastrnn_user_kernels.restype = ctypes.c_bool
    assert not library.fastrnn_user_kernels(ctypes.c_size_t(1), None)
    x, h, w = torch.zeros(2, 1, 3), torch.zeros(1, 1, 3), torch.zeros(6, 3)
    asked = x, [None] * 5, [h, h], [w, w, None, None, None], pack(cell.registered.index, 0), []
    with pytest.raises(RuntimeError, match=r"is not loaded: call fastrnn\.load_cell with its header first"):
        cuda.layer_forward(*asked)
