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
from fuzz.kinds import dense
from support import (
    agree,
    backward_arguments,
    build,
    cells,
    check,
    compiled,
    forward_arguments,
    given,
    one_step,
    tensors,
    twins,
)
from torch import nn
from torch.nn.utils.rnn import pack_sequence

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


def same_outcome(ours, theirs, truth):
    """Equal values of equal classes, or related errors."""
    mine, torchs = outcome(ours), outcome(theirs)
    if isinstance(torchs, type):
        assert isinstance(mine, type) and (issubclass(mine, torchs) or issubclass(torchs, mine)), (mine, torchs)
        return
    assert not isinstance(mine, type), mine
    assert [type(t) for t in mine] == [type(t) for t in torchs]
    if any(t.is_meta for t in torchs):
        return
    for triple in zip(mine, torchs, tensors(truth()), strict=True):
        check(*(t.as_subclass(torch.Tensor).detach() for t in triple))


def call_with(module, place, kind, x, hx):
    """``module(x, hx)`` with the argument or weight ``place`` made one of ``kind``."""
    arguments = {"input": x, **{f"state {i}": h for i, h in enumerate(hx)}}
    if place in arguments:
        arguments[place] = kind(arguments[place])
    else:
        setattr(module, place, nn.Parameter(kind(getattr(module, place)), requires_grad=False))
    x, *hx = arguments.values()
    return lambda: module(x, given(hx))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recording", [False, True], ids=["no_grad", "grad"])
@cells
@one_step
def test_a_foreign_tensor_in_any_place(cell, step, kind, recording):
    """Whatever the argument: what torch.nn gives, or an error of the same class."""
    ours, theirs, _ = twins(cell, 4, 6, step=step)
    x, hx = torch.randn((3, 4) if step else (5, 3, 4)), [torch.randn((3, 6) if step else (1, 3, 6))] * cell.states
    places, made = ["input", *(f"state {i}" for i in range(cell.states)), *dict(ours.named_parameters())], 0
    for place in places:
        with torch.set_grad_enabled(recording):
            try:
                calls = [call_with(copy.deepcopy(m), place, KINDS[kind], x, hx) for m in (ours, theirs)]
            except (RuntimeError, TypeError):
                continue  # torch makes no such tensor, or no parameter of it
            made += 1
            if kind == "meta" and place != "input" and not place.startswith("state"):
                assert outcome(calls[0]) is RuntimeError  # torch returns tensors without values
                continue
            if kind == "zero-tensor" and cell.mode == "LSTM" and not step:
                calls[1] = call_with(copy.deepcopy(theirs), place, torch.zeros_like, x, hx)  # oneDNN reads past a zero
            truth = call_with(
                copy.deepcopy(theirs).double(), place, lambda t: values_of(t, kind).double(),
                x.double(), [h.double() for h in hx],
            )  # fmt: skip
            same_outcome(*calls, truth)
    assert made == len(places) - 2 * (kind == "jagged")  # which has no biases, of one dimension


def values_of(t, kind):
    """What a tensor of that kind stands for."""
    return dense(KINDS[kind](t.float())) if kind == "int8" else t.detach() * (kind != "zero-tensor")


@cells
@pytest.mark.parametrize("kind", ["negative", "zero-tensor", "imaginary", "int8"])
def test_a_foreign_gradient(cell, kind, backend):
    modules, x, slope = twins(cell, 4, 6), torch.randn(5, 3, 4), torch.randn(5, 3, 6)

    def gradients(module):
        weight = module.weight_ih_l0
        incoming = values_of(slope, kind).to(weight) if module is modules[2] else KINDS[kind](slope)
        return torch.autograd.grad(module(x.to(weight))[0], list(module.parameters()), incoming)

    agree(modules, gradients)


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


@cells
def test_inference_tensors_alone_record_nothing(cell, own_backend):
    """As in torch.nn, where operators on such tensors alone record nothing."""
    for module in twins(cell, 4, 6, bias=False)[:2]:
        module.double()  # oneDNN's LSTM, which knows no float64, raises
        for p in module.parameters():
            p.data = inference(p.data)
        x, h = (inference(torch.ones(size).double()) for size in ((9, 3, 4), (1, 3, 6)))
        assert not module(x, given([h] * cell.states))[0].requires_grad


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}], ids=str)
@cells
def test_a_sparse_packed_input(cell, options):
    """Initial states of zeros are dense, whatever the input is."""
    ours, theirs, truth = twins(cell, 4, 6, **options)
    packed = pack_sequence([torch.randn(5, 4), torch.randn(3, 4)])
    data = {ours: packed.data.to_sparse(), theirs: packed.data, truth: packed.data.double()}
    with torch.no_grad():
        agree(data, lambda module: module(packed._replace(data=data[module]))[0])


@pytest.mark.parametrize("asked", [{}, {"lengths": torch.tensor([5, 2, 4])}], ids=["reference", "lengths"])
@pytest.mark.parametrize("kind", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["coo", "csr"])
@cells
def test_sparse_states(cell, kind, asked):
    """Every initial state may be sparse on the reference and with lengths; its gradient is dense, as torch.nn's."""
    module = build(fastrnn, cell, 4, 6, 2, bidirectional=True)
    x, states, results = torch.randn(5, 3, 4), [torch.randn(4, 3, 6) for _ in range(cell.states)], []
    for make in (torch.clone, kind):
        hx = [make(h).requires_grad_() for h in states]
        with fastrnn.backend(None if asked else "reference"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = module(x, given(hx), **asked)[0]
        results.append([output, *torch.autograd.grad(output.sum(), hx)])
    assert all(t.layout == torch.strided for t in results[1])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@cells
@pytest.mark.parametrize(
    "asked", [{}, {"checkpoint_chunks": 2}, {"save": "states"}, {"lengths": [9, 4]}, {"all_states": True}], ids=str
)
def test_complex_gradients(cell, asked):
    """A difference quotient at one weight, in both of its directions."""
    module = build(fastrnn, cell, 3, 4, dtype=torch.complex128)
    if cell.mode == "RNN_RELU":  # torch has no relu of complex numbers
        with pytest.raises(RuntimeError, match="complex"):
            module(torch.randn(9, 2, 3, dtype=torch.complex128), **asked)
        return
    x, w, step = torch.randn(9, 2, 3, dtype=torch.complex128), module.weight_hh_l0, 1e-6

    def loss(change=0):
        with torch.no_grad():
            w[0, 1] += change
        value = module(x, **asked)[0].abs().square().sum()
        with torch.no_grad():
            w[0, 1] -= change
        return value

    (found,) = torch.autograd.grad(module(x, **asked)[0].abs().square().sum(), w)
    with torch.no_grad():
        slopes = [(loss(step * d) - loss(-step * d)).item() / (2 * step) for d in (1, 1j)]
    assert abs(found[0, 1].item() - complex(*slopes)) < 1e-6 * found.abs().max().item()
