"""One layer as a differentiable function, whatever backend computes it.

First derivatives come from the backend's own backward. Where a gradient is itself to be differentiated
(``create_graph=True``), the gradient is taken through :func:`fastrnn.reference.scan` instead, which supports any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C import _after_autograd_keyset, _AutoDispatchBelowAutograd
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from .._kernels.gate import is_foreign, ordinary, with_strides
from .._kernels.ops import LIBRARY, is_traced, is_transformed, is_watched, layer_ops
from .._spec import ALL_STATES, CELL, EVERYTHING, SAVE, pack
from ..reference import Schedule, scan_gradients


class Layer(torch.autograd.Function):
    """``apply(run, backend, spec, scalars, given, states, x, *hx, *weights) -> (output, *states, *saved)``.

    ``run`` computes the call; it may keep what it saves to itself. ``backend`` computes the gradients, None: the
    operator. The rest is as in ``_spec``, ``states`` being the number of ``hx``.
    """

    @staticmethod
    def forward(ctx, run: Callable, backend: str | None, spec, scalars, given, states: int, x: Tensor, *tensors):
        output, after, saved = run(x, given, tensors[:states], tensors[states:], spec, scalars)
        ctx.backend, ctx.spec, ctx.scalars, ctx.given = backend, spec, scalars, given
        ctx.states, ctx.results = states, 1 + len(saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *tensors, *given, output, *saved)
        if backend is not None:
            return (output, *after)
        ctx.mark_non_differentiable(*saved)
        return (output, *after, *saved)

    @staticmethod
    def backward(ctx, *grads: Tensor | None):
        watched = ctx.backend is None or (ctx.backend != "reference" and is_watched())
        backward = torch.ops.fastrnn.layer_backward if watched else layer_ops(ctx.backend).layer_backward
        if ctx.backend is None:
            grads = grads[: len(grads) - ctx.results + 1]
        return *[None] * 6, *_gradients(ctx, backward, grads, ctx.needs_input_grad[6:])


def _gradients(ctx, backward: Callable, grads: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of (x, *hx, *weights), None for those that are not ``wanted``."""
    kept = ctx.saved_tensors  # checkpointing hands them out once; masks changed since are noticed here
    inputs, results = kept[: len(wanted)], kept[-ctx.results :]
    spec, given, end = ctx.spec, ctx.given, 1 + ctx.states
    if not spec[SAVE]:
        raise RuntimeError("fastrnn::layer_forward: expected save > 0 where gradients are asked for, got save = 0")
    if torch.is_grad_enabled() or is_transformed() or is_foreign((*kept, *grads), True):
        grads = [grad if grad is None else with_strides(grad) for grad in grads]
        schedule = Schedule.of_call(given, spec, ctx.scalars)
        return scan_gradients(spec[CELL], inputs, schedule, end - 1, grads, wanted)
    hx, weights = inputs[1:end], inputs[end:]
    needs = (wanted[0], True in wanted[1:end], True in wanted[end:])
    grad_x, grad_hx, grad_weights = backward(grads, inputs[0], given, hx, weights, results, spec, ctx.scalars, needs)
    found = (grad_x, *(grad_hx if needs[1] else hx), *(grad_weights if needs[2] else weights))
    return [grad if want else None for grad, want in zip(found, wanted)]


def _operator(keyset, x, given, hx, weights, spec, scalars):
    """torch.ops.fastrnn.layer_forward for autograd. torch's own registration takes a list with None in it for one
    without tensors."""

    def run(*arguments):
        with _AutoDispatchBelowAutograd():
            forward = torch.ops.fastrnn.layer_forward.default
            return forward.redispatch(keyset & _after_autograd_keyset, *arguments)

    if not needs_grad(x, hx, weights):
        return run(x, given, hx, weights, spec, scalars)
    output, *rest = Layer.apply(run, None, spec, scalars, given, len(hx), x, *hx, *weights)
    after = len(hx) * 2 - 1 if spec[ALL_STATES] else len(hx)
    return output, rest[:after], rest[after:]


def _dense(x, given, hx, weights, spec, scalars):
    given, weights = ([t if t.numel() else None for t in tensors] for tensors in (given, weights))
    return torch.ops.fastrnn.layer_forward(x, given, hx, weights, spec, scalars)


def _traced(x: Tensor, given, hx, weights, spec, scalars):
    """torch.ops.fastrnn.layer_forward under TorchScript's tracer."""
    given, weights = ([x.new_empty(0) if t is None else t for t in tensors] for tensors in (given, weights))
    return torch.ops.fastrnn.layer_forward.dense(x, given, hx, weights, spec, scalars)


LIBRARY.impl("layer_forward", _operator, "Autograd", with_keyset=True)
LIBRARY.impl("layer_forward.dense", _dense, "CompositeImplicitAutograd")


def needs_grad(x: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor | None]) -> bool:
    """Whether a gradient of a call with these tensors can be asked for."""
    if torch.is_grad_enabled():
        for t in (*weights, x, *hx):  # most often the first
            if t is not None and t.requires_grad:
                return True
    return False


# Function.apply first looks for transforms of torch.func and their wrappers; these have gone another way by then.
_apply = super(torch.autograd.Function, Layer).apply


def layer(
    backend: str,
    cell: int,
    x: Tensor,
    schedule: Schedule,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    all_states: bool = False,
    save: int = EVERYTHING,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Runs a layer on ``backend`` and records it for autograd where a gradient can be asked for, then saving ``save``.

    ``weights`` are by slot (``_spec``). Returns the output and the final states; after these, if ``all_states``, every
    state but h after each step.
    """
    wanted, watched = needs_grad(x, hx, weights), is_watched()
    if not watched and peek_interpreter_stack() is not None:
        # vmap's, and the tensors are ordinary ones. Layer has no rule for it and needs none.
        with temporarily_clear_interpreter_stack():
            return layer(backend, cell, x, schedule, hx, weights, all_states, save)
    traced = watched and is_traced()  # what was traced may be trained
    given, scalars, tensors = schedule.given, schedule.rates, (x, *hx, *weights)
    spec = pack(cell, save if wanted or traced else 0, schedule.forwards, all_states, schedule.first_step)
    if watched and backend != "reference":
        forward = _traced if traced else torch.ops.fastrnn.layer_forward
        output, after, _ = forward(x, given, hx, weights, spec, scalars)
        return output, after
    forward = layer_ops(backend).layer_forward
    if wanted:
        apply = Layer.apply if watched else _apply
        try:
            output, *after = apply(forward, backend, spec, scalars, given, len(hx), *tensors)
            return output, after
        except RuntimeError:
            if not any(t is not None and t.is_inference() for t in (*tensors, *given)):
                raise
        if not all(t is None or t.is_inference() for t in tensors):  # operators record nothing of such tensors alone
            given, tensors = list(map(ordinary, given)), map(ordinary, tensors)
            output, *after = apply(forward, backend, spec, scalars, given, len(hx), *tensors)
            return output, after
    output, after, _ = forward(x, given, hx, weights, spec, scalars)
    return output, after
