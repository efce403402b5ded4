"""Dropout between layers: torch's masks on the CPU, a new one for every call, repeatable from the generator's state."""

from __future__ import annotations

import pytest
import torch
from support import build, cells, check, cotangents, device_of, tensors, twins
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn


@cells
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_dropout_between_layers(cell, backend, p, packed):
    """On the CPU the masks are torch's: the same generator state drops the same elements, and is left the same."""
    if backend == "cuda":
        pytest.skip("the masks of the CPU generator belong to the CPU backends")
    ours, theirs, truth = twins(cell, 4, 17, 3, dropout=p, bidirectional=True)
    x, results, after = torch.randn(5, 3, 4), [], []
    for module in (ours, theirs):
        torch.manual_seed(21)
        x_ = x.clone().requires_grad_()
        outputs = tensors(module(pack_padded_sequence(x_, [5, 4, 2]) if packed else x_))
        after.append(torch.get_rng_state())
        grads = torch.autograd.grad(outputs, [x_, *module.parameters()], cotangents(outputs, x.dtype))
        results.append([*outputs, *grads])
    assert torch.equal(*after)
    # float64 draws other masks, so torch's float32 is all there is to hold against: 50 units of the largest element.
    for mine, torchs in zip(*results, strict=True):
        atol = 50 * torch.finfo(torch.float32).eps * max(torchs.abs().max().item(), 1e-30)
        torch.testing.assert_close(mine, torchs, rtol=0, atol=atol)
    for module in (ours, truth):
        module.eval()
    with torch.no_grad():
        mine, exact = ours(x)[0], truth(x.double())[0]
        check(mine, theirs.eval()(x)[0], exact)


@cells
def test_dropout_draws_anew_and_repeats(cell, backend):
    module = build(fastrnn, cell, 4, 17, 2, dropout=0.5, device=device_of(backend))
    x = torch.randn(5, 3, 4, device=device_of(backend))
    first, second = module(x)[0], module(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    third = module(x)[0]
    torch.manual_seed(4)
    assert torch.equal(third, module(x)[0])
