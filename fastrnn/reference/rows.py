"""What the cells share: the weights of a direction by name, and the bookkeeping of sequences of unequal length.

Packed sequences are sorted by length, so walking forward in time only ever loses rows and walking backward only ever
gains them. Steps are views into one (N, ...) buffer; a padded batch is the case in which all steps have B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .._spec import FIRST_PARAM
from .scratch import Scratch


class Direction(NamedTuple):
    """The weights of one direction of a layer. All but the first may be absent."""

    w_ih: Tensor
    w_hh: Tensor | None
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None
    params: tuple[Tensor, ...]


def split_weights(weights: Sequence[Tensor | None], directions: int) -> list[Direction]:
    """A layer's weights, by slot (``_spec``), grouped by direction."""
    count = len(weights) // directions
    groups = [weights[d * count : (d + 1) * count] for d in range(directions)]
    return [Direction(*group[:FIRST_PARAM], tuple(group[FIRST_PARAM:])) for group in groups]


def row_counts(x: Tensor, batch_sizes: Tensor | None) -> list[int]:
    """How many rows every step has.

    Raises:
        RuntimeError: ``batch_sizes`` are not int64, with the words of torch's own layers.
    """
    if batch_sizes is None:
        return [x.size(1)] * x.size(0)
    if batch_sizes.dtype is not torch.int64:
        raise RuntimeError(f"expected batch_sizes of scalar type Long (int64), got {batch_sizes.dtype}")
    return batch_sizes.tolist()


def step_order(steps: int, reverse: bool) -> range:
    """The order in which a direction visits the steps."""
    return range(steps - 1, -1, -1) if reverse else range(steps)


def upcast(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """16-bit tensors as float32, others as they are."""
    low = (torch.float16, torch.bfloat16)
    return [t.float() if t is not None and t.dtype in low else t for t in tensors]


def resized(state: Tensor, rows: int, waiting: Tensor, finished: Tensor | None = None) -> Tensor:
    """``state`` with as many rows as the next step has.

    Rows that drop out leave their value in ``finished``; rows that come in take theirs from ``waiting``.
    """
    have = state.size(0)
    if rows < have:
        if finished is not None:
            finished[rows:have] = state[rows:]
        return state[:rows]
    if rows > have:
        return torch.cat([state, waiting[have:rows]])
    return state


def previous(sequence: Tensor, initial: Tensor, counts: Sequence[int], reverse: bool, scratch: Scratch) -> Tensor:
    """For every row of ``sequence`` the state its step started from, as one tensor shaped like it."""
    if counts[0] == counts[-1]:
        rest = sequence[counts[0] :] if reverse else sequence[: len(sequence) - counts[0]]
        return torch.cat([rest, initial] if reverse else [initial, rest], out=scratch.empty(*sequence.shape))
    rows = sequence.split(counts)
    order = step_order(len(counts), reverse)
    pieces = [initial[: counts[order[0]]]]
    pieces += [resized(rows[before], counts[t], initial) for before, t in pairwise(order)]
    return torch.cat(pieces[::-1] if reverse else pieces, out=scratch.empty(*sequence.shape))
