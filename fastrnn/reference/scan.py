"""The same layer with ordinary differentiable operations and no writes in place: slower, but it can be differentiated
any number of times, forward and backward, and transformed by ``torch.func``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.nn import functional as F

from ..registry import ALL_CELLS, Cell, cell_of
from . import recorded
from .rows import Direction, row_counts, split_weights, step_order, upcast
from .schedule import Masks, Schedule, visible
from .zones import zones

EPSILON = 1e-5
"""Of layer normalisation, added to the variance."""


def _lstm(x: Tensor, h: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (n + z * (state[0] - n),)


def _tanh(x: Tensor, h: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (torch.tanh(x + h),)


def _relu(x: Tensor, h: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (torch.relu(x + h),)


def _normalised(rows: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """Layer normalisation over the last dimension."""
    return F.layer_norm(rows, rows.shape[-1:], gain, bias, EPSILON)


def _layer_norm_lstm(x: Tensor, h: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(_normalised(c, *params[2:])), c


# (gates of the input, gates of the hidden state, states before, the cell's parameters) -> states after, by mode.
STEP = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _tanh,
    "RNN_RELU": _relu,
    "LAYER_NORM_LSTM": _layer_norm_lstm,
    "LAYER_NORM_GRU": _gru,
    **{mode: recorded.step_of(graph, ALL_CELLS[mode].gates) for mode, graph in recorded.load().items()},
}


def input_gates(data: Tensor, weights: Direction, own: Cell) -> Tensor:
    """The gates of the input, of all steps."""
    if own.statistics:
        return _normalised(F.linear(data, weights.w_ih), weights.params[0], weights.b_ih)
    return F.linear(data, weights.w_ih, weights.b_ih)


def _hidden_gates(h: Tensor, weights: Direction, like: Tensor, own: Cell) -> Tensor:
    """The gates of the hidden state; without w_hh their bias alone."""
    if own.statistics:
        return _normalised(F.linear(h, weights.w_hh), weights.params[1], weights.b_hh)
    if weights.w_hh is not None:
        return F.linear(h, weights.w_hh, weights.b_hh)
    return torch.zeros_like(like) if weights.b_hh is None else weights.b_hh.expand_as(like)


def advance(
    own: Cell,
    weights: Direction,
    gates: Tensor,
    before: Sequence[Tensor],
    mask: Tensor | None = None,
    fresh: Tensor | None = None,
    there: Tensor | None = None,
    keep: Sequence[Tensor | float] = (),
) -> tuple[Tensor, ...]:
    """The states after a step, of those ``before`` it and the input's ``gates``.

    ``mask`` is what h is multiplied with on its way to W_hh. Rows that are ``fresh`` start from the cell's initial
    states; rows that are not ``there`` stay as they are. ``keep`` is what zoneout keeps, of h and of the other states.
    """
    entering = tuple(before)
    if fresh is not None:
        entering = tuple(s.masked_fill(fresh, value) for s, value in zip(entering, own.initial))
    h = entering[0] if mask is None else entering[0] * mask
    seen = entering if own.recurrent else (h, *entering[1:])
    after = STEP[own.mode](gates, _hidden_gates(h, weights, gates, own), seen, weights.params)
    if keep:
        rates = (keep[0], *[keep[1]] * (len(after) - 1))
        after = tuple(rate * old + (1 - rate) * new for rate, old, new in zip(rates, entering, after))
    if weights.w_hr is not None:
        after = (F.linear(after[0], weights.w_hr), *after[1:])
    return after if there is None else tuple(torch.where(there, new, old) for old, new in zip(before, after))


def scan(
    cell: int,
    x: Tensor,
    schedule: Schedule,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    all_states: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """One layer over a sequence; arguments and results as in :func:`layer_forward`, nothing saved.

    Final states have the types of the initial ones.
    """
    own = cell_of(cell)
    dtype, dtypes = x.dtype, [h.dtype for h in hx]
    (x, *hx), weights = upcast([x, *hx]), upcast(weights)
    counts = row_counts(x, schedule.batch_sizes)
    outputs, finals = [], []

    for d, group in enumerate(split_weights(weights, hx[0].size(0))):
        reverse = d >= schedule.forwards
        masks = Masks(schedule, len(counts), reverse)
        data = visible(x, masks.there).flatten(0, -2)  # whatever stands past the end
        x_gates = input_gates(data, group, own).split(counts)
        mask = None if schedule.mask is None else upcast([schedule.mask[d]])[0]
        zoned = zones(schedule, len(counts), hx[0].size(2), d, x) if schedule.rates else []
        states = tuple(s[d] for s in hx)  # all B rows; a step replaces those it has
        rows: list[tuple[Tensor, ...]] = [()] * len(counts)
        for t in step_order(len(counts), reverse):
            count = counts[t]
            there, fresh = (None if m is None else m[t] for m in (masks.there, masks.fresh))
            keep = [k[t][:count] if isinstance(k[t], Tensor) else k[t] for k in zoned]
            before = tuple(s[:count] for s in states)
            after = advance(own, group, x_gates[t], before, None if mask is None else mask[:count], fresh, there, keep)
            rows[t] = tuple(visible(s, there) for s in (after if all_states else after[:1]))
            states = tuple(torch.cat([new, old[count:]]) for new, old in zip(after, states))
        outputs.append([torch.cat(steps) for steps in zip(*rows)])
        finals.append(states)

    hn = [torch.stack(state) for state in zip(*finals)]
    rows = (torch.cat(sides, -1) for sides in zip(*outputs))
    output, *sequences = (r.view(*x.shape[:-1], r.size(-1)).to(dtype) for r in rows)
    return output, [*(state.to(kind) for state, kind in zip(hn, dtypes)), *sequences]


def scan_gradients(
    cell: int,
    inputs: Sequence[Tensor | None],
    schedule: Schedule,
    states: int,
    grad_outputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of ``inputs`` = (x, *hx, *weights), by autograd through :func:`scan`; None where not ``wanted``.

    ``grad_outputs`` are those of the output and of the final states, then of the other states after each step if there
    are more; None is zero. They are differentiable themselves where gradients are recorded.
    """
    record = torch.is_grad_enabled()
    if peek_interpreter_stack() is not None:
        return _transformed_gradients(cell, inputs, schedule, states, grad_outputs, wanted)
    with torch.enable_grad():
        # Each input gets an alias of its own: the gradients of a tensor passed twice (tied weights) must stay apart.
        aliases = [t if t is None else t.view_as(t) if record else t.detach().requires_grad_() for t in inputs]
        x, hx, weights = aliases[0], aliases[1 : 1 + states], aliases[1 + states :]
        output, hn = scan(cell, x, schedule, hx, weights, len(grad_outputs) > 1 + states)
        sources = [t for t, want in zip(aliases, wanted) if want]
        # c after a single step does not depend on a projection that alone is trained.
        ends = [(t, g) for t, g in zip([output, *hn], grad_outputs) if t.requires_grad and g is not None]
        ends, grad_ends = zip(*ends) if ends else ((), ())
        grads = iter(torch.autograd.grad(ends, sources, grad_ends, create_graph=record, allow_unused=True))
    found = [next(grads) if want else None for want in wanted]
    return [torch.zeros_like(t) if want and g is None else g for g, want, t in zip(found, wanted, inputs)]


def _transformed_gradients(cell, inputs, schedule, states, grad_outputs, wanted) -> list[Tensor | None]:
    """As :func:`scan_gradients`, within ``vmap`` and the other transforms of ``torch.func``."""

    def outputs(*sources: Tensor) -> tuple[Tensor, ...]:
        given = iter(sources)
        x, *tensors = [next(given) if want else t for t, want in zip(inputs, wanted)]
        cells = len(grad_outputs) > 1 + states
        output, hn = scan(cell, x, schedule, tensors[:states], tensors[states:], cells)
        return output, *hn

    results, pull_back = torch.func.vjp(outputs, *(t for t, want in zip(inputs, wanted) if want))
    grads = iter(pull_back(tuple(torch.zeros_like(r) if g is None else g for r, g in zip(results, grad_outputs))))
    return [next(grads) if want else None for want in wanted]
