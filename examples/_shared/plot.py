"""The figure: the curves of one or two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is all we want; no window, no display

import matplotlib.pyplot as plt

from .learner import Epoch

STYLES = (
    {"linewidth": 7, "alpha": 0.3, "solid_capstyle": "round"},
    {"linewidth": 1.4, "linestyle": (0, (4, 2))},
)
"""Wide and pale under thin and dashed: both stay visible where they lie on each other."""


def draw(histories: Mapping[str, Sequence[Epoch]], title: str, path: Path) -> None:
    """Draw the loss and each metric of every side over the epochs into a PNG file."""
    some = next(iter(histories.values()))
    names = ["loss", *some[0].metrics]
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.8), squeeze=False, layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axis, name in zip(axes[0], names):
        for (side, history), style in zip(histories.items(), STYLES if len(histories) == 2 else STYLES[1:]):
            values = [epoch.loss if name == "loss" else epoch.metrics[name] for epoch in history]
            marker = "o" if len(values) == 1 else None  # a line needs two points
            axis.plot([epoch.number for epoch in history], values, label=side, marker=marker, **style)
        axis.set_xlabel("epoch")
        axis.set_ylabel("training loss" if name == "loss" else name)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
