"""One layer as a differentiable function, whatever backend computes it.

First derivatives come from the backend's own backward. Where a gradient is itself to be differentiated
(``create_graph=True``), the gradient is taken through :func:`fastrnn.reference.scan` instead, which supports any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from ._gate import is_foreign, ordinary, with_strides
from ._ops import LIBRARY, is_traced, is_transformed, is_watched, layer_ops
from .reference import Timing, scan_gradients


class Layer(torch.autograd.Function):
    """``apply(backend, cell, timing, cells, save, states, x, *hx, *weights) -> (output, *final_states)``.

    With ``cells`` the c of every step comes after the final states.
    """

    @staticmethod
    def forward(ctx, backend, cell: int, timing: Timing, cells: bool, save: int, states: int, x: Tensor, *tensors):
        hx, weights = list(tensors[:states]), list(tensors[states:])
        batch_sizes, *masks = timing
        output, hn, saved = layer_ops(backend).forward(cell, x, batch_sizes, hx, weights, save, *masks, cells)
        ctx.backend, ctx.cell, ctx.states = backend, cell, states
        _keep(ctx, timing, [x, *tensors], output, saved)
        return (output, *hn)

    @staticmethod
    def backward(ctx, grad_output: Tensor, *grad_hn: Tensor):
        backward = layer_ops(ctx.backend).backward
        if ctx.backend != "reference" and is_watched():
            backward = torch.ops.fastrnn.layer_backward
        grads = _gradients(ctx, backward, [grad_output, *grad_hn], ctx.needs_input_grad[6:])
        return (None, None, None, None, None, None, *grads)


def _keep(ctx, timing: Timing, inputs: Sequence[Tensor], output: Tensor, saved: Sequence[Tensor]) -> None:
    masks = [t for t in (timing.lengths, timing.resets) if t is not None]
    ctx.timing, ctx.inputs, ctx.masks = timing, len(inputs), len(masks)
    ctx.save_for_backward(*inputs, *masks, output, *saved)


def _gradients(ctx, backward: Callable, grad_outputs: list[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of (x, *hx, *weights), None for those that are not ``wanted``."""
    kept = ctx.saved_tensors  # checkpointing hands them out once; masks changed since are noticed here
    inputs, (output, *saved) = kept[: ctx.inputs], kept[ctx.inputs + ctx.masks :]
    states = ctx.states
    if torch.is_grad_enabled() or is_transformed() or is_foreign((*kept, *grad_outputs)):
        grad_outputs = [with_strides(grad) for grad in grad_outputs]
        return scan_gradients(ctx.cell, inputs, ctx.timing, states, grad_outputs, wanted)
    x, hx, weights = inputs[0], list(inputs[1 : 1 + states]), list(inputs[1 + states :])
    needs = [wanted[0], any(wanted[1 : 1 + states]), any(wanted[1 + states :])]
    batch_sizes, *masks = ctx.timing
    grad_x, grad_hx, grad_weights = backward(
        ctx.cell, grad_outputs[0], grad_outputs[1:], x, batch_sizes, hx, weights, output, saved, needs, *masks
    )
    grads = [grad_x, *(grad_hx if needs[1] else hx), *(grad_weights if needs[2] else weights)]
    return [grad if want else None for grad, want in zip(grads, wanted)]


def _op_setup_context(ctx, inputs, output) -> None:
    cell, x, batch_sizes, hx, weights, save, lengths, resets, reverse, _ = inputs
    result, _, saved = output
    ctx.cell, ctx.states, ctx.save = cell, len(hx), save
    _keep(ctx, Timing(batch_sizes, lengths, resets, reverse), [x, *hx, *weights], result, saved)


def _op_backward(ctx, grad_output, grad_hn, _):
    if not ctx.save:
        raise RuntimeError("fastrnn::layer_forward: expected save > 0 where gradients are asked for, got save = 0")
    needs = ctx.needs_input_grad
    wanted = [needs[1], *needs[3], *needs[4]]
    grads = _gradients(ctx, torch.ops.fastrnn.layer_backward, [grad_output, *grad_hn], wanted)
    result = None, grads[0], None, grads[1 : 1 + ctx.states], grads[1 + ctx.states :], None, None, None, None, None
    return result[: len(needs)]  # torch leaves out arguments at the end that have their default value


torch.library.register_autograd("fastrnn::layer_forward", _op_backward, setup_context=_op_setup_context, lib=LIBRARY)


def needs_grad(x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether a gradient of a call with these tensors can be asked for."""
    if torch.is_grad_enabled():
        for t in (*weights, x, *hx):  # most often the first
            if t.requires_grad:
                return True
    return False


# Function.apply first looks for transforms of torch.func and their wrappers; these have gone another way by then.
_apply = super(torch.autograd.Function, Layer).apply


def layer(
    backend: str,
    cell: int,
    x: Tensor,
    timing: Timing,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    cells: bool = False,
    save: int = 1,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Runs a layer on ``backend`` and records it for autograd where a gradient can be asked for, then saving ``save``.

    Returns the output and the final states; after these the c of every step, if ``cells``.
    """
    batch_sizes, *masks = timing
    watched = is_watched()
    if watched and backend != "reference":
        save = save if needs_grad(x, hx, weights) or is_traced() else 0  # what was traced may be trained
        forward = torch.ops.fastrnn.layer_forward
        output, hn, _ = forward(cell, x, batch_sizes, list(hx), list(weights), save, *masks, cells)
        return output, hn
    if not watched and peek_interpreter_stack() is not None:
        # vmap's, and the tensors are ordinary ones. Layer has no rule for it and needs none.
        with temporarily_clear_interpreter_stack():
            return layer(backend, cell, x, timing, hx, weights, cells, save)
    if needs_grad(x, hx, weights):
        apply, tensors = Layer.apply if watched else _apply, (x, *hx, *weights)
        try:
            output, *hn = apply(backend, cell, timing, cells, save, len(hx), *tensors)
            return output, hn
        except RuntimeError:
            if not any(t is not None and t.is_inference() for t in (*tensors, *timing[:-1])):
                raise
        if not all(t.is_inference() for t in tensors):  # operators record nothing of such tensors alone
            timing = Timing(*map(ordinary, timing[:-1]), timing.reverse)
            output, *hn = apply(backend, cell, timing, cells, save, len(hx), *map(ordinary, tensors))
            return output, hn
    forward = layer_ops(backend).forward
    output, hn, _ = forward(cell, x, batch_sizes, list(hx), list(weights), 0, *masks, cells)
    return output, hn
