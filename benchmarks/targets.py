"""The speeds to reach: opponent's time over ours, as a geometric mean over a grid and as a worst case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ANY = ""


@dataclass(frozen=True)
class Target:
    """A goal for the rows it applies to; `goals` maps (cell, mode) or (ANY, mode) to a ratio, `worst` bounds each case.

    `serving` says which implementation the goal is for: "kernels" (the compiled extension chooses), "reference" (the
    pure-PyTorch loop, forced) or "fallback" (the automatic choice where no extension is built).
    """

    grids: tuple[str, ...]
    device: str  # "cpu", or a part of the GPU's name
    goals: Mapping[tuple[str, str], float]
    worst: float | None = None
    dtype: str = ANY
    serving: str = "kernels"
    opponent: str = "torch"

    def applies(self, row: Mapping[str, str]) -> bool:
        """Whether the CSV row is one that this goal speaks of."""
        on_device = not row["cuda"] if self.device == "cpu" else self.device in row["device"]
        return (
            row["grid"] in self.grids
            and on_device
            and self.dtype in (ANY, row["dtype"])
            and self.opponent == row["opponent"]
            and self.serving == serving(row)
        )

    def goal(self, cell: str, mode: str) -> float | None:
        """The geometric mean wanted, None where nothing is promised."""
        return self.goals.get((cell, mode), self.goals.get((ANY, mode)))


def serving(row: Mapping[str, str]) -> str:
    """Which implementation a row is about, in the words of Target."""
    if row["backend"] in ("reference", "aten"):
        return row["backend"]
    return "kernels" if row["extension"] == "yes" else "fallback"


def _goals(forward: Mapping[str, float], training: Mapping[str, float]) -> dict[tuple[str, str], float]:
    return {(cell, mode): v for mode, m in (("forward", forward), ("training", training)) for cell, v in m.items()}


TARGETS = (
    Target(
        ("cpu",),
        "cpu",
        _goals({"LSTM": 1.4, "GRU": 2.3, "RNN": 1.5}, {"LSTM": 1.6, "GRU": 3.0, "RNN": 1.8}),
        worst=0.95,
        dtype="float32",
    ),
    Target(
        ("cpu",),
        "cpu",
        _goals({"LSTM": 1.6, "GRU": 4.5, "RNN": 2.0}, {"LSTM": 2.6, "GRU": 5.5, "RNN": 2.5}),
        worst=1.0,
        dtype="bfloat16",
    ),
    Target(
        ("cpu",),
        "cpu",
        _goals({"LSTM": 0.6, "GRU": 1.0}, {"LSTM": 0.7, "GRU": 1.5}),
        dtype="float32",
        serving="reference",
    ),
    Target(("cpu",), "cpu", _goals({ANY: 1.0}, {"LSTM": 1.0, "GRU": 1.3}), worst=0.95, serving="fallback"),
    Target(("sizes", "odd", "rl", "decode"), "H200", _goals({ANY: 2.0}, {ANY: 2.0}), worst=1.0),
    Target(("packed",), "H200", _goals({ANY: 5.0}, {ANY: 5.0}), worst=2.0),
    Target(("cudnn-best",), "H200", _goals({ANY: 1.2}, {ANY: 1.2}), worst=1.0),
    Target(("long",), "H200", _goals({ANY: 2.0}, {ANY: 2.0}), worst=1.5, opponent="flashrnn"),
)


def target_of(row: Mapping[str, str]) -> Target | None:
    """The target that speaks of this row, if any."""
    return next((target for target in TARGETS if target.applies(row)), None)
