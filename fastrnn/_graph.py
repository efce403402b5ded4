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

from . import _dispatch, _ext, reference
from ._ops import LIBRARY, STATES, layer_ops, missing
from .registry import CELLS

_CELLS = tuple(CELLS.values())
KERNELS = frozenset(
    name for name in ("cpu", "cuda") if _ext.reason is None and missing(name) is None and not _dispatch.is_reference()
)
"""The types of device whose tensors the operators compute by the extension."""


def _forward(backend: str) -> Callable:
    def forward(cell, x, batch_sizes, hx, weights, save, *extra, **named):
        _dispatch.check_graph(backend)
        if hx[0].size(1) == 0:  # an empty batch launches nothing
            return _fake_forward(cell, x, batch_sizes, hx, weights, save, *extra, **named)
        return layer_ops(backend).forward(cell, x, batch_sizes, hx, weights, save, *extra, **named)

    return forward


def _backward(backend: str) -> Callable:
    def backward(cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs, *extra, **named):
        if hx[0].size(1) == 0:
            grads = _fake_backward(cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs)
            return *grads[:2], [grad.zero_() for grad in grads[2]]
        grad_x, grad_hx, grad_weights = layer_ops(backend).backward(
            cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs, *extra, **named
        )
        return (
            grad_x if needs[0] else x.new_empty(0),
            grad_hx if needs[1] else [x.new_empty(0) for _ in hx],
            grad_weights if needs[2] else [x.new_empty(0) for _ in weights],
        )

    return backward


def _reference_forward(cell, x, batch_sizes, hx, weights, save, *extra, **named):
    _dispatch.check_graph("reference")
    output, hn, _ = reference.layer_forward(cell, x, batch_sizes, hx, weights, False, *extra, **named)
    return output, hn, []  # what the reference saves depends on T in number, and a graph's T may be any


def _reference_backward(cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs, *extra, **named):
    args = grad_output, grad_hn, x, batch_sizes, hx, weights, output
    if not reference.needs_scan(reference.Timing(batch_sizes, *extra, **named), hx, grad_hn):
        _, _, saved = reference.layer_forward(cell, x, batch_sizes, hx, weights, True, *extra, **named)
        return _backward("reference")(cell, *args, saved, needs, *extra, **named)
    # There the reference differentiates its own operations, and an operator runs below what records them.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        return _backward("reference")(cell, *args, [], needs, *extra, **named)


def _rows(x: Tensor):
    return x.size(0) if x.dim() == 2 else x.size(0) * x.size(1)


def _saved_shapes(cell: int, x: Tensor, hx: Sequence[Tensor], gates: bool) -> list[tuple[tuple, torch.dtype]]:
    """Shapes and types of what a compiled forward saves: gates unless they are rebuilt, then c, then h before the
    projection."""
    D, R, H = hx[0].size(0), hx[0].size(2), hx[-1].size(2)
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = _CELLS[cell].saved
    saved = [((D, _rows(x), values, H), x.dtype)] if values and gates else []
    if _CELLS[cell].states > 1:
        saved.append(((D, _rows(x), H), accumulate))
    if R != H:
        saved.append(((D, _rows(x), H), x.dtype))
    return saved


def _fake_forward(cell, x, batch_sizes, hx, weights, save, lengths=None, resets=None, reverse=False, cells=False):
    output = x.new_empty(*x.shape[:-1], hx[0].size(0) * hx[0].size(2))
    gates = save != STATES or x.device.type != "cuda"
    shapes = _saved_shapes(cell, x, hx, gates) if save and x.device.type in KERNELS else []
    saved = [x.new_empty(shape, dtype=dtype) for shape, dtype in shapes]
    hn = [h.new_empty(h.shape) for h in hx]
    if cells:
        hn.append(x.new_empty(*x.shape[:-1], hx[1].size(0) * hx[1].size(2)))
    return output, hn, saved


def _fake_backward(cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs, *extra, **named):
    return (
        x.new_empty(x.shape if needs[0] else 0),
        [h.new_empty(h.shape if needs[1] else 0) for h in hx],
        [w.new_empty(w.shape if needs[2] else 0) for w in weights],
    )


def _products(x: Sequence[int], hx: Sequence[Sequence[int]], weights: Sequence[Sequence[int]]) -> tuple[int, int]:
    """FLOPs of a layer's products with its input and with its states: two for each row of x and element of a weight.

    What is done element by element is not counted, as in torch's own formulas.
    """
    rows, directions = math.prod(x[:-1]), hx[0][0]
    count = len(weights) // directions
    groups = [weights[d * count : (d + 1) * count] for d in range(directions)]
    states = [shape for group in groups for shape in (group[1], *([group[-1]] if count % 2 else []))]
    return 2 * rows * sum(math.prod(group[0]) for group in groups), 2 * rows * sum(map(math.prod, states))


def _forward_flops(cell, x, batch_sizes, hx, weights, *rest, out_shape=None, **named) -> int:
    return sum(_products(x, hx, weights))


def _backward_flops(
    cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs, *extra, out_shape=None, **named
) -> int:
    inputs, states = _products(x, hx, weights)
    return states + needs[0] * inputs + needs[2] * (inputs + states)


def _register() -> None:
    for backend in KERNELS:
        LIBRARY.impl("layer_forward", _forward(backend), backend.upper())
        LIBRARY.impl("layer_backward", _backward(backend), backend.upper())
    LIBRARY.impl("layer_forward", _reference_forward, "CompositeExplicitAutograd")
    LIBRARY.impl("layer_backward", _reference_backward, "CompositeExplicitAutograd")
    torch.library.register_fake("fastrnn::layer_forward", _fake_forward, lib=LIBRARY)
    torch.library.register_fake("fastrnn::layer_backward", _fake_backward, lib=LIBRARY)
    register_flop_formula(torch.ops.fastrnn.layer_forward)(_forward_flops)
    register_flop_formula(torch.ops.fastrnn.layer_backward)(_backward_flops)


_register()
