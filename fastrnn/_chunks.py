"""A layer computed in chunks of time that backward computes again, so that no more than one chunk's values are kept.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; ``torch.utils.checkpoint``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .reference import Timing


def _part(timing: Timing, begin: int, end: int, reverse: bool) -> Timing:
    """What ``timing`` says about the steps from ``begin`` to ``end``, for one direction."""
    batch_sizes, lengths, resets, _ = timing
    return Timing(
        None if batch_sizes is None else batch_sizes[begin:end],
        None if lengths is None else (lengths - begin).clamp(0, end - begin),
        None if resets is None else resets[:, begin:end],
        reverse,
    )


def _crossing(timing: Timing, t: int, hx: list[Tensor]) -> list[Tensor]:
    """States of the reverse direction on their way over the edge before step ``t``."""
    if timing.resets is None:
        return hx
    fresh = timing.resets[:, t]
    if timing.lengths is not None:  # a row that has not begun yet keeps its initial state
        fresh = fresh & (t < timing.lengths)
    return [h.masked_fill(fresh[:, None], 0) for h in hx]


def in_chunks(
    run: Callable, chunks: int, x: Tensor, timing: Timing, hx: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """``run(x, timing, hx, weights)``, one chunk of time and one direction after another.

    ``run`` returns the output and the final states, then perhaps another sequence like the output; so does this.
    """
    batch_sizes = timing.batch_sizes
    T, directions = x.size(0) if batch_sizes is None else batch_sizes.size(0), hx[0].size(0)
    edges = [T * k // chunks for k in range(chunks + 1)]
    spans = [(begin, end) for begin, end in zip(edges, edges[1:]) if begin < end]
    # Cut at once: the gradient of slices one by one would be as many tensors of the whole sequence.
    rows = [end - begin if batch_sizes is None else int(batch_sizes[begin:end].sum()) for begin, end in spans]
    parts = list(zip(spans, x.split(rows)))
    per_direction = len(weights) // directions
    sequences, finals = [], []
    for d in range(directions):
        reverse = timing.reverse or d == 1
        group = list(weights[d * per_direction : (d + 1) * per_direction])
        states = [h[d : d + 1] for h in hx]
        pieces = []
        for (begin, end), data in reversed(parts) if reverse else parts:
            if reverse and end < T:
                states = _crossing(timing, end, states)
            alive = states[0].size(1) if batch_sizes is None else int(batch_sizes[begin])
            part = _part(timing, begin, end, reverse)
            entering = [h[:, :alive] for h in states]
            output, after = checkpoint(run, data, part, entering, group, use_reentrant=False, preserve_rng_state=False)
            pieces.append((output, *after[len(hx) :]))
            states = [torch.cat([new, old[:, alive:]], 1) for new, old in zip(after, states)]
        sequences.append([torch.cat(parts) for parts in zip(*(reversed(pieces) if reverse else pieces))])
        finals.append(states)
    output, *more = (torch.cat(parts, -1) if directions > 1 else parts[0] for parts in zip(*sequences))
    return output, [*(torch.cat(states) for states in zip(*finals)), *more]
