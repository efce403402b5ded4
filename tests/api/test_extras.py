"""lengths, reset_mask and all_states: against the formulas, row by row."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from plain import ASKED, KINDS, LENGTHS, RESETS, B, T, evaluate, exact_module, kinds, ours, run, states_of
from support import (
    DTYPES,
    OWN_BACKENDS,
    build,
    cells,
    check_all,
    compiled,
    device_of,
    forward_arguments,
    pairs,
    tensors,
)
from torch.autograd import gradgradcheck
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.registry import CELLS


def compare(cell, x, hx, asked, dtype, own_backend, *sizes, **options):
    """With the exact results, rounded to the type."""
    module = build(fastrnn, cell, *sizes, dtype=dtype, device=device_of(own_backend), **options)
    x, hx = x.to(dtype), hx and tuple(h.to(dtype) for h in hx)
    truth = evaluate(run, copy.deepcopy(module).cpu().double(), x, hx, dtype, **asked)
    found = evaluate(ours, module, x, hx, dtype, **asked)
    check_all(found, {name: t.to(found[name]) for name, t in truth.items()}, truth)


@pairs(kind=KINDS, asked=ASKED, dtype=DTYPES, own_backend=[None, *OWN_BACKENDS])
def test_against_rows_by_themselves(kind, asked, dtype, own_backend):
    cell, options = kind
    hx = states_of(cell, 4, 7, options.get("proj_size", 0))
    compare(cell, torch.randn(T, B, 3), hx, asked, dtype, own_backend, 3, 7, 2, bidirectional=True, **options)


@pairs(cell=CELLS.values(), asked=ASKED, hidden=[1, 33, 65], own_backend=[None, *OWN_BACKENDS])
def test_one_direction_without_initial_states(cell, asked, hidden, own_backend):
    compare(cell, torch.randn(T, B, 2), None, asked, torch.float32, own_backend, 2, hidden)


@cells
def test_one_step(cell, own_backend):
    asked = {"lengths": torch.tensor([1, 0, 1, 0, 1]), "reset_mask": torch.tensor([1, 1, 0, 0, 0]).bool()[:, None]}
    x, hx = torch.randn(1, B, 3), states_of(cell, 2, 9)
    compare(cell, x, hx, asked, torch.float32, own_backend, 3, 9, bidirectional=True)


@kinds
def test_lengths_are_what_packing_gives(cell, options, own_backend):
    module = exact_module(cell, own_backend, 3, 7, 2, **options)
    x = torch.randn(T, B, 3, dtype=torch.float64, device=device_of(own_backend))
    lengths = LENGTHS.clamp(min=1)
    packed, hn = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    expected, _ = pad_packed_sequence(packed, total_length=T)
    torch.testing.assert_close(module(x, lengths=lengths.to(x.device)), (expected, hn), rtol=1e-12, atol=1e-12)


@cells
def test_padding_has_no_influence(cell, own_backend):
    """Not even where it is no number: neither on results, nor on gradients."""
    module = build(fastrnn, cell, 3, 7, 2, bidirectional=True, device=device_of(own_backend))
    x, lengths = torch.randn(T, B, 3, device=device_of(own_backend)), LENGTHS.to(device_of(own_backend))
    there = (torch.arange(T)[:, None] < LENGTHS)[..., None].to(x.device)
    results = []
    for value in (0.0, float("nan"), float("inf")):
        leaf = torch.where(there, x, value).requires_grad_()
        output, hn = module(leaf, lengths=lengths)
        cotangent = torch.where(there, output.detach().cos(), value)
        total = torch.autograd.grad([output, *tensors(hn)], [leaf, *module.parameters()], [cotangent, *tensors(hn)])
        assert not output[~there.expand_as(output)].any() and not total[0][~there.expand_as(x)].any()
        results.append([output, *tensors(hn), *total])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@cells
def test_batch_first(cell, own_backend):
    module = build(fastrnn, cell, 3, 7, batch_first=True, device=device_of(own_backend))
    x = torch.randn(B, T, 3, device=device_of(own_backend))
    asked = {"lengths": LENGTHS.to(x.device), "reset_mask": RESETS.to(x.device), "all_states": True}
    output, hn, states = module(x, **asked)
    module.batch_first = False
    expected, expected_hn, expected_states = module(x.transpose(0, 1), **asked)
    sequences = zip(tensors([output, states]), tensors([expected, expected_states]), strict=True)
    assert all(torch.equal(a, b.transpose(0, 1)) for a, b in sequences)
    assert all(map(torch.equal, tensors(hn), tensors(expected_hn)))


@pairs(kind=KINDS, asked=ASKED, own_kernels=OWN_BACKENDS)
def test_second_derivatives(kind, asked, own_kernels):
    """Against numerical derivatives of the first, which test_against_rows_by_themselves compares."""
    cell, options = kind
    module = exact_module(cell, own_kernels, 2, 5, **options)
    x = torch.randn(T, B, 2, dtype=torch.float64, device=device_of(own_kernels), requires_grad=True)
    names = list(dict(module.named_parameters()))

    def call(x, *weights):
        parameters = dict(zip(names, weights))
        result = functional_call(module, parameters, (x,), {"all_states": True, **on(x, asked)})
        return tuple(tensors(result))

    weights = [p.detach().requires_grad_() for p in module.parameters()]
    assert gradgradcheck(call, (x, *weights), fast_mode=True)


def on(x, asked):
    return {name: value.to(x.device) for name, value in asked.items()}


def test_lengths_changed_between_forward_and_backward_are_noticed(own_backend):
    module, lengths = fastrnn.GRU(3, 4, device=device_of(own_backend)), LENGTHS.clone().to(device_of(own_backend))
    output, _ = module(torch.randn(T, B, 3, device=lengths.device), lengths=lengths)
    lengths += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_forward_mode_and_per_sample_gradients():
    module = fastrnn.LSTM(3, 4, bidirectional=True).double()
    x, tangent = torch.randn(2, T, B, 3, dtype=torch.float64)
    parameters = dict(module.named_parameters())

    def loss(parameters, x, lengths, resets):
        output, _ = functional_call(module, parameters, (x,), {"lengths": lengths, "reset_mask": resets})
        return output.square().sum()

    _, slope = jvp(lambda x: loss(parameters, x, LENGTHS, RESETS), (x,), (tangent,))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(parameters, leaf, LENGTHS, RESETS), leaf)
    torch.testing.assert_close(slope, (gradient * tangent).sum())

    rows = x.transpose(0, 1).unsqueeze(2), LENGTHS.unsqueeze(1), RESETS.unsqueeze(1)
    each = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, *rows)
    total = torch.autograd.grad(loss(parameters, x, LENGTHS, RESETS), list(parameters.values()))
    for per_sample, whole in zip(each.values(), total):
        torch.testing.assert_close(per_sample.sum(0), whole)
        assert not per_sample[1].any()  # a row without steps


def test_autocast():
    module, x = fastrnn.LSTM(3, 5), torch.randn(T, B, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output, _, ((h, c),) = module(x, lengths=LENGTHS, all_states=True)
    assert output.dtype == h.dtype == c.dtype == torch.bfloat16
    half = fastrnn.LSTM(3, 5, dtype=torch.bfloat16)
    half.load_state_dict(module.state_dict())
    assert torch.equal(output, half(x.bfloat16(), lengths=LENGTHS)[0])


@pytest.mark.parametrize(
    "given", [LENGTHS.tolist(), tuple(LENGTHS.tolist()), LENGTHS.numpy(), LENGTHS.int(), LENGTHS.to(torch.uint8)],
    ids=["list", "tuple", "array", "int32", "uint8"],
)  # fmt: skip
def test_lengths_as_packing_takes_them(given):
    module, x = fastrnn.GRU(3, 5), torch.randn(T, B, 3)
    assert torch.equal(module(x, lengths=given)[0], module(x, lengths=LENGTHS)[0])


def test_numbers_of_numpy():
    module, x = fastrnn.GRU(3, 5), torch.randn(T, B, 3)
    output, _, states = module(x, all_states=np.bool_(True), checkpoint_chunks=np.int64(2))
    torch.testing.assert_close(output, module(x)[0])
    assert torch.equal(output, states[0])
    with pytest.raises(ValueError, match="checkpoint_chunks must be a positive integer"):
        module(x, checkpoint_chunks=np.float64(2))


WRONG = [
    ({"lengths": [3, 2]}, ValueError, r"LSTM: lengths must be int64 of shape \(B,\) = \(5,\), got int64 of shape"),
    ({"lengths": "long"}, TypeError, r"lengths must be integers of shape \(B,\), got 'long'"),
    ({"lengths": [3, 2.5, 1, 0, 4]}, ValueError, r"lengths must be integers of shape \(B,\), got torch.float32"),
    ({"lengths": LENGTHS > 2}, ValueError, r"lengths must be integers of shape \(B,\), got torch.bool"),
    ({"lengths": LENGTHS[:2]}, ValueError, r"int64 of shape \(B,\) = \(5,\), got int64 of shape \(2,\)"),
    ({"lengths": LENGTHS + 2}, ValueError, r"= \(5,\) with 0 <= length <= T = 6, got 8 at index 2"),
    ({"lengths": LENGTHS - 1}, ValueError, r"0 <= length <= T = 6, got -1 at index 1"),
    ({"lengths": LENGTHS.to("meta")}, ValueError, "on the input's device cpu, got it on meta"),
    ({"reset_mask": RESETS.t()}, ValueError, r"reset_mask must be bool of shape \(B, T\) = \(5, 6\), got bool of"),
    ({"reset_mask": RESETS.int()}, ValueError, r"reset_mask must be bool .* got int32 of shape \(5, 6\)"),
    ({"all_states": 1}, TypeError, "all_states must be a bool, got 1"),
    ({"checkpoint_chunks": 0}, ValueError, "checkpoint_chunks must be a positive integer, 'auto' or None, got 0"),
    ({"checkpoint_chunks": True}, ValueError, "checkpoint_chunks must be a positive integer, 'auto' or None, got True"),
    ({"checkpoint_chunks": "some"}, ValueError, "checkpoint_chunks .* got 'some'"),
    ({"save": "gates"}, ValueError, "save must be 'full', 'states' or None, got 'gates'"),
]


@pytest.mark.parametrize("asked, error, text", WRONG)
def test_bad_values(asked, error, text):
    module = fastrnn.LSTM(3, 4)
    with pytest.raises(error, match=text):
        module(torch.randn(T, B, 3), **asked)
    with pytest.raises(error, match=text.replace("LSTM:", "fastrnn.lstm:")):
        fastrnn.functional.lstm(torch.randn(T, B, 3), None, list(module.parameters()), **asked)


@pytest.mark.parametrize("name, value", [("lengths", LENGTHS), ("reset_mask", RESETS)])
def test_masks_need_a_padded_batch(name, value):
    module, x = fastrnn.GRU(3, 4), torch.randn(T, B, 3)
    with pytest.raises(ValueError, match=f"GRU: {name} needs a padded input, got a packed one"):
        module(pack_padded_sequence(x, [6] * B), **{name: value})
    with pytest.raises(ValueError, match=f"{name} must be .* = \\(1,"):
        module(x[:, 0], **{name: value})


@compiled
def test_the_operator_refuses_lengths_out_of_range():
    weights = list(fastrnn.GRU(3, 4).parameters())
    args = 1, torch.randn(T, B, 3), None, [torch.zeros(1, B, 4)], weights
    with pytest.raises(ValueError, match="T = 6, got 7 at index 2"):
        torch.ops.fastrnn.layer_forward(*forward_arguments(*args, lengths=torch.tensor([1, 2, 7, 0, 0])))


@pytest.mark.parametrize("asked", [{"lengths": LENGTHS}, {"all_states": True}, {"checkpoint_chunks": 2}], ids=str)
def test_torchs_own_layers_are_not_asked(asked):
    module, x = fastrnn.RNN(3, 4), torch.randn(T, B, 3)
    found = fastrnn.explain(module, x, **asked)
    assert found.backend != "aten" and "torch has no lengths" in found.reasons["aten"][0]
    with fastrnn.backend("aten"), pytest.raises(RuntimeError, match=r"'aten' .* cannot serve this call: torch has no"):
        module(x, **asked)
