"""Analytical gradients against numerical ones in float64, first and second order.

The small problems are checked entry by entry of the Jacobian, the others along random directions (``fast_mode``).
Those of torch's own layers are torch's to check; one test here has them take part.
"""

from __future__ import annotations

from itertools import chain, combinations

import torch
from support import OWN_BACKENDS, build, cells, device_of, given, pairs, random_states, tensors
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.registry import CELLS

VARIANTS = {
    "plain": {},
    "two layers, both ways": {"num_layers": 2, "bidirectional": True},
    "packed, both ways": {"bidirectional": True, "lengths": [2, 3]},
    "no bias": {"bias": False},
    "projected": {"proj_size": 1, "bidirectional": True, "lengths": [3, 1]},
}


def problem(cell, backend, *, lengths=None, step=False, **options):
    """A layer or step as a function of (input, states, weights), all in float64 and smooth around the point chosen."""
    device = device_of(backend)
    module = build(fastrnn, cell, 2, 2, step=step, **options, device=device, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    hx = random_states(cell, rows, 2, 2, options.get("proj_size", 0))
    start = [torch.randn(3, 2, 2), *tensors(hx)]
    if cell.nonlinearity == "relu":  # away from the kink: one unit only adds up, the other only takes away
        start = [t.abs() for t in start]
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(p.abs().t().mul(p.new_tensor([1.0, -1.0])).t())
    leaves = [(t[0] if step else t).to(device, torch.float64).requires_grad_() for t in start]

    def function(x, *rest):
        states, weights = rest[: cell.states], dict(zip(names, rest[cell.states :]))
        input = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
        return tuple(tensors(functional_call(module, weights, (input, given(states)))))

    return function, [*leaves, *(p.detach().requires_grad_() for p in module.parameters())]


@pairs(cell=CELLS.values(), own_kernels=OWN_BACKENDS, variant=list(VARIANTS))
def test_layer(cell, own_kernels, variant):
    options = VARIANTS[variant]
    if "proj_size" in options and cell.mode != "LSTM":
        options = {key: value for key, value in options.items() if key != "proj_size"}
    function, inputs = problem(cell, own_kernels, **options)
    assert gradcheck(function, inputs, fast_mode=len(inputs) > 12)
    assert gradcheck(function, inputs, fast_mode=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, fast_mode=bool(options))


@cells
def test_step(cell, own_kernels):
    function, inputs = problem(cell, own_kernels, step=True)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@cells
def test_forward_mode(cell):
    """Forward-mode AD is served too (by the reference), and agrees with numerical derivatives."""
    function, inputs = problem(cell, "reference", bidirectional=True)
    with fastrnn.backend("reference"):
        assert gradcheck(function, inputs, check_forward_ad=True, check_backward_ad=False)


@cells
def test_tensor_used_twice(cell, own_kernels):
    """Weights in both directions, one tensor as every state: the gradients of each use are kept apart."""
    function, inputs = problem(cell, own_kernels, num_layers=2, bidirectional=True)
    x, state, weights = inputs[0], inputs[1], inputs[1 + cell.states :]
    half = len(weights) // 4
    wide = list(weights[2 * half : 3 * half])

    def tied(x, state, *shared):
        first, second = shared[:half], shared[half:]
        return function(x, *[state] * cell.states, *first, *first, *second, *second)

    inputs = [x, state, *weights[:half], *wide]
    assert gradcheck(tied, inputs, fast_mode=True)
    assert gradgradcheck(tied, inputs, fast_mode=True)


SUBSETS = {mode: (cell, {}) for mode, cell in CELLS.items()} | {"projected": (CELLS["LSTM"], {"proj_size": 1})}


@pairs(kind=SUBSETS, T=[1, 3], own_kernels=OWN_BACKENDS)
def test_second_order_of_every_subset(kind, T, own_kernels):
    """Whatever alone wants gradients: torch's second derivatives, by its own graph in float64."""
    (cell, options), device = kind, device_of(own_kernels)
    ours = build(fastrnn, cell, 2, 2, **options, device=device, dtype=torch.float64)
    theirs = build(nn, cell, 2, 2, **options, device=device, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    hx = [h.to(device, torch.float64) for h in tensors(random_states(cell, 1, 2, 2, options.get("proj_size", 0)))]
    x = torch.randn(T, 2, 2, dtype=torch.float64, device=device)
    names = ["x", *(f"h{i}" for i in range(len(hx))), *dict(ours.named_parameters())]
    for chosen in chain.from_iterable(combinations(names, count) for count in range(1, len(names) + 1)):
        found = []
        for module in (ours, theirs):
            values = zip(names, (x, *hx, *module.parameters()))
            leaves = {name: t.detach().requires_grad_(name in chosen) for name, t in values}
            input, *states = list(leaves.values())[: 1 + len(hx)]
            weights = {name: leaves[name] for name in names[1 + len(hx) :]}
            with torch.backends.cudnn.flags(enabled=module is ours):  # whose RNNs have no second derivative
                outputs = tensors(functional_call(module, weights, (input, given(states))))
            wanted = [leaves[name] for name in chosen]
            first = torch.autograd.grad(
                sum(o.square().sum() for o in outputs), wanted, create_graph=True, allow_unused=True
            )
            loss = sum(g.square().sum() for g in first if g is not None and g.requires_grad)
            second = torch.autograd.grad(loss, wanted, allow_unused=True) if isinstance(loss, torch.Tensor) else []
            found.append([torch.zeros_like(w) if g is None else g for g, w in zip(second, wanted)])
        for mine, torchs in zip(*found, strict=True):
            torch.testing.assert_close(mine, torchs, rtol=1e-9, atol=1e-11, msg=str(chosen))
