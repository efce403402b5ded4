"""The layer operations underneath the modules: the reference's, and by the same contract every compiled backend's.

Truth is torch.nn's layer in float64.
"""

from __future__ import annotations

import pytest
import torch
from support import (
    available,
    backward_arguments,
    cells,
    device_of,
    dtypes,
    flat,
    forward_arguments,
    given,
)

from fastrnn._kernels import ops

each_backend = pytest.mark.parametrize("name", [name for name in available() if name != "aten"])
T, B, I, H = 5, 4, 3, 6
SIZES = torch.tensor([4, 3, 3, 1, 1])


def problem(cell, name, dtype, directions, packed, proj=0):
    """Arguments of a layer call, and the gradients that come back into it."""
    device, rows = device_of(name), int(SIZES.sum()) if packed else T * B
    R, count = proj or H, 5 if proj else 4
    shapes = [(cell.gates * H, I), (cell.gates * H, R), (cell.gates * H,), (cell.gates * H,), (proj, H)][:count]
    weights = [0.4 * torch.randn(shape) for shape in shapes * directions]
    hx = [torch.randn(directions, B, width) for width in (R, H)[: cell.states]]
    lead = (rows,) if packed else (T, B)
    x, grad_output = torch.randn(*lead, I), torch.randn(*lead, directions * R)
    grad_hn = [torch.randn_like(h) for h in hx]
    move = lambda t: t.to(device, dtype)  # noqa: E731
    lists = [[move(t) for t in group] for group in (hx, weights, grad_hn)]
    return move(x), move(grad_output), *lists, SIZES if packed else None


def truth(cell, x, hx, weights, batch_sizes, directions):
    """torch.nn's layer as a function, in float64."""
    layer = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[cell.mode]
    rows = (x,) if batch_sizes is None else (x, batch_sizes)
    last = (False,) * (batch_sizes is None)  # batch_first
    output, *final = layer(*rows, given(hx), weights, True, 1, 0.0, False, directions == 2, *last)
    return output, final


def close(mine, exact, dtype, what):
    """Each result is rounded to `dtype` once; float32 and float64 results carry the errors of their sums."""
    assert mine.dtype == dtype and mine.shape == exact.shape, what
    units = {torch.bfloat16: 2, torch.float16: 2, torch.float32: 16}.get(dtype, 128)
    tolerance = units * torch.finfo(dtype).eps * exact.abs().max().item()
    assert (mine.cpu().double() - exact).abs().max().item() <= tolerance, what


@each_backend
@cells
@dtypes
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("proj", [0, 2])
def test_forward_and_backward(name, cell, dtype, directions, packed, proj):
    proj = proj if cell.mode == "LSTM" else 0
    x, grad_output, hx, weights, grad_hn, sizes = problem(cell, name, dtype, directions, packed, proj)
    forward, backward = ops.layer_ops(name).layer_forward, ops.layer_ops(name).layer_backward
    arguments = forward_arguments(cell.index, x, sizes, hx, weights)
    output, hn, saved = forward(*arguments)
    grads = backward(*backward_arguments(arguments, [grad_output, *grad_hn], output, saved))
    assert output.is_contiguous()

    leaves = [t.detach().cpu().double().requires_grad_() for t in (x, *hx, *weights)]
    exact, final = truth(cell, leaves[0], leaves[1 : 1 + cell.states], leaves[1 + cell.states :], sizes, directions)
    incoming = [t.cpu().double() for t in (grad_output, *grad_hn)]
    expected = torch.autograd.grad([exact, *final], leaves, incoming)
    close(output, exact, dtype, "output")
    for i, (mine, end) in enumerate(zip(hn, final, strict=True)):
        close(mine, end, dtype, f"final state {i}")
    for i, (mine, gradient) in enumerate(zip(flat(grads), expected, strict=True)):
        close(mine, gradient, dtype, f"gradient {i}")


@each_backend
@cells
def test_only_what_is_needed(name, cell):
    """`save` False keeps nothing, and a gradient that is not asked for is None and changes no other."""
    x, grad_output, hx, weights, grad_hn, sizes = problem(cell, name, torch.float32, 2, True)
    forward, backward = ops.layer_ops(name).layer_forward, ops.layer_ops(name).layer_backward
    arguments = forward_arguments(cell.index, x, sizes, hx, weights)
    output, hn, saved = forward(*arguments)
    light, light_hn, nothing = forward(*forward_arguments(cell.index, x, sizes, hx, weights, 0))
    assert list(nothing) == [] and torch.equal(light, output) and all(map(torch.equal, light_hn, hn))
    common = arguments, [grad_output, *grad_hn], output, saved
    full = backward(*backward_arguments(*common))
    for which in range(3):
        needs = [i == which for i in range(3)]
        part = backward(*backward_arguments(*common, needs))
        assert [p is not None for p in part] == needs
        pairs = [(part[0], full[0])] if which == 0 else zip(part[which], full[which], strict=True)
        for mine, whole in pairs:
            if whole is None:
                assert mine is None
                continue
            torch.testing.assert_close(mine, whole, rtol=1e-6, atol=1e-6)


@each_backend
@cells
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_nothing_is_written_and_strides_are_free(name, cell, packed):
    x, grad_output, hx, weights, grad_hn, sizes = problem(cell, name, torch.float32, 2, packed)
    forward, backward = ops.layer_ops(name).layer_forward, ops.layer_ops(name).layer_backward
    expected = forward(*forward_arguments(cell.index, x, sizes, hx, weights, 0))[:2]
    wide = torch.stack([x, x], -1)[..., 0]
    hx = [h.transpose(0, 2).contiguous().transpose(0, 2) for h in hx]
    weights = [w.t().contiguous().t() if w.dim() == 2 else w for w in weights]
    passed = [wide, grad_output, *hx, *weights, *grad_hn]
    before = [t.clone() for t in passed]
    arguments = forward_arguments(cell.index, wide, sizes, hx, weights)
    output, hn, saved = forward(*arguments)
    for mine, plain in zip([output, *hn], [expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-6)
    kept = [t.clone() for t in (output, *saved)]
    incoming = grad_output.transpose(0, 1).contiguous().transpose(0, 1)
    results = [backward(*backward_arguments(arguments, [g, *grad_hn], output, saved)) for g in (grad_output, incoming)]
    assert all(map(torch.equal, passed, before)) and all(map(torch.equal, (output, *saved), kept))
    for first, second in zip(*map(flat, results), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
