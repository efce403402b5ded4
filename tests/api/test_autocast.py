"""Under autocast the result has torch's type for that class, and torch's accuracy.

What autocast leaves alone and tensors of subclasses are cases of ``fuzz/sweep.py``.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from support import (
    build,
    cells,
    check,
    check_each,
    cotangents,
    device_of,
    given,
    is_bfloat16_in_onednn,
    like,
    name_of,
    one_step,
    tensors,
    under_autocast,
)
from support import twins as module_twins
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn._kernels import ops
from fastrnn.registry import BY_NUMBER, CELLS

LOW = (torch.bfloat16, torch.float16)
lows = pytest.mark.parametrize("low", LOW, ids=name_of)


def inputs(cell, step, dtype, state_dtype, device):
    """Values representable in every 16-bit type, so that a cast on the way in changes nothing."""
    x = torch.randn(*((3, 4) if step else (5, 3, 4)), device=device).bfloat16().half().to(dtype)
    if state_dtype is None:
        return (x,)
    shape = (3, 6) if step else (2, 3, 6)
    states = tuple(torch.randn(shape, device=device).bfloat16().half().to(state_dtype) for _ in range(cell.states))
    return x, given(states)


def twins(cell, step, device):
    options = {"step": True} if step else {"bidirectional": True}
    theirs = build(nn, cell, 4, 6, device=device, **options)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(p.bfloat16().half())
    ours = build(fastrnn, cell, 4, 6, device=device, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, copy.deepcopy(theirs).double()


@cells
@lows
@one_step
def test_types_and_values(cell, low, step, any_backend):
    """Every input type times every state type."""
    device = device_of(any_backend)
    ours, theirs, truth = twins(cell, step, device)
    kinds = (torch.float32, *LOW)
    for dtype, state_dtype in itertools.product(kinds, (None, *kinds)):
        args = inputs(cell, step, dtype, state_dtype, device)
        mine, torchs = (under_autocast(module, low, *args) for module in (ours, theirs))
        check_each(mine, torchs, tensors(truth(*(like(truth, a) for a in args))))


@cells
@lows
@one_step
def test_gradients(cell, low, step, any_backend):
    """Gradients reach input and float32 parameters in the type of each, as accurate as torch's."""
    device = device_of(any_backend)
    modules, (x,) = twins(cell, step, device), inputs(cell, step, torch.float32, None, device)
    results = []
    for module in modules:
        double = module is modules[2]
        source = x.to(torch.float64 if double else torch.float32).requires_grad_()
        outputs = tensors(module(source)) if double else under_autocast(module, low, source)
        sources = [source, *module.parameters()]
        results.append(torch.autograd.grad(outputs, sources, cotangents(outputs, low)))
    for name, mine, torchs, exact in zip(["input", *dict(modules[0].named_parameters())], *results):
        assert mine.dtype == torchs.dtype == torch.float32
        # What arrives is a float32 tensor that went through the low type: that is the type to budget in.
        check(mine.to(low), torchs.to(low), exact, name)


@pytest.mark.parametrize("lengths", [[2, 5, 3], [4, 4, 4], [3]], ids=str)
@lows
@cells
def test_packed(cell, low, lengths, any_backend):
    """Rows of one length are a padded batch to torch's LSTM, which oneDNN takes then."""
    device, lengths = device_of(any_backend), torch.tensor(lengths)
    ours, theirs, truth = twins(cell, False, device)
    x = inputs(cell, False, torch.float32, None, device)[0][: lengths.max(), : len(lengths)]
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    mine, torchs = (under_autocast(module, low, packed) for module in (ours, theirs))
    check_each(mine, torchs, tensors(truth(pack_padded_sequence(x.double(), lengths, enforce_sorted=False))))


@lows
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, "low"], ids=str)
def test_projected(low, packed, state_dtype, backend):
    """torch computes a projected h in the low type on the CPU and c in that of c_0, packed or not."""
    if device_of(backend) != "cpu":
        pytest.skip("torch has other types for a projected LSTM on this device")
    x, lengths = torch.randn(5, 3, 4), torch.tensor([2, 5, 3])
    hx = None
    if state_dtype is not None:
        hx = tuple(torch.randn(2, 3, width).to(low if state_dtype == "low" else state_dtype) for width in (3, 6))

    def call(module, x, hx):
        return tensors(module(pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x, hx))

    ours, theirs, truth = module_twins(CELLS["LSTM"], 4, 6, 2, proj_size=3)
    with torch.autocast("cpu", low):
        mine, torchs = (call(module, x, hx) for module in (ours, theirs))
    assert mine[2].dtype == (low if state_dtype == "low" else torch.float32)
    check_each(mine, torchs, call(truth, like(truth, x), like(truth, hx)))


@pytest.mark.parametrize("kind", sorted({cell.layer for cell in BY_NUMBER if cell.projects}))
def test_states_of_every_step_of_a_projected_layer(kind):
    """In the types of the final ones, however many there are."""
    layer = getattr(fastrnn, kind)(4, 6, 2, proj_size=3)
    with torch.autocast("cpu", torch.bfloat16):
        output, final, every = layer(torch.randn(5, 3, 4), all_states=True)
    assert torch.equal(every[-1][0], output) and output.dtype == torch.bfloat16
    for index, states in enumerate(every):
        assert all(map(torch.equal, [h[-1].float() for h in states], [h[index].float() for h in final]))
        assert [h.dtype for h in states] == [h.dtype for h in final]


@cells
def test_disabled_inside(cell, any_backend):
    device = device_of(any_backend)
    module = build(fastrnn, cell, 4, 6, device=device)
    x = torch.randn(5, 3, 4, device=device)
    with torch.autocast(device, torch.bfloat16), torch.autocast(device, enabled=False):
        inside = module(x)[0]
    assert inside.dtype == torch.float32 and torch.equal(inside, module(x)[0])


@cells
def test_backend_sees_the_low_type(cell):
    with torch.autocast("cpu", torch.bfloat16):
        call = fastrnn.explain(build(fastrnn, cell, 4, 6), torch.randn(5, 3, 4)).call
    assert call.dtype == under_autocast(build(nn, cell, 4, 6), torch.bfloat16, torch.randn(5, 3, 4))[0].dtype


@cells
@one_step
@pytest.mark.parametrize("recording", [True, False], ids=["grad", "no_grad"])
def test_weights_are_cast_once(cell, step, recording):
    """A decoder's loop under autocast: one copy of each weight for all its steps, forgotten after the block.

    torch's operators keep their own: those of its cells, and of a GRU's single step, where they mix types.
    """
    module, x = build(fastrnn, cell, 64, 64, step=step), torch.randn(*((4, 64) if step else (1, 4, 64)))
    casts = []

    def cast(function, *args):
        copies = function(*args)
        casts.append([t.data_ptr() for t in copies])
        return copies

    original = ops.autocast
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "autocast", lambda *args: cast(original, *args))
        for _ in range(2):
            with torch.set_grad_enabled(recording), torch.autocast("cpu", torch.bfloat16):
                state = None
                for _ in range(5):
                    state = module(x.bfloat16() if step else x, state)
                    state = state if step else state[1]
    if not ops.has_extension() and not step and cell.mode == "LSTM" and not is_bfloat16_in_onednn():
        assert len(casts) == 10  # a copy for each call: torch, which would keep it, cannot run this
        return
    if not ops.has_extension() or step or cell.mode == "GRU":
        assert not casts
        with torch.autocast("cpu", torch.bfloat16):
            args = (x.bfloat16() if step else x,)
            assert fastrnn.explain(module, *args).backend == "aten"
            assert torch.equal(tensors(module(*args))[0], tensors(fastrnn.revert(module)(*args))[0])
        return
    assert casts[0] == casts[4] and casts[5] == casts[9] and len(casts) == 10


@cells
@one_step
def test_a_cast_without_gradients_does_not_lose_later_ones(cell, step):
    """torch's cache keeps copies over no_grad: later gradients in the block reach the weights as torch's do."""
    grads = []
    for space in (fastrnn, nn):
        torch.manual_seed(0)
        module = build(space, cell, 4, 6, step=step)
        x = torch.randn(*((3, 4) if step else (5, 3, 4)))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                under_autocast(module, torch.bfloat16, x)
            outputs = under_autocast(module, torch.bfloat16, x)
            sum(o.float().sum() for o in outputs).backward()
        grads.append([p.grad is not None for p in module.parameters()])
    assert grads[0] == grads[1]
