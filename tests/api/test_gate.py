"""What reaches the kernels: ordinary tensors of the types they compute in, and nothing else, in any place of a call."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import warnings

import pytest
import torch
from fuzz.kinds import KINDS as FUZZED
from support import (
    backward_arguments,
    build,
    cells,
    check,
    compiled,
    forward_arguments,
    given,
    tensors,
    twins,
)
from torch import nn
from torch._subclasses import FakeTensorMode

import fastrnn
from fastrnn._backends import dispatch
from fastrnn._kernels import gate, ops
from fastrnn.registry import CELLS

inference = FUZZED["inference"].make

KINDS = {
    name: lambda t, kind=FUZZED[name]: kind.make(t.detach())
    for name in ("plain-subclass", "int8", "negative", "imaginary", "zero-tensor", "coo", "mkldnn", "meta")
}
KINDS |= {
    "csr": lambda t: t.detach().to_sparse_csr() if t.dim() == 2 else t.detach().to_sparse(),
    "jagged": lambda t: torch.nested.nested_tensor(list(t.detach().unbind()), layout=torch.jagged),
}


def outcome(call):
    """The tensors that a call returns, or the class of its error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tensors(call())
    except Exception as error:
        return type(error)


def call_with(module, place, kind, x, hx):
    """``module(x, hx)`` with the argument or weight ``place`` made one of ``kind``."""
    arguments = {"input": x, **{f"state {i}": h for i, h in enumerate(hx)}}
    if place in arguments:
        arguments[place] = kind(arguments[place])
    else:
        setattr(module, place, nn.Parameter(kind(getattr(module, place)), requires_grad=False))
    x, *hx = arguments.values()
    return lambda: module(x, given(hx))


@compiled
@pytest.mark.parametrize("kind", ["int8", "zero-tensor", "coo", "mkldnn"])
@cells
def test_the_kernels_refuse_what_the_gate_would_stop(cell, kind):
    """The second look: the compiled functions themselves, whatever argument it is."""
    module = build(fastrnn, cell, 4, 6)
    forward, backward = ops.layer_ops("cpu").layer_forward, ops.layer_ops("cpu").layer_backward
    x, hx = torch.randn(5, 3, 4), [torch.randn(1, 3, 6)] * cell.states
    weights = [w.detach() for w in module.parameters()]
    call = forward_arguments(cell.index, x, None, hx, weights)
    output, states, saved = forward(*call)
    arguments = backward_arguments(call, [output, *states], output, saved)
    for position, argument in enumerate(arguments):
        for index in range(len(argument)) if isinstance(argument, list) else [None]:
            tensor = argument if index is None else argument[index]
            if not isinstance(tensor, torch.Tensor):
                continue
            changed = list(arguments)
            changed[position] = KINDS[kind](tensor)
            if index is not None:
                changed[position] = [*argument[:index], KINDS[kind](tensor), *argument[index + 1 :]]
            with pytest.raises(RuntimeError, match="must be an ordinary strided tensor"):
                backward(*changed)
            if position in (1, 3, 4):  # forward's, too
                with pytest.raises(RuntimeError, match="must be an ordinary strided tensor"):
                    forward(*changed[1:5], *call[4:])
    lengths = torch.tensor([5, 2, 4])
    with pytest.raises(RuntimeError, match="lengths must be an ordinary strided tensor"):
        forward(*forward_arguments(cell.index, x, None, hx, weights, 0, lengths.to_sparse()))
    negative = [torch._neg_view(-t) for t in (x, *hx, *weights, lengths)]  # made, not refused
    x_, hx_, weights_, lengths_ = negative[0], negative[1 : 1 + len(hx)], negative[1 + len(hx) : -1], negative[-1]
    found, expected = (
        forward(*forward_arguments(cell.index, *arguments))
        for arguments in ((x_, None, hx_, weights_, 0, lengths_), (x, None, hx, weights, 0, lengths))
    )
    assert torch.equal(found[0], expected[0])


def test_both_gates_agree():
    """The look at the keys in Python, for installations without the extension, and the compiled one."""
    t = torch.eye(3)
    plain = [t, nn.Parameter(t), t.half(), t[::2], t.expand(2, 3, 3), t.to("meta"), inference(t)]
    others = [kind(t) for name, kind in KINDS.items() if name != "meta"]
    for samples, verdict in ((plain, True), (others, False)):
        assert all(look((t,)) is verdict for look in (gate._are_plain, gate.has_ordinary_keys) for t in samples)


def test_tensors_of_a_gpu_are_ordinary():
    """No GPU is needed to know their keys; the compiled gate asserts the same where it is compiled."""
    cuda = ("Dense", "ADInplaceOrView", "AutogradFunctionality", "AutocastCUDA")
    keys = [torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)).raw_repr() for name in cuda]
    assert not any((key >> gate._BACKENDS) & ~gate._ORDINARY for key in keys)


@pytest.mark.parametrize("mode", ["torch.inference_mode()", "FakeTensorMode()", "torch.no_grad()"])
def test_the_first_look_decides_nothing(mode):
    """In whatever mode the first call is made, ordinary tensors are ordinary afterwards, and wrappers are not."""
    code = f"""
import torch, fastrnn
from torch._subclasses import FakeTensorMode
rnn = fastrnn.GRU(3, 4)
with {mode}:
    fastrnn.GRU(3, 4)(torch.ones(2, 1, 3))
from fastrnn._kernels import gate
assert not gate.is_foreign((torch.ones(2), *rnn.parameters()))
assert gate.is_foreign((torch._neg_view(torch.ones(2)),))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("backend", ["automatic", *dispatch.BACKENDS])
@pytest.mark.parametrize(
    "dtype", sorted({v for v in vars(torch).values() if isinstance(v, torch.dtype)}, key=str), ids=str
)
def test_every_type(dtype, backend):
    """Every type of torch's: in the list of a backend and right, or torch's error, or a refusal."""
    call = dispatch.Call("GRU", "cpu", dtype, T=9, B=2, I=3, H=4, grad=dtype.is_floating_point or dtype.is_complex)
    if backend != "automatic" and dtype not in dispatch.DTYPES[backend]:
        assert f"there is no kernel for {dtype}" in dispatch.why_not(backend, call)
        return
    if backend not in ("automatic", "aten", "reference") and (why := dispatch.why_not(backend, call)):
        pytest.skip("; ".join(why))
    ours, theirs, truth = twins(CELLS["GRU"], 3, 4)
    x = torch.randn(9, 2, 3, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    try:
        modules = [copy.deepcopy(theirs).to(dtype)]
    except (
        TypeError,
        NotImplementedError,
    ) as error:  # nn.Module.to takes floating-point and complex types, and not all
        with pytest.raises(type(error), match=re.escape(str(error))):
            copy.deepcopy(ours).to(dtype)
        return
    modules.insert(0, copy.deepcopy(ours).to(dtype))
    truth = truth.to(x.dtype)
    if dtype in dispatch.DTYPES["aten"]:
        truth.load_state_dict(modules[1].state_dict())
    calls = []
    for module in (*modules, truth):

        def call(module=module):
            output = module(x.to(dtype).to(next(module.parameters()).dtype))[0]
            return [output, *torch.autograd.grad(output.abs().square().sum(), list(module.parameters()))]

        calls.append(call)
    with fastrnn.backend(None if backend == "automatic" else backend):
        mine = outcome(calls[0])
    torchs = outcome(calls[1])
    if isinstance(torchs, type):
        assert mine is torchs or (isinstance(mine, type) and issubclass(mine, torchs)), (mine, torchs)
        return
    for triple in zip(mine, torchs, calls[2](), strict=True):
        if dtype.is_complex:
            triple = [torch.view_as_real(t.resolve_conj()) for t in triple]
        check(*triple)


@pytest.mark.parametrize("place", ["input", "state 0", "weight_ih_l0", "mask"])
@cells
def test_tensors_of_inference_mode_in_training(cell, place, own_backend):
    """One of them may be among those of a call that trains, as its copy may. torch takes some."""
    ours, _, _ = twins(cell, 4, 6)
    x, hx = torch.randn(9, 3, 4), [torch.randn(1, 3, 6) for _ in range(cell.states)]
    if place != "mask" and fastrnn.explain(ours, x).backend == "aten":
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):  # oneDNN's LSTM takes none
            call_with(ours, place, inference, x, hx)()
        return
    asked = {"lengths": torch.tensor([9, 2, 5])} if place == "mask" else {}
    results = []
    for kind in (torch.clone, inference):
        module = copy.deepcopy(ours)
        if place == "mask":
            asked = {name: kind(t) for name, t in asked.items()}
            output = module(x, given(hx), **asked)[0]
        else:
            output = call_with(module, place, kind, x, hx)()[0]
        wanted = [p for p in module.parameters() if p.requires_grad]
        results.append([output, *torch.autograd.grad(output.sum(), wanted)])
    for mine, expected in zip(*results, strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.skipif(not ops.has_extension(), reason="the look at memory is the extension's")
@cells
def test_a_parameter_without_memory_is_refused_under_transforms(cell):
    """torch's operators read it, where nothing tells them of the wrapper any more."""
    module = build(fastrnn, cell, 4, 6)
    module.weight_ih_l0.data = KINDS["int8"](module.weight_ih_l0)
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


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH"])
@pytest.mark.parametrize("asked", [{"checkpoint_chunks": 2}, {"save": "states"}, {"all_states": True}], ids=str)
def test_complex_gradients(mode, asked):
    """The fuzzer judges those of plain calls and of lengths."""
    module, x = build(fastrnn, CELLS[mode], 3, 4, dtype=torch.complex128), torch.randn(9, 2, 3, dtype=torch.complex128)
    outputs = [module(x, **options)[0] for options in (asked, {})]
    found, expected = (torch.autograd.grad(o.abs().square().sum(), list(module.parameters())) for o in outputs)
    torch.testing.assert_close(found, expected)
