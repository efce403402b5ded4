"""Initial states of every wrong kind: an error that says so, of torch.nn's class where that is none of an accident.

torch.nn itself reads past the end of some of them, and so does not run here beside ours.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support import LAYERS, build, device_of, name_of, tensors
from torch import nn, ones
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn._backends import autograd
from fastrnn._spec import SAVE
from fastrnn.registry import CELLS

CLEAR = (TypeError, ValueError, RuntimeError)
PACKED = pack_padded_sequence(ones(3, 2, 4, dtype=torch.float64), [3, 2])
STACK = {"num_layers": 2, "bidirectional": True, "batch_first": True}
# The input, the shape of a right state, and what the module is built with.
FORMS = {
    "layer": (ones(3, 2, 4, dtype=torch.float64), (1, 2, 5), {}),
    "stack": (ones(2, 3, 4, dtype=torch.float64), (4, 2, 5), STACK),
    "unbatched": (ones(3, 4, dtype=torch.float64), (1, 5), {}),
    "packed": (PACKED, (1, 2, 5), {}),
    "step": (ones(2, 4, dtype=torch.float64), (2, 5), {"step": True}),
    "unbatched step": (ones(4, dtype=torch.float64), (5,), {"step": True}),
}
# In place of a tensor.
OBJECTS = {
    "string": lambda h: "h",
    "number": lambda h: 1.5,
    "False": lambda h: False,
    "object": lambda h: object(),
    "empty tuple": lambda h: (),
    "empty list": lambda h: [],
    "tuple of None": lambda h: (None,),
    "nested": lambda h: (h,),
    "nested pair": lambda h: (h, h),
    "dictionary": lambda h: {0: h, 1: h},
    "dictionary of names": lambda h: {"h": h, "c": h},
    "set": lambda h: {h, h.clone()},
    "iterator": lambda h: iter((h, h)),
    "array": lambda h: h.numpy(),
    "shape": lambda h: h.shape,
    "class": lambda h: int,
    "packed sequence": lambda h: PACKED,
}
SIZES = {
    "a dimension more": lambda h: h.unsqueeze(0),
    "two more": lambda h: h[None, None],
    "a dimension less": lambda h: h[0],
    "no dimension": lambda h: h.sum(),
    "flat": lambda h: h.flatten()[:3],
    "wide": lambda h: torch.cat([h, h], -1),
    "narrow": lambda h: h[..., :1],
    "no width": lambda h: h[..., :0],
    "too many rows": lambda h: torch.cat([h, h]),
    "no rows": lambda h: h[:0],
}
BATCHES = {  # along the axis before the last
    "another batch": lambda h: torch.cat([h, h], -2),
    "one for the batch": lambda h: h.narrow(-2, 0, 1),
    "no batch": lambda h: h.narrow(-2, 0, 0),
    "axes exchanged": lambda h: h.mT,
}
RIGHT = {
    "parameter": lambda h: nn.Parameter(h.clone()),
    "expanded": lambda h: h[..., :1].expand_as(h),
    "not contiguous": lambda h: torch.stack([h, h], -1)[..., 0],
}
PAIRS = {
    "three": lambda h: (h, h, h),
    "one": lambda h: (h,),
    "None and h": lambda h: (None, h),
    "h and None": lambda h: (h, None),
    "None twice": lambda h: (None, None),
    "list": lambda h: [h, h],
    "pair in a tuple": lambda h: ((h, h),),
    "stacked": lambda h: torch.stack([h, h]),
}


def kinds(form):
    batches = BATCHES if len(FORMS[form][1]) > 1 else {}
    return OBJECTS | SIZES | batches | RIGHT


def given(cell, form):
    """(name, hx), where one thing is wrong with hx, or nothing."""
    h = torch.full(FORMS[form][1], 0.25, dtype=torch.float64)
    found = [(name, make(h)) for name, make in kinds(form).items()]
    if cell.states == 1:
        return [*found, *((name, make(h)) for name, make in PAIRS.items() if name != "stacked")]
    found += [(name, make(h)) for name, make in PAIRS.items()]
    for name, make in kinds(form).items():
        found += [(f"h: {name}", (make(h), h)), (f"c: {name}", (h, make(h))), (f"both: {name}", (make(h), make(h)))]
    return found


def outcome(space, cell, form, hx):
    """The tensors of a call, or its error."""
    input, _, options = FORMS[form]
    torch.manual_seed(0)
    module = build(space, cell, 4, 5, dtype=torch.float64, **options)
    try:
        return tensors([part for part in module(input, hx) if part is not None])
    except Exception as error:
        return error


def is_refused(cell, hx) -> bool:
    """Whether ours says no to what torch takes apart by indices or looks at in part."""
    return cell.states == 2 and (
        isinstance(hx, (torch.Tensor, dict)) or (isinstance(hx, (tuple, list)) and len(hx) > 2)
    )


def is_unsafe(cell, form, hx) -> bool:
    """Whether torch does not check the sizes of these states and its kernels may read past their ends."""
    if not (form == "packed" and cell.states == 2) and "step" not in form:
        return False
    states = [hx] if isinstance(hx, torch.Tensor) else hx if isinstance(hx, (tuple, list)) else []
    sizes = [h.shape if form == "packed" else h.dim() for h in states if isinstance(h, torch.Tensor)]
    right = FORMS[form][1] if form == "packed" else len(FORMS[form][1])
    return any(size != right for size in sizes) or (cell.states == 2 and isinstance(hx, torch.Tensor))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS.values(), ids=name_of)
def test_an_odd_state(cell, form):
    for name, hx in given(cell, form):
        ours = outcome(fastrnn, cell, form, hx)
        theirs = None if is_unsafe(cell, form, hx) else outcome(nn, cell, form, hx)
        if isinstance(theirs, CLEAR) and not is_refused(cell, hx):
            assert type(ours) is type(theirs), (name, ours, theirs)
        elif isinstance(theirs, list) and not is_refused(cell, hx):
            assert isinstance(ours, list), (name, ours)
            torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert isinstance(ours, CLEAR) and str(ours), (name, ours, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_the_right_ones_were_among_them(form):
    """Or all of the above would hold of a module that refuses everything."""
    for cell in LAYERS:
        served = [name for name, hx in given(cell, form) if isinstance(outcome(fastrnn, cell, form, hx), list)]
        assert set(served) >= ({"list"} if cell.states == 2 else set(RIGHT)), served


@pytest.mark.parametrize("step", [False, True], ids=["layer", "step"])
def test_the_texts_name_what_was_given(step):
    x, h = (ones(2, 4), ones(2, 5)) if step else (ones(3, 2, 4), ones(1, 2, 5))
    for hx, got in (
        (h, "Tensor"),
        ({0: h, 1: h}, "dict"),
        ((None, h), r"\(NoneType, Tensor\)"),
        ([h, "h"], r"\(Tensor, str\)"),
        (((h, h),), r"\(tuple\)"),
    ):
        with pytest.raises(TypeError, match=f"expected hx to be a tuple of 2 tensors, got {got}$"):
            build(fastrnn, CELLS["LSTM"], 4, 5, step=step)(x, hx)
    for mode in ("GRU", "RNN_TANH"):
        with pytest.raises(TypeError, match="expected hx to be a tensor, got tuple"):
            build(fastrnn, CELLS[mode], 4, 5, step=step)(x, (h,))


def test_weights_that_do_not_fit_are_refused_where_torch_follows_the_operators():
    """There the operator's shapes are taken from its arguments, and nothing else looks at them."""
    with FakeTensorMode():
        module = fastrnn.GRU(4, 6)
        module.weight_hh_l0 = torch.nn.Parameter(torch.randn(18, 5))
        with pytest.raises(RuntimeError, match=r"must have shape \(18, 6\), got \(18, 5\)"):
            module(torch.randn(5, 3, 4))


def test_a_weight_that_is_none_is_refused():
    w_ih, w_hh, *_ = fastrnn.GRU(4, 6).parameters()
    with pytest.raises(TypeError, match="expected input, states and weights to be tensors, got NoneType"):
        fastrnn.functional.gru(torch.randn(5, 3, 4), None, [w_ih, w_hh, None, None])


@pytest.mark.parametrize("grad", [False, True])
def test_values_are_saved_where_a_gradient_may_be_asked_for(monkeypatch, grad, own_kernels):
    asked, ops = [], autograd.layer_ops

    def watched(backend):
        found = ops(backend)
        return SimpleNamespace(layer_forward=lambda *call: asked.append(call[4][SAVE]) or found.layer_forward(*call))

    monkeypatch.setattr(autograd, "layer_ops", watched)
    with torch.set_grad_enabled(grad):
        module, x = fastrnn.GRU(4, 6).to(device_of(own_kernels)), torch.randn(5, 3, 4, device=device_of(own_kernels))
        module(x, lengths=torch.tensor([5, 2, 4], device=x.device))  # no plain call, which takes a shorter way
    assert asked == [int(grad)]
