"""What a user of torch.nn does about episodes: its layers have no reset_mask.

A loop that stands in for a layer that torch.nn does not have takes a mask, and needs none of this.

Two ways to write it, and torch.nn is timed with the one that is faster on the case and device at hand:

``segments``  a Python loop over the stretches between steps at which any row resets; before each, those rows' states
              are set to zero. With many rows that comes to a loop over nearly all steps.
``episodes``  the rows are cut into their episodes, which run side by side as a PackedSequence.

Both look at the mask on their first call alone; what they make of it is free at every later one, though a user has a
new mask for every batch.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .case import Case, Inputs, Side, build

ROUNDS = 3  # calls of each writing, to find the faster


def torch_class(case: Case, writing: str = "segments") -> type[nn.Module]:
    """torch.nn's class of the case's cell; with resets, one that is called with a reset_mask (B, T) besides."""
    layer = case.layer(nn)
    if not (case.resets and case.is_torchs):
        return layer
    return type(f"{case.cell}By{writing.title()}", (WRITINGS[writing], layer), {"_mask": None})


def torch_side(case: Case, device, weights: dict[str, Tensor], first: Inputs) -> Side:
    """torch.nn's side, by the faster writing where there are resets."""
    if not (case.resets and case.is_torchs):
        return Side(build(torch_class(case), case, device, weights), case)
    sides = [Side(build(torch_class(case, name), case, device, weights), case, name) for name in WRITINGS]
    return min(sides, key=lambda side: _seconds(side, first, device))


def _seconds(side: Side, inputs: Inputs, device) -> float:
    """The shortest of a few calls after a first one."""
    times = []
    for _ in range(1 + ROUNDS):
        begin = time.perf_counter()
        side(inputs)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


class _Segments:
    def forward(self, x: Tensor, hx, reset_mask: Tensor):
        if self._mask is not reset_mask:
            self._mask, self._lengths, self._fresh = reset_mask, *_segments(reset_mask)
        outputs, state = [], hx
        for part, fresh in zip(x.split(self._lengths), self._fresh, strict=True):
            if fresh is not None:
                state = _each(lambda h, fresh=fresh: h.masked_fill(fresh, 0), state)
            output, state = super().forward(part, state)
            outputs.append(output)
        return torch.cat(outputs), state


def _segments(mask: Tensor) -> tuple[list[int], list[Tensor | None]]:
    """Lengths of the segments, and for each the rows (1, B, 1) that start it from zero, None for no row."""
    steps, any_reset = mask.size(1), mask.any(0).tolist()
    starts = [t for t in range(steps) if t == 0 or any_reset[t]]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], steps], strict=True)]
    return lengths, [mask[:, t].reshape(1, -1, 1) if any_reset[t] else None for t in starts]


class _Episodes:
    def forward(self, x: Tensor, hx, reset_mask: Tensor):
        if self._mask is not reset_mask:
            self._mask, (self._sizes, *indices) = reset_mask, _episodes(reset_mask)
            self._order, self._back, self._initial, self._last = (index.to(x.device) for index in indices)
        packed = PackedSequence(x.flatten(0, 1).index_select(0, self._order), self._sizes)
        output, state = super().forward(packed, _each(self._begin, hx))
        output = output.data.index_select(0, self._back).unflatten(0, x.shape[:2])
        return output, _each(lambda h: h.index_select(1, self._last), state)

    def _begin(self, h: Tensor) -> Tensor:
        """The states that the episodes begin with: those given, and zeros, which stand in a row after them."""
        return torch.cat((h, h.new_zeros(h.size(0), 1, h.size(2))), 1).index_select(1, self._initial)


def _episodes(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """batch_sizes of the packed episodes, longest first, and four indices.

    From packed place to t * B + b and back; from episode to the row whose initial state it takes, B for none; from row
    to its last episode.
    """
    rows, steps = mask.shape
    begins = mask.cpu().clone()
    begins[:, 0] = True
    row, start = begins.nonzero(as_tuple=True)
    last_of_row = torch.cat((row[1:] != row[:-1], torch.tensor([True])))
    end = torch.where(last_of_row, steps, start.roll(-1))
    order = (end - start).argsort(descending=True, stable=True)
    row, start, length, last_of_row = row[order], start[order], (end - start)[order], last_of_row[order]
    offset = torch.arange(int(length[0]))
    taken = offset.unsqueeze(1) < length  # (longest, episodes), in the order of a PackedSequence
    place = ((start + offset.unsqueeze(1)) * rows + row)[taken]
    initial = torch.where((start == 0) & ~mask.cpu()[row, 0], row, rows)
    last = last_of_row.nonzero().squeeze(1)
    return taken.sum(1), place, place.argsort(), initial, last[row[last].argsort()]


WRITINGS = {"segments": _Segments, "episodes": _Episodes}


def _each(change, state):
    """`change` of h, or of h and c."""
    return tuple(map(change, state)) if isinstance(state, tuple) else change(state)
