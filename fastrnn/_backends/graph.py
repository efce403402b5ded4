"""What ``torch.ops.fastrnn.*`` are: kernels, shapes and costs, for everything that follows a call operator by operator.

The operators run the kernels of the tensors' device. Where there are none (no extension, another device,
``FASTRNN_BACKEND=reference``) they run the reference, which then saves nothing and computes forward again in backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import reference
from .._kernels import ext
from .._kernels.ops import LIBRARY, layer_ops, missing
from .._spec import CELL, EVERYTHING, STATES, W_HH, W_HR, W_IH, unpack
from ..registry import cell_of
from . import dispatch

KERNELS = frozenset(name for name in ("cpu", "cuda") if hasattr(ext.load(), name) and not dispatch.is_reference())
"""The types of device whose tensors the operators compute by the extension, unless a GPU is another than it was built
for: nothing here asks that at import, for processes forked from one that has asked cannot use CUDA."""


def _has_kernels(x: Tensor) -> bool:
    return x.device.type in KERNELS and (x.device.type == "cpu" or missing("cuda", x.device.index) is None)


def _is_empty(x: Tensor, hx: Sequence[Tensor]) -> bool:
    """Whether there is no row. Where input and states differ in that, the kernels refuse them."""
    return x.dim() > 1 and x.size(-2) == 0 and hx[0].size(1) == 0


def _forward(backend: str) -> Callable:
    def forward(x, given, hx, weights, spec, scalars):
        if not _has_kernels(x):
            return _reference_forward(x, given, hx, weights, spec, scalars)
        dispatch.check_graph(backend)
        if _is_empty(x, hx):  # launches nothing
            return _fake_forward(x, given, hx, weights, spec, scalars)
        if backend == "cuda":
            dispatch.check_kernels(cell_of(spec[CELL]).mode)
        return layer_ops(backend).layer_forward(x, given, hx, weights, spec, scalars)

    return forward


def _backward(backend: str) -> Callable:
    def backward(grads, x, given, hx, weights, results, spec, scalars, needs):
        arguments = grads, x, given, hx, weights, results, spec, scalars, needs
        if backend != "reference" and not _has_kernels(x):
            return _reference_backward(*arguments)
        if _is_empty(x, hx):
            grad_x, grad_hx, grad_weights = _fake_backward(*arguments)
            return grad_x, grad_hx, [grad.zero_() for grad in grad_weights]
        grad_x, grad_hx, grad_weights = layer_ops(backend).layer_backward(*arguments)
        return (
            grad_x if needs[0] else x.new_empty(0),
            grad_hx if needs[1] else [x.new_empty(0) for _ in hx],
            [x.new_empty(0) if grad is None else grad for grad in grad_weights or [None] * len(weights)],
        )

    return backward


def _reference_forward(x, given, hx, weights, spec, scalars):
    dispatch.check_graph("reference")
    # What the reference saves depends on T in number, and a graph's T may be any.
    output, states, _ = reference.layer_forward(x, given, hx, weights, _saving(spec, 0), scalars)
    return output, states, []


def _reference_backward(grads, x, given, hx, weights, results, spec, scalars, needs):
    spec = unpack(spec)
    if not reference.needs_scan(x, reference.Schedule.of_call(given, spec, scalars), spec):
        _, _, saved = reference.layer_forward(x, given, hx, weights, _saving(spec, EVERYTHING), scalars)
        return _backward("reference")(grads, x, given, hx, weights, [results[0], *saved], spec, scalars, needs)
    # There the reference differentiates its own operations, and an operator runs below what records them.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        return _backward("reference")(grads, x, given, hx, weights, results, spec, scalars, needs)


def _saving(spec: Sequence[int], save: int) -> list[int]:
    return list(unpack(spec)._replace(save=save))


def _saved_shapes(
    cell: int, x: Tensor, hx: Sequence[Tensor], projected: bool, gates: bool, zoned: bool = False
) -> list[tuple[tuple, torch.dtype]]:
    """Shapes and types of what a compiled forward saves: gates unless they are rebuilt, then the states but h, with
    zoneout those that backward reads after a step as the cell gave them, then statistics of rows that are normalised,
    then h before the projection."""
    H, own = hx[-1].size(2), cell_of(cell)
    rows = hx[0].size(0), (x.size(0) if x.dim() == 2 else x.size(0) * x.size(1))
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    saved = [((*rows, own.saved, H), x.dtype)] if own.saved and gates else []
    if own.states > 1:
        saved.append(((*rows, own.states - 1, H), accumulate))
    if zoned and own.read_next:
        saved.append(((*rows, own.read_next, H), accumulate))
    if own.statistics:
        saved.append(((*rows, own.statistics), accumulate))
    if projected:
        saved.append(((*rows, H), x.dtype))
    return saved


def _fake_forward(x, given, hx, weights, spec, scalars):
    _, cell, save, _, all_states, _ = unpack(spec)
    output = x.new_empty(*x.shape[:-1], hx[0].size(0) * hx[0].size(2))
    gates = save != STATES or x.device.type != "cuda"
    projected = weights[W_HR] is not None
    shapes = _saved_shapes(cell, x, hx, projected, gates, len(scalars) > 0) if save and _has_kernels(x) else []
    saved = [x.new_empty(shape, dtype=dtype) for shape, dtype in shapes]
    states = [h.new_empty(h.shape) for h in hx]
    if all_states:
        states += [x.new_empty(*x.shape[:-1], h.size(0) * h.size(2)) for h in hx[1:]]
    return output, states, saved


def _fake_backward(grads, x, given, hx, weights, results, spec, scalars, needs):
    return (
        x.new_empty(x.shape if needs[0] else 0),
        [h.new_empty(h.shape if needs[1] else 0) for h in hx],
        [x.new_empty(w.shape if needs[2] and w is not None else 0) for w in weights],
    )


def _products(x: Sequence[int], hx: Sequence[Sequence[int]], weights: Sequence) -> tuple[int, int]:
    """FLOPs of a layer's products with its input and with its states: two for each row of x and element of a weight.

    What is done element by element is not counted, as in torch's own formulas.
    """
    rows, directions = math.prod(x[:-1]), hx[0][0]
    count = len(weights) // directions
    groups = [weights[d * count : (d + 1) * count] for d in range(directions)]
    states = [group[slot] for group in groups for slot in (W_HH, W_HR) if group[slot] is not None]
    return 2 * rows * sum(math.prod(group[W_IH]) for group in groups), 2 * rows * sum(map(math.prod, states))


def _forward_flops(x, given, hx, weights, spec, scalars, out_shape=None) -> int:
    return sum(_products(x, hx, weights))


def _backward_flops(grads, x, given, hx, weights, results, spec, scalars, needs, out_shape=None) -> int:
    inputs, states = _products(x, hx, weights)
    return states + needs[0] * inputs + needs[2] * (inputs + states)


for _backend in KERNELS:
    LIBRARY.impl("layer_forward", _forward(_backend), _backend.upper())
    LIBRARY.impl("layer_backward", _backward(_backend), _backend.upper())
LIBRARY.impl("layer_forward", _reference_forward, "CompositeExplicitAutograd")
LIBRARY.impl("layer_backward", _reference_backward, "CompositeExplicitAutograd")
torch.library.register_fake("fastrnn::layer_forward", _fake_forward, lib=LIBRARY)
torch.library.register_fake("fastrnn::layer_backward", _fake_backward, lib=LIBRARY)
register_flop_formula(torch.ops.fastrnn.layer_forward)(_forward_flops)
register_flop_formula(torch.ops.fastrnn.layer_backward)(_backward_flops)
