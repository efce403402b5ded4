"""A layer computed in chunks of time that backward computes again, so that no more than one chunk's values are kept.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; ``torch.utils.checkpoint``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..reference import Schedule


def _part(schedule: Schedule, begin: int, end: int) -> Schedule:
    """What ``schedule`` says about the steps from ``begin`` to ``end``."""
    batch_sizes, lengths, resets, *_ = schedule
    return schedule._replace(
        batch_sizes=None if batch_sizes is None else batch_sizes[begin:end],
        lengths=None if lengths is None else (lengths - begin).clamp(0, end - begin),
        resets=None if resets is None else resets[:, begin:end],
        first_step=schedule.first_step + begin,
    )


class Span(NamedTuple):
    """A chunk of a sequence, ending before step ``end``: its rows of x, its schedule, how many batch rows have it."""

    x: Tensor
    schedule: Schedule
    end: int
    rows: int

    def entering(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Of the states of all batch rows, those that enter the chunk."""
        return [h if h.size(1) == self.rows else h[:, : self.rows] for h in states]

    def leaving(self, after: Sequence[Tensor], states: Sequence[Tensor]) -> list[Tensor]:
        """The states of all batch rows when the chunk has turned those that entered it into ``after``."""
        if self.rows == states[0].size(1):
            return list(after[: len(states)])
        return [torch.cat([new, old[:, self.rows :]], 1) for new, old in zip(after, states)]


def spans_of(x: Tensor, schedule: Schedule, chunks: int) -> list[Span]:
    """A sequence in chunks of about the same number of steps, first to last."""
    batch_sizes = schedule.batch_sizes
    T = x.size(0) if batch_sizes is None else batch_sizes.size(0)
    edges = [T * k // chunks for k in range(chunks + 1)]
    steps = list(zip(edges, edges[1:]))
    # Cut at once: the gradient of slices one by one would be as many tensors of the whole sequence.
    sizes = [end - begin if batch_sizes is None else int(batch_sizes[begin:end].sum()) for begin, end in steps]
    alive = [x.size(1) if batch_sizes is None else int(batch_sizes[begin]) for begin, _ in steps]
    return [
        Span(data, _part(schedule, begin, end), end, rows)
        for data, (begin, end), rows in zip(x.split(sizes), steps, alive)
    ]


def _crossing(schedule: Schedule, t: int, hx: list[Tensor], initial: Sequence[float]) -> list[Tensor]:
    """States of the reverse direction on their way over the edge before step ``t``: ``initial`` where it is reset."""
    if schedule.resets is None:
        return hx
    fresh = schedule.resets[:, t]
    if schedule.lengths is not None:  # a row that has not begun yet keeps its initial state
        fresh = fresh & (t < schedule.lengths)
    return [h.masked_fill(fresh[:, None], value) for h, value in zip(hx, initial)]


def in_chunks(
    run: Callable,
    chunks: int,
    x: Tensor,
    schedule: Schedule,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    initial: Sequence[float],
) -> tuple[Tensor, list[Tensor]]:
    """``run(x, schedule, hx, weights)``, one chunk of time and one direction after another.

    ``run`` returns the output and the final states, then perhaps other sequences like the output; so does this. States
    are ``initial`` after a reset.
    """
    spans, directions = spans_of(x, schedule, chunks), hx[0].size(0)
    per_direction = len(weights) // directions
    sequences, finals = [], []
    for d in range(directions):
        reverse = d >= schedule.forwards
        group = list(weights[d * per_direction : (d + 1) * per_direction])
        states = [h[d : d + 1] for h in hx]
        pieces = []
        for span in reversed(spans) if reverse else spans:
            if reverse and span is not spans[-1]:
                states = _crossing(schedule, span.end, states, initial)
            part, entering = span.schedule.part(d, span.rows)._replace(forwards=int(not reverse)), span.entering(states)
            output, after = checkpoint(
                run, span.x, part, entering, group, use_reentrant=False, preserve_rng_state=False
            )
            pieces.append((output, *after[len(hx) :]))
            states = span.leaving(after, states)
        sequences.append([torch.cat(parts) for parts in zip(*(reversed(pieces) if reverse else pieces))])
        finals.append(states)
    output, *more = (torch.cat(parts, -1) if directions > 1 else parts[0] for parts in zip(*sequences))
    return output, [*(torch.cat(states) for states in zip(*finals)), *more]
