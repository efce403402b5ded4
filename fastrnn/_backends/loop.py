"""``torch.ops.fastrnn.layer_forward`` in core ATen operations: a loop over time of any length, as torch's ``scan``.

For programs that leave PyTorch to where the operators of fastrnn are unknown. A step is the reference's
(:mod:`fastrnn.reference.scan`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op
from torch.nn import functional as F

from .._spec import ALL_STATES, CELL
from ..reference import Timing, split_weights
from ..reference.rows import Direction, upcast
from ..reference.scan import STEP
from ..reference.timing import Masks
from ..reference.zones import zones
from ..registry import Cell, cell_of
from .graph import _fake_forward


def layer_forward(
    x: Tensor,
    given: Sequence[Tensor | None],
    hx: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    spec: Sequence[int],
    scalars: Sequence[float],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The operator's arguments and results; what it saves for a backward has as many tensors, without values.

    Raises:
        RuntimeError: the call is packed.
    """
    timing, cell = Timing.of_call(given, spec, scalars), cell_of(spec[CELL])
    if timing.batch_sizes is not None:
        raise RuntimeError(
            "fastrnn.decompositions: expected a padded input, got a PackedSequence, whose rows differ in number from "
            "step to step: pad it and call the layer with lengths="
        )
    dtype, dtypes = x.dtype, [h.dtype for h in hx]
    (x, *hx), weights = upcast([x, *hx]), upcast(weights)
    outputs, finals = [], []
    for d, group in enumerate(split_weights(weights, hx[0].size(0))):
        rows, final = _direction(cell, x, timing, d, [h[d] for h in hx], group, bool(spec[ALL_STATES]))
        outputs.append(rows)
        finals.append(final)
    output, *sequences = (torch.cat(sides, -1).to(dtype) for sides in zip(*outputs))
    states = [torch.stack(sides).to(kind) for sides, kind in zip(zip(*finals), dtypes)]
    saved = _fake_forward(x, given, hx, weights, spec, scalars)[2]
    return output, [*states, *sequences], saved


def _direction(
    cell: Cell, x: Tensor, timing: Timing, d: int, states: list[Tensor], group: Direction, all_states: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The output, with the other states after each step where all are asked for, and the final states."""
    steps, reverse = x.size(0), d >= timing.forwards
    masks = Masks(timing, steps, reverse)
    data = x if masks.there is None else x.masked_fill(~masks.there, 0)
    rates: Sequence[Tensor | float] = timing.rates
    if timing.seeds is not None and rates:
        rates = zones(timing, steps, states[0].size(-1), d, x)
    # What a step reads of the sequence, and what is the same in all steps. The loop takes those that there are.
    moving = [F.linear(data, group.w_ih, group.b_ih), masks.there, masks.fresh, *rates]
    fixed = [group.w_hh, group.b_hh, group.w_hr, None if timing.mask is None else timing.mask[d], *group.params]
    moving_tensors, fixed_tensors = ([t for t in ts if isinstance(t, Tensor)] for ts in (moving, fixed))

    def step(*tensors: Tensor) -> list[Tensor]:
        values = iter(tensors)
        before = [next(values) for _ in states]
        gates, there, fresh, *keep = (next(values) if isinstance(t, Tensor) else t for t in moving)
        w_hh, b_hh, w_hr, mask, *params = (None if t is None else next(values) for t in fixed)
        entering = before
        if fresh is not None:
            entering = [h.masked_fill(fresh, value) for h, value in zip(before, cell.initial)]
        h = entering[0] if mask is None else entering[0] * mask
        if w_hh is not None:
            hidden = F.linear(h, w_hh, b_hh)
        else:
            hidden = torch.zeros_like(gates) if b_hh is None else b_hh.expand_as(gates)
        seen = entering if cell.recurrent else [h, *entering[1:]]
        after = list(STEP[cell.mode](gates, hidden, tuple(seen), tuple(params)))
        if keep:
            kept = [keep[k > 0] for k in range(len(after))]
            after = [rate * old + (1 - rate) * new for rate, old, new in zip(kept, entering, after)]
        if w_hr is not None:
            after[0] = F.linear(after[0], w_hr)
        visible = after if all_states else after[:1]
        if there is None:
            return [*after, *(s.clone() for s in visible)]  # results of a step share no memory
        visible = [s.masked_fill(~there, 0) for s in visible]
        return [*(torch.where(there, new, old) for old, new in zip(before, after)), *visible]

    if reverse:
        moving_tensors = [t.flip(0) for t in moving_tensors]
    results = scan_op(step, [h.contiguous() for h in states], moving_tensors, tuple(fixed_tensors))
    final, rows = results[: len(states)], results[len(states) :]
    return [t.flip(0) for t in rows] if reverse else list(rows), list(final)


def _frozen(packed, x, hx, lengths, batch_first, directions):
    raise RuntimeError(
        "fastrnn.decompositions: a frozen layer has packed weights, which only its own kernels read: export "
        "fastrnn.unfreeze(model), which has the same weights, as they were rounded"
    )


def _backward(grads, x, given, hx, weights, results, spec, scalars, needs):
    raise RuntimeError(
        "fastrnn.decompositions: expected a model's forward, got a program with a backward in it: decompose the "
        "forward and differentiate that"
    )


DECOMPOSITIONS = {"layer_forward": layer_forward, "layer_backward": _backward, "frozen": _frozen}
"""By the name of the operator."""
