"""The figure: both learning curves, and their difference below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is all we want; no window, no display

import matplotlib.pyplot as plt
from _shared.plot import STYLES
from matplotlib.axes import Axes

from .report import describe_model, describe_place, layer_name
from .train import Run

TRAIN, HELD_OUT = "tab:blue", "tab:red"


def draw(runs: Sequence[Run], unigram: float, text_name: str, path: Path) -> None:
    """Draw the learning curves of one or two runs into a PNG file."""
    recipe = runs[0].recipe
    rows = [3, 1] if len(runs) == 2 else [1]
    figure, axes = plt.subplots(
        len(rows), 1, sharex=True, squeeze=False, figsize=(9, 6.5), height_ratios=rows, layout="constrained"
    )
    upper, lower = axes[0, 0], axes[-1, 0]
    figure.suptitle(f"Character language model, {text_name}\n{describe_model(recipe)}", fontsize=12)
    upper.set_title(describe_place(recipe), fontsize=8.5, color="0.35")

    for run, style in zip(runs, STYLES if len(runs) == 2 else STYLES[1:], strict=True):
        name = layer_name(run.impl, recipe.cell)
        upper.plot(*_training_curve(run), color=TRAIN, label=f"{name}, training", **style)
        upper.plot(*_held_out_curve(run), color=HELD_OUT, label=f"{name}, held out", **style)
    upper.axhline(unigram, color="0.4", linewidth=1, linestyle=":", label="unigram model, held out")
    upper.set_yscale("log")
    upper.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 3, 5)))
    upper.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    upper.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    upper.set_ylabel("perplexity per character")
    upper.grid(alpha=0.3)
    upper.legend(frameon=False)
    if len(runs) == 2:
        _draw_difference(lower, runs)
    lower.set_xlabel("epoch")
    lower.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _training_curve(run: Run) -> tuple[list[float], list[float]]:
    """Where in training (in epochs) and the training perplexity there."""
    x, y = [], []
    for epoch in run.history:
        x += [epoch.number - 1 + (i + 0.5) / len(epoch.curve) for i in range(len(epoch.curve))]
        y += epoch.curve
    return x, y


def _held_out_curve(run: Run) -> tuple[list[float], list[float]]:
    """The ends of the epochs and the held-out perplexity there."""
    return [float(epoch.number) for epoch in run.history], [epoch.held_out_perplexity for epoch in run.history]


def _draw_difference(axes: Axes, runs: Sequence[Run]) -> None:
    """Second run relative to the first, in percent."""
    largest = 0.0
    for curve, color, style in ((_training_curve, TRAIN, "-"), (_held_out_curve, HELD_OUT, "o-")):
        (x, first), (_, second) = curve(runs[0]), curve(runs[1])
        percent = [100 * (b - a) / a for a, b in zip(first, second, strict=False)]
        axes.plot(x[: len(percent)], percent, style, color=color, linewidth=1, markersize=3.5)
        largest = max([largest, *map(abs, percent)])
    limit = 1.3 * largest or 1e-4  # equal to the last bit: any scale will do
    axes.set_ylim(-limit, limit)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set_ylabel("difference, %")
    axes.grid(alpha=0.3)
    note = f"fastrnn against torch.nn, largest {largest:.2g} %"
    axes.annotate(note, (0.01, 0.96), xycoords="axes fraction", va="top", fontsize=8.5)
