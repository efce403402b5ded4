"""Tensors that no kernel may read, where torch.nn has a result: in cells, under transforms and modes, as gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from fuzz.kinds import KINDS
from fuzz.subclasses import Stored
from support import build, cells, given, tensors, twins
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import BaseTorchDispatchMode

import fastrnn
from fastrnn._kernels import ops
from fastrnn.registry import CELLS

LSTM = CELLS["LSTM"]


def close(mine, expected):
    for a, b in zip(tensors(mine), tensors(expected), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@cells
def test_a_sparse_state_of_a_cell_under_vjp(cell):
    module = build(fastrnn, cell, 4, 6, step=True)
    x, h = torch.randn(3, 4), torch.randn(3, 6)
    close(*(torch.func.vjp(lambda x, h=h: module(x, given([h] * cell.states)), x)[0] for h in (h, h.to_sparse())))


@pytest.mark.parametrize("backend", [None, "reference"])
@cells
def test_a_sparse_input_of_a_cell(cell, backend):
    module = build(fastrnn, cell, 4, 6, step=True)
    x, h = torch.randn(3, 4), torch.randn(3, 6)
    with fastrnn.backend(backend), torch.no_grad():
        for args in ((), (given([h] * cell.states),)):
            close(module(x.to_sparse(), *args), module(x, *args))


@pytest.mark.parametrize("name", ["bias_ih", "bias_hh"])
@cells
def test_one_bias_without_the_other(cell, name):
    modules = twins(cell, 4, 6, step=True)
    for module in modules:
        setattr(module, name, None)
    x = torch.randn(3, 4)
    close(modules[0](x), modules[1](x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("lengths", [(5, 3, 1), (5, 5, 5)], ids=str)
def test_a_nested_state_of_a_packed_lstm(place, lengths):
    """torch's LSTM, alone of its layers, does not look at the size of packed calls' states."""
    ours, theirs, _ = twins(LSTM, 4, 6)
    x = pack_sequence([torch.randn(n, 4) for n in lengths])
    states = [torch.randn(1, 3, 6) for _ in range(2)]
    states[place] = torch.nested.nested_tensor(list(states[place].unbind()))
    close(ours(x, tuple(states)), theirs(x, tuple(states)))
    for name in ("GRU", "RNN_TANH"):
        for module in twins(CELLS[name], 4, 6)[:2]:
            with pytest.raises(RuntimeError, match="doesn't support sizes"):
                module(x, states[place])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", ["output", "state"])
@cells
def test_sparse_gradients(cell, place, dtype, own_backend):
    module, x = build(fastrnn, cell, 4, 6, dtype=dtype), torch.randn(9, 3, 4, dtype=dtype)
    if fastrnn.explain(module, x).backend == "aten":
        pytest.skip("torch's operators compute the call, whose gradients may not be sparse")
    output, hn = module(x)
    result = output if place == "output" else tensors(hn)[0]
    slope, weights = torch.randn_like(result), list(module.parameters())
    dense, sparse = (torch.autograd.grad(result, weights, g, retain_graph=True) for g in (slope, slope.to_sparse()))
    scale = 1e-5 if dtype == torch.float32 else 0.1
    for a, b in zip(sparse, dense, strict=True):
        assert a.layout == torch.strided
        torch.testing.assert_close(a, b, atol=scale, rtol=scale)


@cells
def test_gradients_of_sparse_weights_in_16_bits(cell):
    found = []
    for kind in (torch.clone, torch.Tensor.to_sparse):
        torch.manual_seed(0)
        module = build(fastrnn, cell, 4, 6, dtype=torch.bfloat16)
        weight = kind(module.weight_ih_l0.detach()).requires_grad_()
        x = torch.linspace(-1, 1, 60).view(5, 3, 4).bfloat16()
        parameters = dict(module.named_parameters()) | {"weight_ih_l0": weight}
        with fastrnn.backend("reference"):
            output = torch.func.functional_call(module, parameters, (x,))[0]
            found += torch.autograd.grad(output.float().square().sum(), weight)
    assert found[1].layout == torch.strided
    torch.testing.assert_close(*found, atol=0.1, rtol=0.1)


@cells
def test_inference_tensors_beside_wrapped_ones(cell):
    module = build(fastrnn, cell, 4, 6).double()
    x, h = torch.randn(5, 3, 4).double(), torch.randn(1, 3, 6).double()
    lengths, found = torch.tensor([5, 2, 4]), []
    for state in (h, KINDS["inference"].make(h)):
        output = module(torch._neg_view(-x), given([state] * cell.states), lengths=lengths)[0]
        found.append([output, *torch.autograd.grad(output.sum(), list(module.parameters()))])
    close(found[1], found[0])


@cells
def test_a_negative_view_in_forward_mode(cell):
    """torch makes views of it without a tangent, and asserts when it notices."""
    module = build(fastrnn, cell, 4, 6, step=True).double()
    x = torch.randn(3, 4).double()
    found, expected = (torch.func.jacfwd(module)(x) for x in (torch._neg_view(-x), x))
    close(found, expected)


@pytest.mark.parametrize("name", ["GRU", "RNN_TANH"])  # oneDNN's LSTM takes no sparse input
def test_a_sparse_input_in_a_dispatch_mode(name):
    ours, theirs, _ = twins(CELLS[name], 4, 6)
    packed = pack_sequence([torch.randn(5, 4), torch.randn(3, 4)])
    packed = packed._replace(data=packed.data.to_sparse())
    with BaseTorchDispatchMode(), torch.no_grad():
        close(ours(packed), theirs(packed))


@cells
def test_a_wrapped_input_of_the_reference_in_a_dispatch_mode(cell):
    """The reference's fast pair runs in inference mode, whose tensors such a class cannot wrap."""

    module, x = build(fastrnn, cell, 4, 6), torch.randn(5, 3, 4)
    expected = module(x)[0]
    with fastrnn.backend("reference"), BaseTorchDispatchMode(), torch.no_grad():
        output = module(Stored(x))[0]
    close(getattr(output, "inner", output), expected)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_mkldnn_input_without_states_ends_as_with_torch(name, dtype):
    """In 16-bit types torch's new_zeros writes past the end of such a tensor's memory."""
    ours, theirs, _ = twins(CELLS[name], 4, 6)
    x = torch.randn(2, 3, 4, dtype=dtype).to_mkldnn()
    ends = []
    for module in (ours.to(dtype), theirs.to(dtype)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ends.append(module(x)[0].to_dense())
            except (RuntimeError, NotImplementedError) as error:
                ends.append(type(error))
    if isinstance(ends[1], type):
        assert ends[0] is ends[1]
    else:
        close(*ends)


@pytest.mark.skipif(not ops.has_extension(), reason="the look at memory is the extension's")
@cells
def test_a_parameter_without_memory_is_refused_under_transforms(cell):
    """torch's operators read it, where nothing tells them of the wrapper any more."""
    module = build(fastrnn, cell, 4, 6)
    module.weight_ih_l0.data = KINDS["int8"].make(module.weight_ih_l0.detach())
    with pytest.raises(RuntimeError, match="expected tensors with memory"):
        torch.func.jacrev(lambda x: module(x)[0])(torch.randn(5, 3, 4))


@pytest.mark.parametrize("place", ["bias_ih_l0", "weight_hh_l0"])
@cells
def test_fake_tensors_beside_others_are_refused(cell, place):
    """With the class of error that torch's layers have; its operators raise AssertionError."""
    module, x = build(fastrnn, cell, 4, 6), torch.randn(5, 3, 4)
    fake = {place: FakeTensorMode().from_tensor(getattr(module, place).detach())}
    with fastrnn.backend("reference"), pytest.raises(RuntimeError, match="all fake tensors or none"):
        torch.func.functional_call(module, fake, (x,))
