"""The fast pair: one layer over one sequence, forward and backward, outside autograd."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from .._spec import ALL_STATES, CELL, unpack
from ..registry import cell_of
from .products import product, products_across
from .rows import Direction, previous, resized, row_counts, split_weights, step_order, upcast
from .scan import scan, scan_gradients
from .schedule import Schedule
from .scratch import Scratch
from .steps import BACKWARD, FORWARD


def _input_product(data: Tensor, weights: Direction, mode: str, out: Tensor | None) -> Tensor:
    """The input product of all steps, with every bias that may be added outside the time loop."""
    bias = weights.b_ih
    # A GRU adds its hidden bias with the hidden product, whose n part is scaled by the reset gate.
    if bias is not None and mode != "GRU":
        bias = bias + weights.b_hh
    return product(data, weights.w_ih.t(), bias, out)


@torch.inference_mode()  # each of its many small operations is a little quicker for it
def _recurrence(run, initial: list[Tensor], final: list[Tensor], counts: list[int], order: range) -> None:
    """Runs one direction from its first step to its last; fills ``run``'s buffers and ``final``."""
    state = tuple(s[: counts[order[0]]] for s in initial)
    for rows, steps in groupby(order, counts.__getitem__):
        state = tuple(resized(s, rows, *ends) for s, *ends in zip(state, initial, final))
        run.make_room(rows)
        for t in steps:
            state = run.step(t, state)
    for end, value in zip(final, state):
        end[: value.size(0)] = value


def layer_forward(
    x: Tensor,
    given: Sequence[Tensor | None],
    hx: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    spec: Sequence[int],
    scalars: Sequence[float],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Runs one layer over a sequence, without recording anything for autograd.

    Args:
        x: (T, B, I), or (N, I) with ``batch_sizes``.
        given: ``batch_sizes``, ``lengths``, ``resets``, ``mask``, ``seeds``, see :class:`Schedule`; None for those that
            there are not.
        hx: initial states, (D, B, R) and, but for h, (D, B, H).
        weights: by slot, for each direction (``_spec``).
        spec: a :class:`~fastrnn._spec.LayerSpec`; whatever ``save`` keeps is what :func:`layer_backward` needs.
        scalars: the rates of zoneout, or nothing; none of the cells here has scalars of its own.

    Returns:
        The output (T, B, D*R) or (N, D*R), the final states shaped like ``hx``, then, if ``all_states``, every
        state but h after each step, shaped like the output with D*H features; and the saved tensors.
    """
    _, cell, save, forwards, all_states, _ = unpack(spec)
    schedule = Schedule.of_call(given, spec, scalars)
    one_step = not save and schedule.batch_sizes is None and x.size(0) == 1  # not worth the buffers
    if one_step or needs_scan(x, schedule, spec):
        with torch.no_grad():
            return *scan(cell, x, schedule, hx, weights, all_states), []
    batch_sizes, mode, dtype = schedule.batch_sizes, cell_of(cell).mode, x.dtype
    (x, *hx), weights = upcast([x, *hx]), upcast(weights)
    counts = row_counts(x, batch_sizes)
    directions, _, width = hx[0].shape
    data = x.reshape(-1, x.size(-1))
    output = data.new_empty(data.size(0), directions * width)
    finals = [torch.empty_like(state, memory_format=torch.contiguous_format) for state in hx]
    saved: list[Tensor] = []

    for d, group in enumerate(split_weights(weights, directions)):
        columns = output[:, d * width : (d + 1) * width]
        gates = _input_product(data, group, mode, out=columns if cell_of(cell).gates == 1 else None)
        run = FORWARD[mode](gates, group, columns.split(counts), counts, save)
        _recurrence(run, [s[d] for s in hx], [s[d] for s in finals], counts, step_order(len(counts), d >= forwards))
        saved += run.saved

    output = output.view(*x.shape[:-1], directions * width)
    return output.to(dtype), [state.to(dtype) for state in finals], saved


def _recurrence_backward(run, grad_output: Tensor, grad_final, grad_initial, counts: list[int], order: range) -> None:
    """Runs one direction from its last step to its first; fills ``run``'s gradient buffers and ``grad_initial``."""
    grad_rows = grad_output.split(counts)
    grads = tuple(g[: counts[order[0]]] for g in grad_final)
    for rows, steps in groupby(order, counts.__getitem__):
        grads = tuple(resized(g, rows, *ends) for g, *ends in zip(grads, grad_final, grad_initial))
        first, *rest = steps
        grads = (grads[0] + grad_rows[first], *grads[1:])
        for t, following in zip([first, *rest], rest):
            grads = run.step(t, grads, grad_rows[following])
        grads = run.step(rest[-1] if rest else first, grads, None)
    for end, value in zip(grad_initial, grads):
        end[: value.size(0)] = value


def _weight_gradients(
    run, grad_input: Tensor, data: Tensor, h_before: Tensor, weights: Direction, scratch: Scratch
) -> list[Tensor | None]:
    """The gradients of one direction's weights, by slot."""
    grad_hidden = run.grad_hidden
    are_same = grad_input is grad_hidden
    if are_same:
        grads = products_across(grad_hidden, [data, h_before], scratch)
    else:
        grads = [*products_across(grad_input, [data], scratch), *products_across(grad_hidden, [h_before], scratch)]
    biases = [None, None]
    if weights.b_ih is not None:
        grad_bias = grad_hidden.sum(0)
        biases = [grad_bias.clone() if are_same else grad_input.sum(0), grad_bias]
    return [*grads, *biases, None if weights.w_hr is None else run.grad_projection()]


def needs_scan(x: Tensor, schedule: Schedule, spec: Sequence[int]) -> bool:
    """Whether :func:`layer_backward` goes through :func:`scan`, and needs nothing saved."""
    own = cell_of(spec[CELL])
    is_written = own.mode in FORWARD and not x.is_complex()  # the fast pair does not conjugate
    return schedule.is_masked or schedule.is_dropping or (spec[ALL_STATES] and own.states > 1) or not is_written


def layer_backward(
    grads: Sequence[Tensor | None],
    x: Tensor,
    given: Sequence[Tensor | None],
    hx: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    results: Sequence[Tensor],
    spec: Sequence[int],
    scalars: Sequence[float],
    needs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor] | None, list[Tensor | None] | None]:
    """Gradients of :func:`layer_forward`; nothing that is passed in is written.

    Args:
        grads: gradients of the output and of the states, as many as forward returned; None is zero.
        results: the output and what forward saved; the rest is what forward was given.
        needs: which of the gradients of ``x``, ``hx`` and ``weights`` are wanted.

    Returns:
        The gradients of ``x``, ``hx`` and ``weights``, None for those not asked for.
    """
    _, cell, _, forwards, _, _ = unpack(spec)
    schedule = Schedule.of_call(given, spec, scalars)
    if needs_scan(x, schedule, spec):
        wanted = [needs[0], *[needs[1]] * len(hx), *[needs[2] and w is not None for w in weights]]
        with torch.no_grad():
            found = scan_gradients(cell, [x, *hx, *weights], schedule, len(hx), grads, wanted)
        states, rest = found[1 : 1 + len(hx)], found[1 + len(hx) :]
        return found[0], states if needs[1] else None, rest if needs[2] else None
    batch_sizes, mode, dtype = schedule.batch_sizes, cell_of(cell).mode, x.dtype
    output, *saved = results
    like = [output, *hx]
    grad_output, *grad_hn = (torch.zeros_like(t) if g is None else g for g, t in zip(grads, like))
    x, output, grad_output, *hx = upcast([x, output, grad_output, *hx])
    weights, grad_hn = upcast(weights), upcast(grad_hn)
    counts = row_counts(x, batch_sizes)
    directions, _, width = hx[0].shape
    data, output, grad_output = (t.reshape(-1, t.size(-1)) for t in (x, output, grad_output))
    grad_hx = [torch.empty_like(g, memory_format=torch.contiguous_format) for g in grad_hn]
    grad_data: Tensor | None = None
    grad_weights: list[Tensor | None] = []
    per_direction = len(saved) // directions

    for d, group in enumerate(split_weights(weights, directions)):
        backwards = d >= forwards
        columns = slice(d * width, (d + 1) * width)
        initial = [s[d] for s in hx]
        kept = saved[d * per_direction : (d + 1) * per_direction]
        order = step_order(len(counts), not backwards)
        with Scratch(data) as scratch:
            with torch.inference_mode():
                run = BACKWARD[mode](kept, output[:, columns], initial, group, counts, backwards, scratch)
                _recurrence_backward(
                    run, grad_output[:, columns], [g[d] for g in grad_hn], [g[d] for g in grad_hx], counts, order
                )
            grad_input = run.grad_input()
            if needs[0]:
                part = product(grad_input, group.w_ih)
                grad_data = part if grad_data is None else grad_data.add_(part)
            if needs[2]:
                h_before = previous(output[:, columns], initial[0], counts, backwards, scratch)
                grad_weights += _weight_gradients(run, grad_input, data, h_before, group, scratch)

    return (
        grad_data.view(x.shape).to(dtype) if needs[0] else None,
        [g.to(dtype) for g in grad_hx] if needs[1] else None,
        [g if g is None else g.to(dtype) for g in grad_weights] if needs[2] else None,
    )
