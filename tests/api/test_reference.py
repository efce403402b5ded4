"""The layer operations underneath the modules: what the reference's and every compiled backend's have to keep to.

What they compute is compared with torch through the modules (test_parity).
"""

from __future__ import annotations

import pytest
import torch
from support import available, backward_arguments, cells, device_of, flat, forward_arguments

from fastrnn._kernels import ops

each_backend = pytest.mark.parametrize("name", [name for name in available() if name != "aten"])
T, B, I, H = 5, 4, 3, 6
SIZES = torch.tensor([4, 3, 3, 1, 1])


def problem(cell, name, packed):
    """Arguments of a call in both directions, and the gradients that come back into it."""
    device, lead = device_of(name), (int(SIZES.sum()),) if packed else (T, B)
    shapes = [(cell.gates * H, I), (cell.gates * H, H), (cell.gates * H,), (cell.gates * H,)]
    weights = [0.4 * torch.randn(shape, device=device) for shape in shapes * 2]
    hx, grad_hn = ([torch.randn(2, B, H, device=device) for _ in range(cell.states)] for _ in range(2))
    x, grad_output = torch.randn(*lead, I, device=device), torch.randn(*lead, 2 * H, device=device)
    return x, grad_output, hx, weights, grad_hn, SIZES if packed else None


@each_backend
@cells
def test_only_what_is_needed(name, cell):
    """`save` False keeps nothing, and a gradient that is not asked for is None and changes no other."""
    x, grad_output, hx, weights, grad_hn, sizes = problem(cell, name, True)
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
    x, grad_output, hx, weights, grad_hn, sizes = problem(cell, name, packed)
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
