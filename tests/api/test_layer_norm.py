"""Layers with layer normalisation against a loop with torch's ``layer_norm``; their parameters, and where they run.

The rest of their tests are those of all cells: test_own_cells, test_own_steps, test_dropping, test_zoneout.
"""

from __future__ import annotations

import pytest
import torch
from emulator.special_values import check_special_values
from support import ISAS, KERNELS, check_all, compiled, using
from torch.nn import functional as F

import fastrnn
from fastrnn._backends import dispatch
from fastrnn._kernels import ops
from fastrnn._spec import Call
from fastrnn.registry import OWN_CELLS
from fastrnn.verdict import proof

layers = pytest.mark.parametrize("kind", [fastrnn.LayerNormLSTM, fastrnn.LayerNormGRU], ids=lambda kind: kind.__name__)
steps = {fastrnn.LayerNormLSTM: fastrnn.LayerNormLSTMCell, fastrnn.LayerNormGRU: fastrnn.LayerNormGRUCell}


def randomised(module):
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) / 4)
    return module


def loop(module, x):
    """The output of a layer, in operations of torch."""
    kinds = "weight_ih", "weight_hh", "weight_norm_ih", "weight_norm_hh", "bias_ih", "bias_hh"
    w_ih, w_hh, gain_x, gain_h, b_ih, b_hh = (getattr(module, f"{name}_l0") for name in kinds)
    h, outputs = x.new_zeros(x.size(1), module.hidden_size), []
    c = h
    for x_t in x:
        x_gates = F.layer_norm(x_t @ w_ih.t(), b_ih.shape, gain_x, b_ih)
        h_gates = F.layer_norm(h @ w_hh.t(), b_hh.shape, gain_h, b_hh)
        if isinstance(module, fastrnn.LayerNormGRU):
            (x_r, x_z, x_n), (h_r, h_z, h_n) = x_gates.chunk(3, 1), h_gates.chunk(3, 1)
            z, n = torch.sigmoid(x_z + h_z), torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            h = (1 - z) * n + z * h
        else:
            i, f, g, o = (x_gates + h_gates).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * F.layer_norm(c, c.shape[1:], module.weight_norm_c_l0, module.bias_norm_c_l0).tanh()
        outputs.append(h)
    return torch.stack(outputs)


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

    def results(layer, x, run):
        output = run(layer, x)
        sources = {"input": x, **dict(layer.named_parameters())}
        grads = torch.autograd.grad(output.square().sum(), list(sources.values()))
        return {"output": output, **{f"gradient of {name}": grad for name, grad in zip(sources, grads)}}

    with fastrnn.backend("cpu"):
        ours = results(module, x, lambda layer, x: layer(x)[0])
    theirs, truth = results(module, x, loop), results(exact, x.detach().double().requires_grad_(), loop)
    check_all(ours, theirs, truth)


@compiled
@layers
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
def test_nan_and_infinities(kind, precision):
    for isa in ISAS:
        with using(isa):
            check_special_values(KERNELS, OWN_CELLS[kind._mode].index, precision)


@compiled
@layers
def test_any_number_of_threads(kind):
    """They share rows and directions, never the units of a row; the same number gives the same bits."""
    torch.manual_seed(1)
    for B, D in ((1, 1), (1, 2), (16, 1), (9, 2)):
        module = kind(96, 128, bidirectional=D == 2).double()
        x = torch.randn(12, B, 96, dtype=torch.float64).requires_grad_()
        results = {}
        for count in (1, 2, 3, 2):
            with using(threads=count), fastrnn.backend("cpu"):
                output, _ = module(x)
                found = [output, *torch.autograd.grad(output.square().sum(), [x, *module.parameters()])]
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
def test_on_a_gpu_the_kernels_serve_where_they_are_asked_for(kind, monkeypatch):
    module = kind(3, 8)
    call = Call(module.mode, "cuda", torch.float32, 5, 4, 3, 8, extended=True)
    monkeypatch.setattr(ops, "missing", lambda *_: None)
    assert dispatch.why_not("cuda", call) == []
    monkeypatch.setattr(proof, "why_not", lambda call: "no GPU to prove them on")
    assert dispatch.ranking(call)[0] == "aten" and dispatch._why_not_proven(call) == "no GPU to prove them on"
    monkeypatch.setattr(proof, "why_not", lambda call: None)
    assert dispatch.ranking(call)[0] == "cuda"
    assert dispatch.choose(call._replace(device="meta")) == "reference"
    assert fastrnn.explain(module, torch.randn(5, 4, 3)).backend in ("cpu", "reference")
