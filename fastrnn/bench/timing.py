"""Interleaved timing of two or more sides in one process: A B A B …, so that drift falls on all of them alike."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

# A step that keeps the host busy for this share of its time on the device is bound by launches, not by the GPU.
LAUNCH_BOUND_SHARE = 0.8


@dataclass(frozen=True)
class Pace:
    """How long to measure a case: until `seconds` are used up, within `least` and `most` rounds."""

    seconds: float = 2.0
    least: int = 5
    most: int = 500


@dataclass(frozen=True)
class Spread:
    """Times of one side in milliseconds."""

    median: float
    p20: float
    p80: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:9.4f} ms   p20 {self.p20:.4f}  p80 {self.p80:.4f}  of {self.repeats}"


def spread(samples: Sequence[float]) -> Spread:
    """Median and 20th / 80th percentile (interpolated) of times in milliseconds."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return Spread(statistics.median(samples), fifths[0], fifths[3], len(samples))


class ClockRounds:
    """Rounds timed by the wall clock: for work that is done when the call returns."""

    def __call__(self, sides: Sequence[Callable], inputs: Iterator, rounds: int) -> list[list[float]]:
        samples: list[list[float]] = [[] for _ in sides]
        for _ in range(rounds):
            for side, times in zip(sides, samples, strict=True):
                chosen = next(inputs)
                begin = time.perf_counter()
                side(chosen)
                times.append((time.perf_counter() - begin) * 1e3)
        return samples


class EventRounds:
    """Rounds timed by CUDA events; the host runs ahead and waits once, after the last round.

    `host_ms` collects the host's time per call and side, which tells a launch-bound case from the others.
    """

    def __init__(self, sides: int):
        self.host_ms: list[list[float]] = [[] for _ in range(sides)]

    def __call__(self, sides: Sequence[Callable], inputs: Iterator, rounds: int) -> list[list[float]]:
        marks: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in sides]
        for _ in range(rounds):
            for side, events, host in zip(sides, marks, self.host_ms, strict=True):
                chosen = next(inputs)
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin = time.perf_counter()
                start.record()
                side(chosen)
                end.record()
                host.append((time.perf_counter() - begin) * 1e3)
                events.append((start, end))
        torch.cuda.synchronize()
        return [[start.elapsed_time(end) for start, end in events] for events in marks]

    def launch_bound(self, samples: Sequence[Sequence[float]]) -> bool:
        """Whether the host was the slower part of at least one side."""
        return any(
            statistics.median(host) >= LAUNCH_BOUND_SHARE * statistics.median(device)
            for host, device in zip(self.host_ms, samples, strict=True)
        )


def interleave(sides: Sequence[Callable], inputs: Sequence, pace: Pace, rounds_of: Callable) -> list[list[float]]:
    """Times in milliseconds per side, after warm-up.

    Consecutive calls take consecutive input sets, so no side finds the inputs that the other has just read, unless
    there is only one set.
    """
    supply = itertools.cycle(inputs)
    rounds_of(sides, supply, 2)  # first calls: allocations, plans, lazily built primitives
    begin = time.perf_counter()
    rounds_of(sides, supply, 1)
    per_round = max(time.perf_counter() - begin, 1e-6)
    rounds_of(sides, supply, min(20, int(0.1 * pace.seconds / per_round)))
    if isinstance(rounds_of, EventRounds):
        rounds_of.host_ms = [[] for _ in sides]
        flush_device_cache()
    rounds = max(pace.least, min(pace.most, int(pace.seconds / per_round)))
    collects = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection in the middle would be charged to whichever side is running
    try:
        return rounds_of(sides, supply, rounds)
    finally:
        if collects:
            gc.enable()


def flush_device_cache() -> None:
    """Overwrite more than the L2 of the current GPU, so that no input set is in it because it was just made."""
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    torch.empty(2 * max(size, 1), dtype=torch.uint8, device="cuda").zero_()


def captured(step: Callable, inputs) -> tuple[Callable, tuple]:
    """The step as a CUDA graph: a function that replays it, and the tensors each replay writes.

    The inputs are the captured ones at every replay, so they stay in cache; the label `graph` says so.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(inputs)
    return lambda _inputs: graph.replay(), results
