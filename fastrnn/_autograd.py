"""One layer as a differentiable function, whatever backend computes it.

First derivatives come from the backend's own backward. Where a gradient is itself to be differentiated
(``create_graph=True``), the gradient is taken through :func:`fastrnn.reference.scan` instead, which supports any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import reference
from ._ops import LIBRARY, is_watched, layer_ops

_PLAIN = (Tensor, torch.nn.Parameter)  # tensors of any other type look at what is done to them


class Layer(torch.autograd.Function):
    """``apply(backend, cell, batch_sizes, states, x, *hx, *weights) -> (output, *final_states)``."""

    @staticmethod
    def forward(ctx, backend: str, cell: int, batch_sizes: Tensor | None, states: int, x: Tensor, *tensors: Tensor):
        hx, weights = list(tensors[:states]), list(tensors[states:])
        output, hn, saved = layer_ops(backend).forward(cell, x, batch_sizes, hx, weights, True)
        ctx.backend, ctx.cell, ctx.batch_sizes, ctx.states = backend, cell, batch_sizes, states
        ctx.save_for_backward(x, *tensors, output, *saved)
        ctx.inputs = 1 + len(tensors)
        return (output, *hn)

    @staticmethod
    def backward(ctx, grad_output: Tensor, *grad_hn: Tensor):
        kept = ctx.saved_tensors  # checkpointing hands them out once
        inputs, (output, *saved) = kept[: ctx.inputs], kept[ctx.inputs :]
        backward = layer_ops(ctx.backend).backward
        if ctx.backend != "reference" and is_watched():
            backward = torch.ops.fastrnn.layer_backward
        grads = _gradients(
            backward, ctx.cell, ctx.batch_sizes, ctx.states, inputs, output, saved,
            [grad_output, *grad_hn], ctx.needs_input_grad[4:],
        )  # fmt: skip
        return (None, None, None, None, *grads)


def _gradients(
    backward: Callable,
    cell: int,
    batch_sizes: Tensor | None,
    states: int,
    inputs: Sequence[Tensor],
    output: Tensor,
    saved: list[Tensor],
    grad_outputs: list[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of ``inputs`` = (x, *hx, *weights), None for those that are not ``wanted``."""
    x, hx, weights = inputs[0], list(inputs[1 : 1 + states]), list(inputs[1 + states :])
    if torch.is_grad_enabled():
        return _differentiable_gradients(cell, batch_sizes, states, inputs, grad_outputs, wanted)
    needs = [wanted[0], any(wanted[1 : 1 + states]), any(wanted[1 + states :])]
    grad_x, grad_hx, grad_weights = backward(
        cell, grad_outputs[0], grad_outputs[1:], x, batch_sizes, hx, weights, output, saved, needs
    )
    grads = [grad_x, *(grad_hx if needs[1] else hx), *(grad_weights if needs[2] else weights)]
    return [grad if want else None for grad, want in zip(grads, wanted)]


def _differentiable_gradients(cell, batch_sizes, states, inputs, grad_outputs, wanted):
    # Each input gets an alias of its own: the gradients of a tensor passed twice (tied weights) must stay apart.
    x, *tensors = [t.view_as(t) for t in inputs]
    output, hn = reference.scan(cell, x, batch_sizes, tensors[:states], tensors[states:])
    sources = [t for t, want in zip([x, *tensors], wanted) if want]
    grads = iter(torch.autograd.grad([output, *hn], sources, grad_outputs, create_graph=True))
    return [next(grads) if want else None for want in wanted]


def _op_setup_context(ctx, inputs, output) -> None:
    cell, x, batch_sizes, hx, weights, save = inputs
    result, _, saved = output
    ctx.cell, ctx.batch_sizes, ctx.states, ctx.save = cell, batch_sizes, len(hx), save
    ctx.inputs = 1 + len(hx) + len(weights)
    ctx.save_for_backward(x, *hx, *weights, result, *saved)


def _op_backward(ctx, grad_output, grad_hn, _):
    if not ctx.save:
        raise RuntimeError("fastrnn::layer_forward: expected save=True where gradients are asked for, got save=False")
    tensors = ctx.saved_tensors
    inputs, (output, *saved) = tensors[: ctx.inputs], tensors[ctx.inputs :]
    needs = ctx.needs_input_grad
    wanted = [needs[1], *needs[3], *needs[4]]
    grads = _gradients(
        torch.ops.fastrnn.layer_backward, ctx.cell, ctx.batch_sizes, ctx.states, inputs, output, saved,
        [grad_output, *grad_hn], wanted,
    )  # fmt: skip
    return None, grads[0], None, grads[1 : 1 + ctx.states], grads[1 + ctx.states :], None


torch.library.register_autograd("fastrnn::layer_forward", _op_backward, setup_context=_op_setup_context, lib=LIBRARY)


def needs_grad(x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether a gradient of a call with these tensors can be asked for."""
    if torch.is_grad_enabled():
        for t in (*weights, x, *hx):  # most often the first
            if t.requires_grad:
                return True
    return False


def layer(
    backend: str, cell: int, x: Tensor, batch_sizes: Tensor | None, hx: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor]]:
    """Runs a layer on ``backend`` and records it for autograd where a gradient can be asked for."""
    if backend != "reference" and (is_watched() or type(x) not in _PLAIN):
        save = needs_grad(x, hx, weights)
        output, hn, _ = torch.ops.fastrnn.layer_forward(cell, x, batch_sizes, list(hx), list(weights), save)
        return output, hn
    if needs_grad(x, hx, weights):
        output, *hn = Layer.apply(backend, cell, batch_sizes, len(hx), x, *hx, *weights)
        return output, hn
    output, hn, _ = layer_ops(backend).forward(cell, x, batch_sizes, list(hx), list(weights), False)
    return output, hn
