"""The CPU kernels of every cell against the formulas; and cells that torch does not have, through all paths of a call.

Their CUDA kernels are tested with those of the other cells, in the emulator.
"""

from __future__ import annotations

import copy
import re
import sys
import threading
from dataclasses import replace

import pytest
import torch
from emulator import oracle
from emulator.cases import Layer, check_saved_shapes, check_unread_states, small_layers, timed_layers
from support import ISAS, KERNELS, compiled, given, pairs, tensors, using
from torch import nn

import fastrnn
from fastrnn import registry
from fastrnn._kernels import ext
from fastrnn.reference import recorded
from fastrnn.reference.scan import STEP
from fastrnn.registry import ALL_CELLS, BY_NUMBER, CELLS, FIRST_USER_CELL, OWN_CELLS, USER_CELLS, cell_of

PRECISIONS = ["float64", "float32", "bfloat16", "float16"]
precisions = pytest.mark.parametrize("precision", PRECISIONS)
own = pytest.mark.parametrize("cell", OWN_CELLS.values(), ids=lambda cell: cell.mode)
every = pytest.mark.parametrize("cell", ALL_CELLS.values(), ids=lambda cell: cell.mode)
isas = pytest.mark.parametrize("isa", ISAS if KERNELS else [])


@pytest.fixture
def kernels(isa):
    with using(isa):
        yield KERNELS


@compiled
def test_the_registry_is_that_of_the_extension():
    for number, (cell, there) in enumerate(zip(BY_NUMBER, ext.load().cells(), strict=True)):
        facts = {name: getattr(cell, name) for name in there if name != "graph"}
        assert facts == {name: value for name, value in there.items() if name != "graph"}
        assert cell.index == number and (there["graph"] is not None) == (cell.mode in recorded.load())
    assert [mode for mode in ALL_CELLS if mode not in USER_CELLS] == list(oracle.MODES) and set(STEP) == set(ALL_CELLS)


@compiled
def test_the_recorded_forwards_are_those_of_the_extension():
    assert recorded.FILE.read_text() == recorded.dump(ext.load().cells()), "type: make forwards"


@isas
@every
@precisions
def test_kernels_against_the_formulas(kernels, cell, precision):
    for layer in small_layers(cell.index, precision):
        layer.check(kernels)
    for number, layer in enumerate(timed_layers(cell.index, precision)):
        if number < 3:
            layer.check_nothing_overwritten(kernels)
            layer.check_needs(kernels)
        layer.check(kernels)
    check_unread_states(kernels, cell.index, precision)


@isas
@every
@precisions
def test_kernels_with_a_projection_and_without_biases(kernels, cell, precision):
    if cell.mode != "RNN_RELU":  # in 16 bits it is a matter of luck which sums are above 0
        Layer(cell.index, precision, (3, 5, 3, 17), 2, biased=False).check(kernels)
    if cell.projects:
        Layer(cell.index, precision, (3, 5, 3, 17), 2, packed=True, projection=7).check(kernels)
        for layer in timed_layers(cell.index, precision, projection=2):
            layer.check(kernels)


@compiled
@every
def test_what_is_saved_has_the_shapes_that_graphs_are_told(cell):
    check_saved_shapes(KERNELS, cell.index, rebuilds_gates=False)


@compiled
@every
def test_nothing_is_overwritten_and_every_choice_of_gradients_agrees(cell):
    layers = [Layer(cell.index, "float32", (3, 9, 2, 17), 2, packed=True), *timed_layers(cell.index, "float32")][:4]
    if cell.projects:
        layers += list(timed_layers(cell.index, "float32", projection=2))[:3]
    for layer in layers:
        layer.check_nothing_overwritten(KERNELS)
        layer.check_needs(KERNELS)


def make(cell, I, H, layers=1, D=1, **options):
    """A layer of the cell, whose parameters are large enough to matter; gains are not, which would make it chaotic."""
    if cell.mode == "SLSTM_EXP":
        options["forget_gate"] = "exp"
    module = getattr(fastrnn, cell.layer)(I, H, layers, bidirectional=D == 2, **options)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.uniform_(0.2, 0.7) if "norm" in name else weight.mul_(2)
    return module


def states_of(cell, rows, B, H, dtype=torch.float32, P=0):
    hx = [torch.randn(rows, B, H, dtype=dtype) for _ in range(cell.states)]
    if cell.mode.startswith("SLSTM"):
        hx[2] = hx[2].abs() + 1
    return (hx[0][..., : P or H].contiguous(), *hx[1:])


def gradients(outputs, inputs):
    return torch.autograd.grad(sum((t * k).sum() for k, t in enumerate(outputs, 1)), inputs, materialize_grads=True)


ASKED = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([5, 0, 3, 1])},
    "resets": {"reset_mask": torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.4},
    "chunks": {"reset_mask": torch.rand(4, 5, generator=torch.Generator().manual_seed(2)) < 0.4}
    | {"checkpoint_chunks": 2, "lengths": torch.tensor([5, 2, 3, 4])},
    "states": {"save": "states", "lengths": torch.tensor([4, 2, 5, 1])},
}


def check_with_formulas(module, backend, proj=0, draws=lambda: {}, **asked):
    """A call with all its results and gradients against the formulas; ``draws`` gives what it draws at random."""
    cell, D = ALL_CELLS[module.mode], 1 + module.bidirectional
    hx = states_of(cell, module.num_layers * D, 4, module.hidden_size, torch.float64, proj)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    inputs = [*(t.requires_grad_() for t in (x, *hx)), *module.parameters()]
    with fastrnn.backend(backend):
        torch.manual_seed(5)
        found = tensors(module(x, given(hx), all_states=True, **asked))
        found_grads = gradients(found, inputs)
    torch.manual_seed(5)
    schedule = {name: value for name, value in asked.items() if name in ("lengths", "reset_mask")}
    expected = tensors(oracle.stack(module, x, hx, **draws(), **schedule))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found_grads, gradients(expected, inputs), rtol=1e-8, atol=1e-8)


BACKENDS = ["cpu", "reference"] if KERNELS else ["reference"]
backends = pytest.mark.parametrize("backend", BACKENDS)


@pairs(cell=OWN_CELLS.values(), backend=BACKENDS, asked=ASKED, proj=[0, 2], bias=[True, False])
def test_two_layers_in_both_directions_against_the_formulas(cell, backend, asked, proj, bias):
    proj = proj if cell.projects else 0
    check_with_formulas(make(cell, 3, 6, 2, 2, proj_size=proj, bias=bias).double(), backend, proj, **asked)


@own
def test_the_automatic_choice_never_asks_torch(cell):
    expected = "cpu" if KERNELS else "reference"
    for T in (1, 5):
        for grad in (False, True):
            module, x = make(cell, 3, 6).requires_grad_(grad), torch.randn(T, 4, 3)
            assert fastrnn.explain(module, x).backend == expected
            module(x)
    foreign = torch.randn(5, 4, 3, dtype=torch.complex64).real  # strided, and ordinary: stays with the kernels
    assert fastrnn.explain(module, foreign).backend == expected
    negative = torch.randn(5, 4, 3, dtype=torch.complex64).conj().imag  # a lazy negative
    torch.testing.assert_close(module(negative)[0], module(negative.clone().resolve_neg())[0])
    with fastrnn.backend("aten"), pytest.raises(RuntimeError, match=f"torch has no {cell.mode}"):
        module(x)


@own
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(cell, dtype):
    module, x = make(cell, 3, 6, 2, 2), torch.randn(5, 4, 3)
    with torch.autocast("cpu", dtype):
        output, final = module(x)
        output.float().sum().backward()
    assert {t.dtype for t in (output, *final)} == {dtype} and module.weight_hh_l0.grad.dtype == torch.float32
    expected, _ = module.to(dtype)(x.to(dtype))
    torch.testing.assert_close(output, expected)


@own
def test_modules_are_saved_and_copied_as_those_of_torch(cell, tmp_path):
    module, x = make(cell, 3, 6, 2, 2), torch.randn(5, 4, 3)
    like = nn.LSTM(3, 6, 2, bidirectional=True)
    names = [name for name, _ in module.named_parameters()]
    own = ("peephole", "norm")
    assert {name for name in names if not any(word in name for word in own)} == set(like.state_dict())
    bound = 6**-0.5
    for name, weight in type(module)(3, 6, 2, bidirectional=True).named_parameters():
        if (cell.recurrent or "weight_hh" not in name) and "norm" not in name:
            rows = like.state_dict()[name].size(0) // 4 * cell.gates if name in like.state_dict() else 3
            assert weight.abs().max() <= bound and weight.size(0) == rows
    torch.save(module, tmp_path / "module.pt")
    copies = [copy.deepcopy(module), torch.load(tmp_path / "module.pt", weights_only=False)]
    fresh = make(cell, 3, 6, 2, 2)
    fresh.load_state_dict(module.state_dict())
    for other in [*copies, fresh]:
        torch.testing.assert_close(other(x)[0], module(x)[0])
        other.double()
        assert other(x.double())[0].dtype == torch.float64
    assert all(weight.is_meta for weight in type(module)(3, 6, device="meta").parameters())
    assert repr(type(module)(3, 6, 2)) == f"{cell.layer}(3, 6, num_layers=2)"


@own
def test_what_does_not_fit_is_refused(cell):
    module, x = make(cell, 3, 6), torch.randn(5, 4, 3)
    hx = states_of(cell, 1, 4, 6)
    if cell.states > 1:
        message = f"{cell.layer}: expected hx to be a tuple of {cell.states} tensors, got 1"
        with pytest.raises(RuntimeError, match=message):
            module(x, hx[:1])
    which = r"hidden\[0\]" if cell.states > 1 else "hidden"
    with pytest.raises(RuntimeError, match=rf"Expected {which} size \(1, 4, 6\), got \[1, 3, 6\]"):
        module(x, given([h[:, :3] for h in hx]))
    with pytest.raises(RuntimeError, match="should also be 3-D but got"):
        module(x, given([h[0] for h in hx]))
    with pytest.raises(ValueError, match="proj_size"):
        type(module)(3, 6, proj_size=-1)
    if not cell.projects:
        with pytest.raises(ValueError, match="proj_size must be 0, got 2: each unit reads its own h"):
            type(module)(3, 6, proj_size=2)
    module.mode = "NONE"
    with pytest.raises(ValueError, match=r"expected the mode of a cell to be one of LSTM, .*, got 'NONE'"):
        module(x)


def test_every_cell_has_a_number_of_its_own():
    assert [cell.index for cell in BY_NUMBER] == list(range(len(BY_NUMBER))) and not CELLS.keys() & OWN_CELLS.keys()
    assert [cell_of(cell.index) for cell in BY_NUMBER] == list(BY_NUMBER)


@pytest.mark.parametrize(
    "number, said", [(-1, "must be in 0"), (11, "must be in 0"), (FIRST_USER_CELL, "is not loaded")]
)
def test_numbers_that_no_cell_has(number, said):
    with pytest.raises(RuntimeError, match=f"fastrnn: cell .*{said}.*"):
        cell_of(number)


def test_cells_are_found_while_another_thread_adds_some(monkeypatch):
    for name in ("ALL_CELLS", "USER_CELLS", "_numbered"):
        monkeypatch.setattr(registry, name, copy.copy(getattr(registry, name)))
    first, count, interval = FIRST_USER_CELL + 7, 20000, sys.getswitchinterval()
    added = [replace(CELLS["GRU"], index=first + k, mode=f"added {k}") for k in range(count)]
    registry.add_user_cell(added[0])
    adding = threading.Thread(target=lambda: [registry.add_user_cell(cell) for cell in added[1:]])
    sys.setswitchinterval(1e-6)
    try:
        adding.start()
        while adding.is_alive():
            assert cell_of(first) is added[0]
            with pytest.raises(RuntimeError, match="is not loaded"):
                cell_of(first + count)
    finally:
        sys.setswitchinterval(interval)
        adding.join()
    assert cell_of(first + count - 1) is added[-1]


def test_the_forget_gates_of_an_slstm():
    module = fastrnn.SLSTM(3, 6, forget_gate="exp")
    assert module.mode == "SLSTM_EXP" and repr(module) == "SLSTM(3, 6, forget_gate=exp)"
    assert repr(fastrnn.SLSTMCell(3, 6, forget_gate="exp")) == "SLSTMCell(3, 6, forget_gate=exp)"
    assert copy.deepcopy(module).mode == "SLSTM_EXP" and fastrnn.SLSTM(3, 6).mode == "SLSTM"
    for kind in (fastrnn.SLSTM, fastrnn.SLSTMCell):
        for wrong in ("tanh", [1], None):
            text = f"{kind.__name__}: forget_gate must be 'sigmoid' or 'exp', got {wrong!r}"
            with pytest.raises(ValueError, match=re.escape(text)):
                kind(3, 6, forget_gate=wrong)


def test_the_weights_of_an_indrnn_are_vectors_of_their_own_range():
    module = fastrnn.IndRNN(3, 400, 2, bidirectional=True)
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        weight = getattr(module, f"weight_hh_{suffix}")
        assert (
            weight.shape == (400,) and weight.min() >= 0 and 0.9 < weight.max() < 1 and abs(weight.mean() - 0.5) < 0.1
        )


def test_the_rows_of_a_peephole_are_those_of_i_f_and_o():
    module = make(OWN_CELLS["PEEPHOLE_LSTM"], 3, 6)
    *_, p_i, p_f, p_o = module._weights()
    assert torch.equal(torch.stack([p_i, p_f, p_o]), module.weight_peephole_l0)
