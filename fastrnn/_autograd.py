"""One layer as a differentiable function, whatever backend computes it.

First derivatives come from the backend's own backward. Where a gradient is itself to be differentiated
(``create_graph=True``), the gradient is taken through :func:`fastrnn.reference.scan` instead, which supports any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from ._ops import layer_ops


class Layer(torch.autograd.Function):
    """``apply(backend, cell, batch_sizes, states, x, *hx, *weights) -> (output, *final_states)``."""

    @staticmethod
    def forward(ctx, backend: str, cell: int, batch_sizes: Tensor | None, states: int, x: Tensor, *tensors: Tensor):
        hx, weights = tensors[:states], tensors[states:]
        output, hn, saved = layer_ops(backend).forward(cell, x, batch_sizes, list(hx), list(weights), True)
        ctx.backend, ctx.cell, ctx.batch_sizes, ctx.states = backend, cell, batch_sizes, states
        ctx.save_for_backward(x, *tensors, output, *saved)
        ctx.inputs = 1 + len(tensors)
        return (output, *hn)

    @staticmethod
    def backward(ctx, grad_output: Tensor, *grad_hn: Tensor):
        x, *tensors = ctx.saved_tensors[: ctx.inputs]
        output, *saved = ctx.saved_tensors[ctx.inputs :]
        hx, weights = tensors[: ctx.states], tensors[ctx.states :]
        wanted = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():
            grads = _differentiable_backward(ctx, [x, *tensors], wanted, [grad_output, *grad_hn])
            return (None, None, None, None, *grads)
        needs = [wanted[0], any(wanted[1 : 1 + ctx.states]), any(wanted[1 + ctx.states :])]
        grad_x, grad_hx, grad_weights = layer_ops(ctx.backend).backward(
            ctx.cell, grad_output, list(grad_hn), x, ctx.batch_sizes, hx, weights, output, saved, needs
        )
        grads = [grad_x, *(grad_hx or [None] * len(hx)), *(grad_weights or [None] * len(weights))]
        return (None, None, None, None, *(g if want else None for g, want in zip(grads, wanted)))


def _differentiable_backward(ctx, inputs: list[Tensor], wanted: Sequence[bool], grad_outputs: list[Tensor]):
    # Each input gets an alias of its own: the gradients of a tensor passed twice (tied weights) must not be summed here.
    x, *tensors = [t.view_as(t) for t in inputs]
    hx, weights = tensors[: ctx.states], tensors[ctx.states :]
    output, hn = reference.scan(ctx.cell, x, ctx.batch_sizes, hx, weights)
    sources = [t for t, want in zip([x, *tensors], wanted) if want]
    grads = iter(torch.autograd.grad([output, *hn], sources, grad_outputs, create_graph=True))
    return [next(grads) if want else None for want in wanted]


def layer(
    backend: str, cell: int, x: Tensor, batch_sizes: Tensor | None, hx: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor]]:
    """Runs a layer on ``backend`` and records it for autograd where a gradient can be asked for."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *hx, *weights)):
        output, *hn = Layer.apply(backend, cell, batch_sizes, len(hx), x, *hx, *weights)
        return output, hn
    output, hn, _ = layer_ops(backend).forward(cell, x, batch_sizes, list(hx), list(weights), False)
    return output, hn
