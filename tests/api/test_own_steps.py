"""One step of the cells that torch does not have: the layer's, as a module."""

from __future__ import annotations

import copy

import pytest
import torch
from support import given, tensors
from test_own_cells import backends, gradients, make, own, states_of

import fastrnn


def step(cell, I, H, **options):
    """A cell, and a layer with the same weights."""
    layer = make(cell, I, H, **options)
    if cell.mode == "SLSTM_EXP":
        options["forget_gate"] = "exp"
    module = getattr(fastrnn, cell.step)(I, H, **options)
    module.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
    return module, layer


@own
@backends
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_is_that_of_the_layer(cell, backend, bias):
    module, layer = step(cell, 3, 6, bias=bias)
    module, layer = module.double(), layer.double()
    x, hx = torch.randn(4, 3, dtype=torch.float64), [h[0] for h in states_of(cell, 1, 4, 6, torch.float64)]
    inputs = [t.requires_grad_() for t in (x, *hx)]
    with fastrnn.backend(backend):
        found = tensors(module(x, given(hx)))
        found_grads = gradients(found, [*inputs, *module.parameters()])
        _, final = layer(x[None], given([h[None] for h in hx]))
        expected = [h[0] for h in tensors(final)]
        by_name = dict(layer.named_parameters())
        weights = [by_name[f"{name}_l0"] for name, _ in module.named_parameters()]
        grads = gradients(expected, [*inputs, *weights])
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found_grads, grads)
        alone = tensors(module(x[1], given([h[1] for h in hx])))
        torch.testing.assert_close(alone, [h[1] for h in expected])
        _, without = layer(x[None])
        torch.testing.assert_close(tensors(module(x)), [h[0] for h in tensors(without)])


@own
def test_steps_are_saved_copied_explained_and_never_left_to_torch(cell):
    module, _ = step(cell, 3, 6)
    x = torch.randn(4, 3)
    other, _ = step(cell, 3, 6)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x), module(x))
    assert fastrnn.explain(module, x).backend in ("cpu", "reference")
    with fastrnn.backend("aten"), pytest.raises(RuntimeError, match=f"torch has no {cell.mode}"):
        module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert {h.dtype for h in tensors(module(x))} == {torch.bfloat16}
    torch.compiler.reset()  # a process compiles a forward for so many modules only
    made = fastrnn.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(made(x), module(x))
    with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot compile fastrnn"):
        torch.jit.script(module)
    assert repr(type(module)(3, 6)) == f"{cell.step}(3, 6)"


@own
def test_what_does_not_fit_is_refused(cell):
    module, _ = step(cell, 3, 6)
    with pytest.raises(RuntimeError, match="input has inconsistent input_size: got 2 expected 3"):
        module(torch.randn(4, 2))
    hx = [torch.zeros(4, 5)] * cell.states
    with pytest.raises(RuntimeError, match="hidden0 has inconsistent hidden_size: got 5, expected 6"):
        module(torch.randn(4, 3), given(hx))


def test_the_initial_values_of_a_step_are_those_of_the_layer():
    torch.manual_seed(0)
    weight = fastrnn.IndRNNCell(3, 400).weight_hh
    assert weight.shape == (400,) and weight.min() >= 0 and 0.9 < weight.max() < 1
    module = fastrnn.PeepholeLSTMCell(3, 6, device="meta")
    assert all(weight.is_meta for weight in module.parameters()) and module.weight_peephole.shape == (3, 6)
