"""Layers with layer normalisation against a loop with torch's ``layer_norm``; their parameters, and where they run.

The rest of their tests are those of all cells: test_own_cells, test_own_steps, test_dropping, test_zoneout.
"""

from __future__ import annotations

import pytest
import torch
from emulator.cases import check_special_values
from support import check_all, compiled
from torch import nn
from torch.nn import functional as F

import fastrnn
from fastrnn._backends import dispatch
from fastrnn._kernels import ext, ops
from fastrnn._spec import Call
from fastrnn.registry import OWN_CELLS
from fastrnn.verdict import proof

layers = pytest.mark.parametrize("kind", [fastrnn.LayerNormLSTM, fastrnn.LayerNormGRU], ids=lambda kind: kind.__name__)
steps = {fastrnn.LayerNormLSTM: fastrnn.LayerNormLSTMCell, fastrnn.LayerNormGRU: fastrnn.LayerNormGRUCell}
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=compiled)])


def randomised(module):
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) / 4)
    return module


def loop(module, x, hx, layer=0):
    """One direction of a layer, in operations of torch."""
    named = {name: getattr(module, f"{name}_l{layer}", None) for name in ("bias_ih", "bias_hh", "weight_hr")}
    w_ih, w_hh, gain_x, gain_h = (
        getattr(module, f"weight_{name}_l{layer}") for name in ("ih", "hh", "norm_ih", "norm_hh")
    )
    G, h, outputs = len(w_ih), hx[0], []
    for x_t in x:
        x_gates = F.layer_norm(x_t @ w_ih.t(), (G,), gain_x, named["bias_ih"])
        h_gates = F.layer_norm(h @ w_hh.t(), (G,), gain_h, named["bias_hh"])
        if len(hx) == 1:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = x_gates.chunk(3, 1), h_gates.chunk(3, 1)
            z, n = torch.sigmoid(x_z + h_z), torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            h = (1 - z) * n + z * h
        else:
            i, f, g, o = (x_gates + h_gates).chunk(4, 1)
            c = f.sigmoid() * hx[1] + i.sigmoid() * g.tanh()
            hx = (h, c)
            gain_c, bias_c = (getattr(module, f"{name}_norm_c_l{layer}") for name in ("weight", "bias"))
            h = o.sigmoid() * F.layer_norm(c, c.shape[1:], gain_c, bias_c).tanh()
            h = h if named["weight_hr"] is None else h @ named["weight_hr"].t()
        outputs.append(h)
    return torch.stack(outputs), (h, *hx[1:])


@layers
@backends
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"proj_size": 5}], ids=["plain", "no-bias", "projected"])
@pytest.mark.parametrize("H", [7, 16, 33])
def test_a_layer_is_the_loop(kind, backend, options, H):
    if "proj_size" in options and kind is fastrnn.LayerNormGRU:
        pytest.skip("a GRU has no projection")
    torch.manual_seed(H)
    module = randomised(kind(4, H, **options).double())
    x = torch.randn(6, 3, 4, dtype=torch.float64).requires_grad_()
    widths = [options.get("proj_size", H), H][: 1 + (kind is fastrnn.LayerNormLSTM)]
    hx = [torch.randn(1, 3, width, dtype=torch.float64).requires_grad_() for width in widths]
    with fastrnn.backend(backend):
        output, final = module(x, tuple(hx) if len(hx) > 1 else hx[0])
        found = [output, *(final if len(hx) > 1 else [final])]
        inputs = [x, *hx, *module.parameters()]
        grads = torch.autograd.grad(sum((t * k).sin().sum() for k, t in enumerate(found, 1)), inputs)
    output, final = loop(module, x, [h[0] for h in hx])
    expected = [output, *(h.unsqueeze(0) for h in final)]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    expected = torch.autograd.grad(sum((t * k).sin().sum() for k, t in enumerate(expected, 1)), inputs)
    torch.testing.assert_close(grads, expected, rtol=1e-8, atol=1e-8)


@compiled
@layers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(30, 1, 24, 64), (12, 9, 40, 100), (5, 33, 8, 48)], ids=str)
def test_errors_are_those_of_the_loop(kind, dtype, shape):
    T, B, I, H = shape
    torch.manual_seed(1)
    module, x = randomised(kind(I, H)).to(dtype), torch.randn(T, B, I).to(dtype).requires_grad_()
    exact = kind(I, H).double()
    exact.load_state_dict(module.state_dict())
    count = 1 + (kind is fastrnn.LayerNormLSTM)

    def results(layer, x, run):
        output, _ = run(layer, x, [x.new_zeros(B, H)] * count)
        sources = {"input": x, **dict(layer.named_parameters())}
        grads = torch.autograd.grad(output.square().sum(), list(sources.values()))
        return {"output": output, **{f"gradient of {name}": grad for name, grad in zip(sources, grads)}}

    with fastrnn.backend("cpu"):
        ours = results(module, x, lambda layer, x, _: layer(x))
    theirs, truth = results(module, x, loop), results(exact, x.detach().double().requires_grad_(), loop)
    check_all(ours, theirs, truth)


@compiled
@layers
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_nan_and_infinities(kind, precision):
    kernels = ext.load().cpu
    before = kernels.isa()
    try:
        for isa in kernels.supported_isas():
            kernels.set_isa(isa)
            check_special_values(kernels, OWN_CELLS[kind._mode].index, precision)
    finally:
        kernels.set_isa(before)


@compiled
@layers
def test_any_number_of_threads(kind):
    """They share rows and directions, never the units of a row; the same number gives the same bits."""
    torch.manual_seed(1)
    before = torch.get_num_threads()
    for B, D in ((1, 1), (1, 2), (16, 1), (9, 2)):
        module = kind(96, 128, bidirectional=D == 2).double()
        x = torch.randn(12, B, 96, dtype=torch.float64).requires_grad_()
        results = {}
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            with fastrnn.backend("cpu"):
                output, _ = module(x)
                found = [output, *torch.autograd.grad(output.square().sum(), [x, *module.parameters()])]
            torch.set_num_threads(before)
            assert all(map(torch.equal, found, results.setdefault(count, found)))
            torch.testing.assert_close(found, results[1], rtol=1e-9, atol=1e-9)


@layers
def test_initial_values(kind):
    module, step, H = kind(3, 8, 2, bidirectional=True), steps[kind](3, 8), 8
    for name, weight in [*module.named_parameters(), *step.named_parameters()]:
        if "norm" in name:
            assert torch.equal(weight, torch.full_like(weight, float(name.startswith("weight")))), name
            assert weight.shape == (H if "norm_c" in name else H * (4 if kind is fastrnn.LayerNormLSTM else 3),)
        else:
            assert 0 < weight.abs().max() <= H**-0.5, name


@layers
def test_rescaled_weights_are_the_same_layer(kind):
    """A row of products and its multiple are normalised to the same, but for epsilon."""
    module, x = kind(6, 32).double(), torch.randn(7, 3, 6, dtype=torch.float64)
    expected = module(x)[0]
    with torch.no_grad():
        module.weight_ih_l0.mul_(100)
        module.weight_hh_l0.mul_(100)
    torch.testing.assert_close(module(x)[0], expected, rtol=0, atol=1e-2)


@layers
def test_gains_that_do_not_fit_are_refused(kind):
    module, x = kind(3, 8), torch.randn(4, 2, 3)
    module.weight_norm_hh_l0 = nn.Parameter(torch.ones(8))
    with pytest.raises(RuntimeError, match=r"weight_norm_hh_l0 must have shape \(\d+,\), got \(8,\)"):
        module(x)


@layers
def test_on_a_gpu_the_kernels_serve_where_they_are_asked_for(kind, monkeypatch):
    module = kind(3, 8)
    call = Call(module.mode, "cuda", torch.float32, 5, 4, 3, 8, extended=True)
    monkeypatch.setattr(ops, "missing", lambda backend: None)
    assert dispatch.why_not("cuda", call) == []
    monkeypatch.setattr(proof, "why_not", lambda call: "no GPU to prove them on")
    assert dispatch.ranking(call)[0] == "aten" and dispatch._why_not_proven(call) == "no GPU to prove them on"
    monkeypatch.setattr(proof, "why_not", lambda call: None)
    assert dispatch.ranking(call)[0] == "cuda"
    assert dispatch.choose(call._replace(device="meta")) == "reference"
    assert fastrnn.explain(module, torch.randn(5, 4, 3)).backend in ("cpu", "reference")
