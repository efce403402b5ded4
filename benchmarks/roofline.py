"""How far a result is from what its device can do: time per step beside the floor, and the roofline plot.

`python benchmarks/roofline.py results/<device>.csv` prints a line per timed case and draws <device>-roofline.png beside
the CSV: the achieved FLOP/s over the arithmetic intensity, under the copy bandwidth and the matrix rate, and above
every point the rate at which its floor would run (floor.py). A CPU has no model of a step: its floor is the roof alone.

FLOPs are those of the products, a multiply-add being two; bytes are of what must cross the memory at least: inputs,
weights and outputs once in forward, and three times in training, for their gradients and because backward reads again.
A point above the roof says that the ceilings were taken on a busier machine, or that weights stayed in a cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cases import GRIDS
from floor import Layer, step_seconds
from machine import Ceilings, Figures, Unknown, kind_of
from plot import caption
from results import Row, case_of, latest, read_rows

from fastrnn.bench.case import Case, lengths_of
from fastrnn.bench.kernels import tier_of
from fastrnn.registry import CELLS

GATES = {cell.layer: cell.gates for cell in CELLS.values()}
COLORS = {"cta": "#7b3fa0", "cluster": "#2f9e6e", "grid": "#d9822b", "step": "#2b6cb0", "cpu": "#2b6cb0"}
OTHER_COLOR = "#888888"
MARKERS = {"forward": "o", "training": "^"}


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes of a case: of the recurrence, which goes step by step, and of the products around it."""

    case: Case

    @cached_property
    def rows(self) -> int:
        """Steps of all rows of the batch together."""
        return int(lengths_of(self.case).sum())

    @property
    def passes(self) -> int:
        """Forward; in training also the gradients of what is multiplied, and of the weights."""
        return 3 if self.case.mode == "training" else 1

    @property
    def inputs(self) -> list[int]:
        """The width of each layer's input."""
        case = self.case
        return [case.I, *[case.H * case.directions] * (case.layers - 1)]

    def _flops(self, width: int) -> int:
        return 2 * self.rows * width * GATES[self.case.cell] * self.case.H * self.case.directions

    @property
    def flops(self) -> int:
        """Of the whole call."""
        return self.passes * sum(self._flops(width) + self._flops(self.case.H) for width in self.inputs)

    @property
    def flops_in_steps(self) -> int:
        """Of the recurrence: forward and the gradient of the state; the weights' gradient is one product at the end."""
        return min(self.passes, 2) * self.case.layers * self._flops(self.case.H)

    @property
    def bytes(self) -> int:
        """What must be read or written at least."""
        case, total = self.case, 0
        for width in self.inputs:
            weights = GATES[case.cell] * case.H * (width + case.H + 2) * case.directions
            total += weights + self.rows * (width + case.H * case.directions)
        return self.passes * total * case.torch_dtype.itemsize


@dataclass(frozen=True)
class Point:
    """A timed row with its floor."""

    row: Row
    work: Work
    ceilings: Ceilings

    @property
    def seconds(self) -> float:
        """Our median time."""
        return float(self.row["ours_ms_median"]) / 1e3

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.work.flops / self.work.bytes

    @property
    def tier(self) -> str:
        """What served: tiers of both passes on CUDA, else the backend."""
        tiers = [tier_of(self.row[name]) for name in ("forward_kernel", "backward_kernel")]
        return "+".join(dict.fromkeys(filter(None, tiers))) or self.row["chosen"]

    @cached_property
    def floor(self) -> tuple[float, str]:
        """The least seconds, and the tier that could reach them or `roof` where no step bounds it."""
        rate = self.ceilings.matrix[kind_of(self.row)]
        roof = max(self.work.flops / rate, self.work.bytes / self.ceilings.copy)
        if self.ceilings.steps is None:
            return roof, "roof"
        seconds, tiers = (self.work.flops - self.work.flops_in_steps) / rate, []
        for backward in (False, True)[: min(self.work.passes, 2)]:
            times = step_seconds(self.ceilings.steps, self._layer, backward=backward, graph=self._in_graph)
            tiers.append(min(times, key=times.get))
            seconds += self.work.case.layers * self.work.case.T * times[tiers[-1]]
        return (roof, "roof") if roof > seconds else (seconds, "+".join(dict.fromkeys(tiers)))

    @property
    def _in_graph(self) -> bool:
        return self.row["launch"] == "graph"

    @property
    def _layer(self) -> Layer:
        case = self.work.case
        batch = max(1, round(self.work.rows / case.T))  # of rows of many lengths, those that are left on average
        return Layer(GATES[case.cell], case.H, batch, kind_of(self.row), case.directions)

    @property
    def steps(self) -> int:
        """Steps that follow one another, forward and backward of a step counted as one."""
        return self.work.case.layers * self.work.case.T


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every file has its table and its figure, 1 when one could not have them."""
    args = _parser().parse_args(argv)
    status = 0
    for path in args.csv:
        try:
            points = read_points(path, args)
        except (Unknown, ValueError) as missing:
            print(f"roofline.py: {path}: {missing}", file=sys.stderr)
            status = 1
            continue
        png = path.with_name(f"{path.stem}-roofline.png")
        draw(points, png)
        print(f"{path.stem}\n\n{table(points)}\n\n{png}\n")
    return status


def read_points(path: Path, args: argparse.Namespace) -> list[Point]:
    """The timed rows of a file that were asked for; raises Unknown where there are none."""
    wanted = {name: getattr(args, name) for name in ("grid", "backend", "opponent") if getattr(args, name)}
    rows = [row for row in latest(read_rows(path)) if all(row[name] == value for name, value in wanted.items())]
    rows = [row for row in rows if row["status"] == "ok"]
    if not rows:
        raise Unknown(" ".join(("no row with a time", *(f"of {name} {value}" for name, value in wanted.items()))))
    figures = Figures(args.ceilings, args.barriers)
    return [Point(row, Work(case_of(row)), figures.of(row)) for row in rows]


def table(points: Sequence[Point]) -> str:
    """A line a point: time per step, its floor and how many times the floor it takes."""
    lines = [("cell", "shape", "dtype", "mode", "launch", "us/step", "floor", "times", "tier", "floor's tier")]
    for point in points:
        row, (least, tier) = point.row, point.floor
        dtype = " ".join(filter(None, (row["dtype"], row["precision"])))
        step, floor_step = (1e6 * seconds / point.steps for seconds in (point.seconds, least))
        figures = (f"{step:.3g}", f"{floor_step:.3g}", f"{point.seconds / least:.2f}")
        shape = point.work.case.shape + (f" {row['threads']} thr" if not row["cuda"] else "")
        lines.append((row["cell"], shape, dtype, row["mode"], row["launch"], *figures, point.tier, tier))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, "", "the whole call's time over T and layers, input product included; floor: a model"])


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel per kind of product (and thread count), each with the ceilings that bound it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        threads = "" if point.row["cuda"] else f"{point.row['threads']} threads".replace("1 threads", "1 thread")
        panels.setdefault((kind_of(point.row), threads), []).append(point)
    size = (1.2 + 4.6 * len(panels), 5.2)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for panel, (key, part) in zip(axes[0], panels.items(), strict=True):
        _draw_panel(panel, part)
        panel.set_title("  ".join(filter(None, key)), loc="left", fontsize=10, fontweight="bold")
    colors = {tier: COLORS.get(tier, OTHER_COLOR) for tier in map(_first_tier, points)}
    handles = [plt.Line2D([], [], marker="o", ls="", color=color, label=tier) for tier, color in colors.items()]
    modes = [(mode, mark) for mode, mark in MARKERS.items() if mode in {point.row["mode"] for point in points}]
    handles += [plt.Line2D([], [], marker=mark, ls="", color="#333333", mfc="none", label=mode) for mode, mark in modes]
    handles.append(plt.Line2D([], [], marker="_", ls="", color="#333333", label="at its floor"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8, frameon=False)
    figure.supxlabel(
        caption([point.row for point in points]), fontsize=7, color="#555555", x=0.01, ha="left", wrap=True
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _first_tier(point: Point) -> str:
    """What a point is coloured by: where the passes have different tiers, that of the forward."""
    return point.tier.partition("+")[0]


def _draw_panel(panel, points: Sequence[Point]) -> None:
    ceilings, rate = points[0].ceilings, points[0].ceilings.matrix[kind_of(points[0].row)]
    for point in points:
        achieved, least = point.work.flops / point.seconds, point.work.flops / point.floor[0]
        panel.plot([point.intensity] * 2, [achieved, least], color="#cccccc", linewidth=0.6, zorder=1)
        panel.plot(point.intensity, least, marker="_", color="#333333", markersize=6, zorder=2)
        marker, color = MARKERS[point.row["mode"]], COLORS.get(_first_tier(point), OTHER_COLOR)
        panel.plot(point.intensity, achieved, marker=marker, color=color, markersize=4, zorder=3)
    ridge = rate / ceilings.copy
    low, high = (f(point.intensity for point in points) for f in (min, max))
    left, right = min(low, ridge) / 3, max(high, ridge) * 3
    panel.plot([left, ridge, right], [left * ceilings.copy, rate, rate], color="#222222", linewidth=1.2)
    label = f"{rate / 1e12:.3g} TFLOP/s, {ceilings.copy / 1e9:.4g} GB/s"
    panel.text(right, rate * 1.1, label, ha="right", va="bottom", fontsize=7)
    panel.set(xscale="log", yscale="log", xlabel="FLOPs a byte of compulsory traffic", ylabel="FLOP/s achieved")
    panel.tick_params(labelsize=7)
    panel.grid(color="#e2e2e2", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, nargs="+", help="results of benchmarks/run.py")
    parser.add_argument("--grid", choices=GRIDS, help="rows of this grid alone")
    parser.add_argument("--backend", help="rows of this backend setting alone")
    parser.add_argument("--opponent", help="rows against this opponent alone")
    parser.add_argument("--ceilings", type=Path, help="CSV of ceilings.py (an H200 has constants without it)")
    parser.add_argument("--barriers", type=Path, help="CSV of barriers.cu (an H200 has constants without it)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
