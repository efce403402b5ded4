"""One case under one setting: the gate first, then memory, then the times of both sides."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import Explanation

from . import gate
from .case import Case, Inputs, Side, build, make_inputs, make_weights, rotation_count, to_float64
from .floor import floor_ms
from .gate import Error
from .memory import training_bytes
from .resets import torch_class, torch_side
from .timing import ClockRounds, EventRounds, Pace, Spread, captured, interleave, spread

PRECISIONS = ("tf32", "ieee")

# Share of the largest output by which an opponent other than torch may be off: only to see that it is the same layer.
OPPONENT_TOLERANCE = 0.05


def precisions_of(asked: str, device: torch.device, dtype: str) -> tuple[str, ...]:
    """The settings of `precision` to measure under: float32 products on CUDA have two; `asked` is one, or "both"."""
    if device.type != "cuda" or dtype != "float32":
        return ("",)
    return PRECISIONS if asked == "both" else (asked,)


class Refused(Exception):
    """A measurement that cannot be made, with the reason as its text."""


@dataclass(frozen=True)
class Setting:
    """Everything besides the case that a time depends on.

    `precision` is torch's fp32_precision for cuDNN's RNN and for matmul ("" leaves both alone); `graph` is "auto"
    (launch-bound cases are timed a second time as a CUDA graph), "on" or "off". `floor` says that the machine's peaks
    are measured, once a process, and times held against them.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    backend: str = "auto"
    threads: int = 1
    precision: str = ""
    graph: str = "auto"
    pace: Pace = field(default_factory=Pace)
    floor: bool = False


class Served(NamedTuple):
    """The backend, and for backend cuda the kernels: `cluster (…)`, `grid (…)`, `cta (…)` or `step (…)`.

    The first word of a kernel is its tier. Without gradients there is no backward kernel.
    """

    backend: str = ""
    forward_kernel: str = ""
    backward_kernel: str = ""

    def __str__(self) -> str:
        tiers = [kernel.partition(" ")[0] for kernel in (self.forward_kernel, self.backward_kernel) if kernel]
        return " ".join((self.backend, " + ".join(tiers))).rstrip()


NOBODY = Served()


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
    floor_ms: float | None = None
    cause: type[Exception] | None = None

    @property
    def ratio(self) -> float:
        """Opponent's median time over ours: above 1 we are faster."""
        return self.other.median / self.ours.median

    @property
    def of_floor(self) -> float | None:
        """The least time that the machine allows over ours: 1 leaves nothing to gain."""
        return self.floor_ms and self.floor_ms / self.ours.median

    def __str__(self) -> str:
        """On one line; a wrong or failed one has its reason in the place of times."""
        if self.status != "ok":
            return f"{self.status}  {self.detail}"
        text = f"{self.ratio:.2f}x  {self.other.median:.4g} -> {self.ours.median:.4g} ms"
        text += f"  {self.of_floor:.0%} of floor" if self.of_floor else ""
        if self.ours_bytes is not None:
            text += f"  {self.other_bytes / 2**20:.2f} -> {self.ours_bytes / 2**20:.2f} MiB"
        return f"{text}  ({', '.join(filter(None, (str(self.served), self.detail)))})"


# Makes the other side of a comparison from a case, a device and the weights.
Opponent = Callable[[Case, torch.device, dict[str, Tensor]], Side]


class Trial:
    """Our side and torch.nn's of a case, inputs for both, and what torch.nn gives in float64 for the very same
    (already rounded) weights and inputs."""

    def __init__(self, case: Case, setting: Setting):
        if case.resets and (case.packed or case.directions == 2):
            raise Refused("resets: measured on padded input in one direction")
        device, self.precision = setting.device, setting.precision
        self.slack = 1 if case.is_torchs else 8  # the loop of 16-bit tensors rounds its results alone
        self.weights = build(case.layer(nn), case, device, make_weights(case)).state_dict()
        self.inputs = make_inputs(case, device)[0]
        self.exact = exact_results(case, self.weights, self.inputs, device)
        self.ours = Side(build(case.layer(fastrnn), case, device, self.weights), case)
        self.torchs = torch_side(case, device, self.weights, self.inputs)

    def errors(self, results: Sequence[Tensor]) -> list[Error]:
        """Of our results, the worst first."""
        return gate.errors(self.ours.names, results, self.torchs(self.inputs), self.exact, self.precision, self.slack)


def exact_results(case: Case, weights: dict[str, Tensor], inputs: Inputs, device) -> tuple[Tensor, ...]:
    """What torch.nn gives in float64."""
    module = build(torch_class(case), case, device, weights, torch.float64)
    return tuple(result.detach() for result in Side(module, case)(to_float64(inputs)))


def check(case: Case, setting: Setting) -> list[Error]:
    """The errors of our results, the worst first; nothing is timed."""
    with _surroundings(setting):
        trial = Trial(case, setting)
        with _forced(setting.backend):
            return trial.errors(trial.ours(trial.inputs))


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
        return [Measurement("error", detail=in_words(failure), cause=type(failure))]


def _measure(case: Case, setting: Setting, opponent: Opponent | None) -> list[Measurement]:
    trial, device = Trial(case, setting), setting.device
    ours, torchs, first = trial.ours, trial.torchs, trial.inputs
    other = opponent(case, device, trial.weights) if opponent else torchs
    other.prepare(first)
    with _forced(setting.backend):
        found = trial.errors(ours(first))
        with torch.set_grad_enabled(ours.training):  # after the first call, which may change the choice
            served = served_by(fastrnn.explain(ours.module, first.x, **first.asked), ours.training)
        if not found[0].ok:
            return [_wrong("eager", served, found)]
        if other is not torchs:
            _check_opponent(other(first), trial.exact)
        kept = {}
        if ours.training:
            sides = {"ours_bytes": ours, "other_bytes": other}
            kept = {name: training_bytes(side, first, device) for name, side in sides.items()}
        against = f"torch.nn by {other.writing}" if other is torchs and other.writing else ""
        times, launch_bound = _time(case, setting, (ours, other), first)
        least = floor_ms(case, device, setting.precision) if setting.floor else None
        rows = [Measurement("ok", "eager", served, against, found[0], *times, **kept, floor_ms=least)]
        if device.type == "cuda" and (setting.graph == "on" or (setting.graph == "auto" and launch_bound)):
            rows.append(_measure_graph(setting, (ours, other), first, served, trial.errors, least))
    return rows


def served_by(explanation: Explanation, training: bool) -> Served:
    """What `fastrnn.explain` found, without the kernels that could have served and did not."""
    plan = explanation.kernels
    if plan is None:
        return Served(explanation.backend)
    return Served(explanation.backend, str(plan.forward.kernel), str(plan.backward.kernel) if training else "")


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


def _measure_graph(
    setting: Setting, sides: tuple[Side, Side], first, served: Served, errors: Callable, floor: float | None = None
) -> Measurement:
    """Both sides as CUDA graphs; our replay passes the gate too: work left out of a capture would look fast."""
    replays = []
    for who, side in zip(("fastrnn", "the opponent"), sides, strict=True):
        try:
            replays.append(captured(side, first))
        except RuntimeError as failure:
            torch.cuda.synchronize()
            return Measurement("refused", "graph", served, f"capturing {who}: {in_words(failure)}")
    try:
        replay, results = replays[0]
        for result in results:
            result.detach().zero_()  # what the replay does not write stays wrong
        replay(first)
        torch.cuda.synchronize()
        found = errors(results)
        if not found[0].ok:
            return _wrong("graph", served, found)
        samples = interleave([replay for replay, _ in replays], [first], setting.pace, EventRounds(len(sides)))
        return Measurement("ok", "graph", served, "", found[0], *map(spread, samples), floor_ms=floor)
    except Exception as failure:  # it must not cost the eager times
        return Measurement("error", "graph", detail=in_words(failure))


def _check_opponent(results: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Refuse an opponent whose output is not the layer's: it would be timed doing something else."""
    found = gate.deviation(results[0], exact[0])
    if not found <= OPPONENT_TOLERANCE:
        raise Refused(f"the opponent's output is off by {found:.1e} of its largest value; allowed {OPPONENT_TOLERANCE}")


def _wrong(launch: str, served: Served, found: list[Error]) -> Measurement:
    return Measurement("WRONG", launch, served, "; ".join(str(e) for e in found if not e.ok), found[0])


def in_words(failure: Exception) -> str:
    """The type and the first line of what was raised."""
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
