"""The reference's float32 products, by torch and by oneDNN: which of them a machine takes must not show."""

from __future__ import annotations

import pytest
import torch
from support import cells, compare, name_of, random_states, twins

import fastrnn
from fastrnn import reference
from fastrnn.reference import products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def by_onednn(request, monkeypatch):
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: request.param)
    return request.param


def calls(function) -> int:
    """How many products of oneDNN a call makes."""
    with torch.profiler.profile() as profile:
        function()
    return sum(event.name == "mkldnn::_linear_pointwise" for event in profile.events())


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # said by flags(), of GPUs
def test_what_stays_with_torch(monkeypatch):
    """Few rows, little work, other types; and everything where the user turned oneDNN off."""
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    a, b = torch.randn(64, 256), torch.randn(256, 256)
    assert calls(lambda: products.product(a, b)) == 1
    assert calls(lambda: products.product(a[:7], torch.randn(256, 1024))) == 0
    assert calls(lambda: products.product(a[:8], b[:, :8])) == 0
    assert calls(lambda: products.product(a.double(), b.double())) == 0
    assert calls(lambda: products.factor(b, [64]).times(a, None)) == 0  # one call does not repay the layout
    assert not reference.outruns_torch("cuda", torch.float32, 64)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not reference.outruns_torch("cpu", torch.float32, 64)
        assert calls(lambda: products.product(a, b)) == 0


@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False, "num_layers": 2}, {"bidirectional": True, "packed": True}, {"proj_size": 24}],
    ids=["plain", "stacked", "packed", "projected"],
)
def test_layers(by_onednn, cell, dtype, options):
    options = dict(options)
    packed = options.pop("packed", False)
    if cell.mode != "LSTM":
        options.pop("proj_size", None)
    T, B, I, H = 16, 20, 33, 96
    modules = twins(cell, I, H, **options, dtype=dtype)
    x = torch.randn(T, B, I)
    hx = random_states(cell, modules[0].num_layers * (2 if modules[0].bidirectional else 1), B, H, modules[0].proj_size)
    lengths = torch.randint(1, T + 1, (B,)) if packed else None
    with fastrnn.backend("reference"):
        compare(modules, x, hx, lengths)
        assert (calls(lambda: modules[0](x.to(dtype))) > 0) is by_onednn
