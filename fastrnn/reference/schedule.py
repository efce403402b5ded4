"""Which steps the rows of a batch have, where the state of a step comes from, and what of it is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._spec import FIRST_STEP, FORWARDS


class Schedule(NamedTuple):
    """What a layer call says about time. ``batch_sizes`` excludes ``lengths`` and ``resets``.

    ``batch_sizes``  (T,) int64 on the CPU: rows per step of a packed batch, not increasing
    ``lengths``      (B,) int64: row b has the steps before ``lengths[b]``. The backward direction begins at its last;
                     output past it is zero, and the final state of a row without steps is its initial one
    ``resets``       (B, T) bool: where set, no state crosses the edge between step t - 1 and step t, in either
                     direction, nor does the initial state enter step 0 forwards; there states are ``Cell.initial``
    ``mask``         (D, B, R): what h is multiplied with on its way to the recurrent weights, and in a cell without
    ``seeds``        (D, B) int64: a key for each row, of what zoneout draws; without, its expectation
    ``forwards``     so many directions run forwards in time, those that follow backwards
    ``first_step``   what step 0 is in the sequence that this may be a part of
    ``rates``        of zoneout, of h and of the other states; or nothing
    """

    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None
    mask: Tensor | None = None
    seeds: Tensor | None = None
    forwards: int = 1
    first_step: int = 0
    rates: tuple[float, ...] = ()

    @classmethod
    def of_call(cls, given: Sequence[Tensor | None], spec: Sequence[int], scalars: Sequence[float]) -> Schedule:
        """That of a layer call (``_spec``) of a cell without scalars of its own."""
        return cls(*given, spec[FORWARDS], spec[FIRST_STEP], tuple(scalars))

    @property
    def given(self) -> list[Tensor | None]:
        """As a call has it, beside ``forwards`` (``_spec``)."""
        return list(self[:5])

    @property
    def is_dropping(self) -> bool:
        return self.mask is not None or bool(self.rates)

    def part(self, d: int, rows: int) -> Schedule:
        """With what is dropped of direction ``d`` and the first ``rows`` alone."""
        if not self.is_dropping:
            return self
        mask = None if self.mask is None else self.mask[d : d + 1, :rows]
        return self._replace(mask=mask, seeds=None if self.seeds is None else self.seeds[d : d + 1, :rows])

    @property
    def is_masked(self) -> bool:
        return self.lengths is not None or self.resets is not None


class Masks:
    """The masks of a direction, (T, B, 1) or None: ``there``, the steps that a row has, and ``fresh``, those that start
    anew."""

    def __init__(self, schedule: Schedule, steps: int, reverse: bool) -> None:
        self.there = self.fresh = None
        if schedule.lengths is not None:
            position = torch.arange(steps, device=schedule.lengths.device).unsqueeze(1)
            self.there = (position < schedule.lengths).unsqueeze(-1)
        if schedule.resets is not None:
            self.fresh = schedule.resets.t().unsqueeze(-1)
            if reverse:  # what enters step t has passed the edge before step t + 1, unless the row begins at t
                crossed = self.fresh if self.there is None else self.fresh & self.there
                self.fresh = torch.cat([crossed[1:], torch.zeros_like(crossed[:1])])


def visible(value: Tensor, there: Tensor | None) -> Tensor:
    """``value``, zero in rows that are not ``there``."""
    return value if there is None else value.masked_fill(~there, 0)
