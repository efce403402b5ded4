"""One case under one setting: the gate first, then memory, then the times of both sides."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import fastrnn

from .case import Case, Side, build, make_inputs, make_weights, rotation_count
from .gate import Error, deviation, errors, exact_results, floor
from .kernels import NOBODY, Served, served_by
from .memory import training_bytes
from .resets import torch_side
from .timing import ClockRounds, EventRounds, Pace, Spread, captured, interleave, spread

PRECISIONS = ("tf32", "ieee")

# Share of the largest output by which an opponent other than torch may be off: only to see that it is the same layer.
OPPONENT_TOLERANCE = 0.05


class Refused(Exception):
    """A measurement that cannot be made, with the reason as its text."""


@dataclass(frozen=True)
class Setting:
    """Everything besides the case that a time depends on.

    `precision` is torch's fp32_precision for cuDNN's RNN and for matmul ("" leaves both alone); `graph` is "auto"
    (launch-bound cases are timed a second time as a CUDA graph), "on" or "off".
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    backend: str = "auto"
    threads: int = 1
    precision: str = ""
    graph: str = "auto"
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True)
class Measurement:
    """The outcome for a case: WRONG carries errors and no times; refused or error carries the reason alone, and
    `cause` the type of an error."""

    status: str
    launch: str = "eager"
    served: Served = NOBODY
    detail: str = ""
    worst: Error | None = None
    ours: Spread | None = None
    other: Spread | None = None
    ours_bytes: int | None = None
    other_bytes: int | None = None
    cause: type[Exception] | None = None

    @property
    def ratio(self) -> float:
        """Opponent's median time over ours: above 1 we are faster."""
        return self.other.median / self.ours.median


# Makes the other side of a comparison from a case, a device and the weights.
Opponent = Callable[[Case, torch.device, dict[str, Tensor]], Side]


def measure(case: Case, setting: Setting, opponent: Opponent | None = None) -> list[Measurement]:
    """Measure fastrnn's module of the case's cell against `opponent` (default: torch.nn's).

    One measurement, or two where a CUDA graph is timed as well. What a side raises becomes a measurement of status
    "error", so that a run over many cases goes on.
    """
    try:
        with _surroundings(setting):
            return _measure(case, setting, opponent)
    except Refused as reason:
        return [Measurement("refused", detail=str(reason))]
    except Exception as failure:  # reported in the row and turned into the exit status
        return [Measurement("error", detail=_in_words(failure), cause=type(failure))]


def _measure(case: Case, setting: Setting, opponent: Opponent | None) -> list[Measurement]:
    if case.resets and (case.packed or case.directions == 2):
        raise Refused("resets: measured on padded input in one direction")
    device = setting.device
    weights = build(case.layer(nn), case, device, make_weights(case)).state_dict()
    first = make_inputs(case, device)[0]
    exact = exact_results(case, weights, first, device)
    ours = Side(build(case.layer(fastrnn), case, device, weights), case)
    torchs = torch_side(case, device, weights, first)
    other = opponent(case, device, weights) if opponent else torchs
    other.prepare(first)

    def gate(our_results: Sequence[Tensor]) -> list[Error]:
        return errors(ours.names, our_results, torchs(first), exact, floor(case, setting.precision))

    with _forced(setting.backend):
        found = gate(ours(first))
        with torch.set_grad_enabled(ours.training):  # after the first call, which may change the choice
            served = served_by(fastrnn.explain(ours.module, first.x, **first.asked), ours.training)
        if not all(error.ok for error in found):
            return [_wrong("eager", served, found)]
        if other is not torchs:
            _check_opponent(other(first), exact)
        bytes_kept = {}
        if ours.training:
            bytes_kept = {
                "ours_bytes": training_bytes(ours, first, device),
                "other_bytes": training_bytes(other, first, device),
            }
        against = f"torch.nn by {other.writing}" if other is torchs and case.resets else ""
        times, launch_bound = _time(case, setting, (ours, other), first)
        rows = [Measurement("ok", "eager", served, against, found[0], *times, **bytes_kept)]
        if device.type == "cuda" and (setting.graph == "on" or (setting.graph == "auto" and launch_bound)):
            rows.append(_try_graph(setting, (ours, other), first, served, gate))
    return rows


def _try_graph(setting: Setting, *rest) -> Measurement:
    """What goes wrong with the graph must not cost the eager times."""
    try:
        return _measure_graph(setting, *rest)
    except Exception as failure:
        return Measurement("error", "graph", detail=_in_words(failure))


def _time(case: Case, setting: Setting, sides: tuple[Side, Side], first) -> tuple[list[Spread], bool]:
    if setting.device.type != "cuda":
        return [spread(times) for times in interleave(sides, [first], setting.pace, ClockRounds())], False
    calls = len(sides) * setting.pace.most
    inputs = make_inputs(case, setting.device, rotation_count(first, setting.device, calls))
    for side, given in itertools.product(sides, inputs):
        side.prepare(given)
    rounds = EventRounds(len(sides))
    samples = interleave(sides, inputs, setting.pace, rounds)
    return [spread(times) for times in samples], rounds.launch_bound(samples)


def _measure_graph(setting: Setting, sides: tuple[Side, Side], first, served: Served, gate: Callable) -> Measurement:
    """Both sides as CUDA graphs; our replay passes the gate too: work left out of a capture would look fast."""
    replays = []
    for who, side in zip(("fastrnn", "the opponent"), sides, strict=True):
        try:
            replays.append(captured(side, first))
        except RuntimeError as failure:
            torch.cuda.synchronize()
            return Measurement("refused", "graph", served, f"capturing {who}: {_in_words(failure)}")
    replay, results = replays[0]
    for result in results:
        result.detach().zero_()  # what the replay does not write stays wrong
    replay(first)
    torch.cuda.synchronize()
    found = gate(results)
    if not all(error.ok for error in found):
        return _wrong("graph", served, found)
    samples = interleave([replay for replay, _ in replays], [first], setting.pace, EventRounds(len(sides)))
    return Measurement("ok", "graph", served, "", found[0], *map(spread, samples))


def _check_opponent(results: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Refuse an opponent whose output is not the layer's: it would be timed doing something else."""
    found = deviation(results[0], exact[0])
    if not found <= OPPONENT_TOLERANCE:
        raise Refused(f"the opponent's output is off by {found:.1e} of its largest value; allowed {OPPONENT_TOLERANCE}")


def _wrong(launch: str, served: Served, found: list[Error]) -> Measurement:
    return Measurement("WRONG", launch, served, "; ".join(str(e) for e in found if not e.ok), found[0])


def _in_words(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}".splitlines()[0]


def _forced(backend: str):
    if backend != "auto":
        return fastrnn.backend(backend)
    if os.environ.get("FASTRNN_BACKEND"):
        raise Refused("backend auto: FASTRNN_BACKEND forces one; unset it, or name the backend to measure")
    return contextlib.nullcontext()


@contextlib.contextmanager
def _surroundings(setting: Setting) -> Iterator[None]:
    """Threads and fp32 precision of the setting, for both sides; as before afterwards."""
    knobs = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul) if setting.precision else ()
    if not all(hasattr(knob, "fp32_precision") for knob in knobs):
        raise Refused(f"precision {setting.precision}: torch {torch.__version__} has no fp32_precision setting")
    threads, before = torch.get_num_threads(), [knob.fp32_precision for knob in knobs]
    torch.set_num_threads(setting.threads)
    try:
        for knob in knobs:
            knob.fp32_precision = setting.precision
        yield
    finally:
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()  # the next case has other sizes
        torch.set_num_threads(threads)
        for knob, value in zip(knobs, before, strict=True):
            knob.fp32_precision = value
