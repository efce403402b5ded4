"""Initial states and weights that do not fit: an error that says so.

``fuzz/sweep.py`` has states of every wrong kind; here are those that torch.nn's kernels read past the end of.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fuzz.kinds import SIZES
from support import build, device_of
from torch import ones
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn._backends import autograd
from fastrnn._spec import SAVE
from fastrnn.registry import CELLS


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("place", [0, 1], ids=["h", "c"])
def test_sizes_that_torch_does_not_check(place, kind):
    """Those of a packed LSTM's states."""
    module, x = fastrnn.LSTM(4, 5), pack_padded_sequence(ones(3, 2, 4), [3, 2])
    states = [ones(1, 2, 5) for _ in range(2)]
    states[place] = SIZES[kind].make(states[place])
    with pytest.raises(RuntimeError, match=r"Expected hidden\[.\] size"):
        module(x, tuple(states))


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
