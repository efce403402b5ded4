"""A stack of layers in chunks of time on several CUDA streams, so that a layer begins before the one below it ends.

Chunk k of layer l runs when chunk k - 1 of layer l and chunk k of layer l - 1 are done. Layers take turns on a few
lanes, one CUDA stream each, as many as the planner finds room for (``plan_wavefront`` in csrc/cuda/tiers.h). Nothing
waits on the host, so all of it can be captured in a CUDA graph. Autograd runs the backward of a layer's chunk on the
stream of its forward, synchronises the streams itself and begins with what was recorded last: the backward pass is a
wavefront too.

Results are those of one layer after another: h crosses from chunk to chunk as it does from step to step, and c in the
type in which the kernels accumulate. In 16-bit types the gradients of h at the edges of chunks are rounded to that
type, and so are the chunks' gradients of a weight and their sums. Dropout is drawn chunk by chunk in the order of
:func:`tasks`: a seed gives the same values every time, but other ones than layer after layer.

Source: Appleyard, Kocisky and Blunsom 2016, "Optimizing Performance of Recurrent Neural Networks on GPUs".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..reference import Schedule
from .chunks import spans_of
from .extras import Drops

CALLER = -1
"""As a lane: the stream that was current when the lanes were made."""


@functools.cache
def _stream(device: torch.device, lane: int) -> torch.cuda.Stream:
    """Made once: streams of a call's own would be new to the allocator, which keeps free memory by the stream."""
    return torch.cuda.Stream(device)


class Lanes:
    """Streams beside the caller's. What is launched on one lane runs in order; nothing is ordered between lanes but by
    :meth:`wait`."""

    def __init__(self, device: torch.device, count: int) -> None:
        self._streams = [*(_stream(device, lane) for lane in range(count)), torch.cuda.current_stream(device)]

    def on(self, lane: int) -> AbstractContextManager:
        """Within, everything is launched on the lane."""
        return torch.cuda.stream(self._streams[lane])

    def mark(self, lane: int) -> torch.cuda.Event:
        """All that has been launched on the lane."""
        return self._streams[lane].record_event()

    def wait(self, lane: int, mark: torch.cuda.Event) -> None:
        """What is launched on the lane from now on runs after ``mark``."""
        self._streams[lane].wait_event(mark)

    def use(self, lane: int, tensors: Sequence[Tensor]) -> None:
        """The lane uses these, which another made: the allocator keeps their memory until the lane is done with it."""
        for tensor in tensors:
            tensor.record_stream(self._streams[lane])


def tasks(layers: int, chunks: int, lanes: int) -> Iterator[tuple[int, int]]:
    """(layer, chunk) in the order of launching: ``lanes`` layers at a time, along the diagonals."""
    for first in range(0, layers, lanes):
        group = range(first, min(first + lanes, layers))
        for diagonal in range(chunks + len(group) - 1):
            for layer in group:
                if 0 <= diagonal - (layer - first) < chunks:
                    yield layer, diagonal - (layer - first)


def run(
    layer: Callable,
    lanes: Lanes,
    count: int,
    chunks: int,
    x: Tensor,
    schedule: Schedule,
    hx: Sequence[Sequence[Tensor]],
    weights: Sequence[Sequence[Tensor | None]],
    dropout: float = 0.0,
    all_states: bool = False,
    drops: Sequence[Drops] = (),
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """``layer(x, schedule, hx, weights)`` for every layer with its ``hx`` and ``weights`` and what it ``drops``,
    in time, on ``count`` lanes.

    ``layer`` returns the output and the final states, then perhaps other sequences like the output. Between layers
    ``dropout`` is applied. Returns the final states of every layer, and the sequences of every layer or, unless
    ``all_states``, of the last alone.
    """
    top, width, spans = len(hx) - 1, len(hx[0]), spans_of(x, schedule, chunks)
    shared = [t for span in spans for t in (span.schedule.lengths, span.schedule.resets) if t is not None]
    inputs, states = [span.x for span in spans], [list(h) for h in hx]
    pieces: list[list[tuple[Tensor, ...]]] = [[] for _ in hx]
    done: dict[tuple[int, int], object] = {}
    # The other lanes wait for this one, as the caller waits for the last layer, which has waited for all.
    lanes.wait(0, lanes.mark(CALLER))
    lanes.use(0, inputs)
    for l, k in tasks(len(hx), len(spans), count):
        lane, span = l % count, spans[k]
        if l > 0:
            lanes.wait(lane, done[l - 1, k])
            lanes.use(lane, [inputs[k]])
        if k == 0:
            own = (*weights[l], *(drops[l].tensors if drops else ()))
            lanes.use(lane, [*states[l], *(w for w in own if w is not None), *shared])
        with lanes.on(lane):
            if k == 0:
                states[l][1:] = [c.float() if c.element_size() == 2 else c for c in states[l][1:]]
            part = drops[l].on(span.schedule).part(0, span.rows) if drops else span.schedule
            output, after = layer(inputs[k], part, span.entering(states[l]), weights[l])
            states[l] = span.leaving(after, states[l])
            if l == top or all_states:
                pieces[l].append((output, *after[width:]))
            if k == len(spans) - 1:
                states[l] = [h.to(x.dtype) for h in states[l]]
            inputs[k] = torch.dropout(output, dropout, True) if dropout and l < top else output
        done[l, k] = lanes.mark(lane)
    lanes.wait(CALLER, done[top, len(spans) - 1])
    lanes.use(CALLER, [t for group in (*states, *(part for parts in pieces for part in parts)) for t in group])
    return states, [[torch.cat(parts) for parts in zip(*group)] for group in pieces if group]
