"""``torch.ops.fastrnn.layer_forward`` in core ATen operations: a loop over time of any length, as torch's ``scan``.

For programs that leave PyTorch to where the operators of fastrnn are unknown. A step is the reference's
(:mod:`fastrnn.reference.scan`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

from .._spec import ALL_STATES, CELL
from ..reference import Schedule, split_weights
from ..reference.rows import Direction, upcast
from ..reference.scan import advance, input_gates
from ..reference.schedule import Masks, visible
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
    schedule, cell = Schedule.of_call(given, spec, scalars), cell_of(spec[CELL])
    if schedule.batch_sizes is not None:
        raise RuntimeError(
            "fastrnn.decompositions: expected a padded input, got a PackedSequence, whose rows differ in number from "
            "step to step: pad it and call the layer with lengths="
        )
    dtype, dtypes = x.dtype, [h.dtype for h in hx]
    (x, *hx), weights = upcast([x, *hx]), upcast(weights)
    outputs, finals = [], []
    for d, group in enumerate(split_weights(weights, hx[0].size(0))):
        rows, final = _direction(cell, x, schedule, d, [h[d] for h in hx], group, bool(spec[ALL_STATES]))
        outputs.append(rows)
        finals.append(final)
    output, *sequences = (torch.cat(sides, -1).to(dtype) for sides in zip(*outputs))
    states = [torch.stack(sides).to(kind) for sides, kind in zip(zip(*finals), dtypes)]
    saved = _fake_forward(x, given, hx, weights, spec, scalars)[2]
    return output, [*states, *sequences], saved


def _direction(
    cell: Cell, x: Tensor, schedule: Schedule, d: int, states: list[Tensor], group: Direction, all_states: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The output, with the other states after each step where all are asked for, and the final states."""
    steps, reverse = x.size(0), d >= schedule.forwards
    masks = Masks(schedule, steps, reverse)
    data = visible(x, masks.there)
    rates: Sequence[Tensor | float] = schedule.rates
    if schedule.seeds is not None and rates:
        rates = zones(schedule, steps, states[0].size(-1), d, x)
    # What a step reads of the sequence, and what is the same in all steps. The loop takes those that there are.
    moving = [input_gates(data, group, cell), masks.there, masks.fresh, *rates]
    fixed = [None if schedule.mask is None else schedule.mask[d], group.w_hh, group.b_hh, group.w_hr, *group.params]
    moving_tensors, fixed_tensors = ([t for t in ts if isinstance(t, Tensor)] for ts in (moving, fixed))

    def step(*tensors: Tensor) -> list[Tensor]:
        values = iter(tensors)
        before = [next(values) for _ in states]
        gates, there, fresh, *keep = (next(values) if isinstance(t, Tensor) else t for t in moving)
        mask, w_hh, b_hh, w_hr, *params = (None if t is None else next(values) for t in fixed)
        weights = group._replace(w_hh=w_hh, b_hh=b_hh, w_hr=w_hr, params=tuple(params))
        after = advance(cell, weights, gates, before, mask, fresh, there, keep)
        seen = after if all_states else after[:1]
        return [*after, *(s.clone() if there is None else visible(s, there) for s in seen)]  # they share no memory

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
