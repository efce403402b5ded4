"""What the program says: table lines, the comparison, the CSV."""

from __future__ import annotations

import csv
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import fastrnn

from .model import CELLS
from .train import OPENING_STEPS, Epoch, Recipe, Run

OPENING_LIMIT, OPENING_LIMIT_TF32 = 1e-4, 1e-2
WHOLE_LIMIT = 0.05
"""Relative perplexity differences beyond which the two sides have not learned the same thing.

Kernels round differently, and training amplifies that. An LSTM of torch.nn whose recurrent weights were changed by one
unit in the last place differed from the unchanged one by 1e-6 in the first 20 steps and by 0.6 % in the eight epochs
of the default run. A bias without a gradient, or a state that is not carried, made 2e-2 in the first 20 steps. So the
opening is the sharp test, and the epochs after it only show that nothing goes astray later. They count up to the
lowest held-out perplexity: after it the model learns the training text by heart, and rounding decides what it says of
other text (over 250 epochs of the published recipe the two sides differ by up to 60 %, up to epoch 41 by 0.7 %). On a
GPU either side may round products to TF32, which has 10 bits.
"""

COLUMNS = ("layer", "epoch", "train_perplexity", "held_out_perplexity", "tokens", "seconds", "tokens_per_second")
TABLE_HEAD = f"{'epoch':>5}  {'layer':<14}{'train ppl':>11}{'held-out ppl':>14}{'tokens/s':>11}{'seconds':>9}"


def layer_name(impl: str, cell: str) -> str:
    """`torch.nn.LSTM`, `fastrnn.GRU` and so on."""
    return f"{'torch.nn' if impl == 'torch' else 'fastrnn'}.{CELLS[cell]}"


def describe_model(recipe: Recipe) -> str:
    """Cell and sizes in a few words."""
    dropout = f", dropout {recipe.dropout:g}" if recipe.dropout else ""
    layers = f"{recipe.layers} layer{'s' if recipe.layers > 1 else ''} of {recipe.hidden}"
    batch = f"batch {recipe.batch} x {recipe.seq_len}"
    characters = f"embedding {recipe.embedding}" if recipe.embedding else "one-hot characters"
    return f"{CELLS[recipe.cell]}, {layers}, {characters}{dropout}, {batch}"


def describe_place(recipe: Recipe) -> str:
    """Device and versions in a few words."""
    device = torch.device(recipe.device)
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{device.type} ({platform.machine()}, {torch.get_num_threads()} thread(s))"
    return f"{where}, torch {torch.__version__}, fastrnn {fastrnn.__version__}"


def describe_backend(run: Run) -> str:
    """Which of fastrnn's backends serves the run's layer, and why not the others."""
    layer = run.model.rnn
    characters = torch.empty(run.recipe.seq_len, run.recipe.batch, layer.input_size, device=run.device)
    return str(fastrnn.explain(layer, characters))


def table_line(run: Run, epoch: Epoch) -> str:
    """One line of the table that TABLE_HEAD opens."""
    return (
        f"{epoch.number:>5}  {layer_name(run.impl, run.recipe.cell):<14}{epoch.train_perplexity:>11.4f}"
        f"{epoch.held_out_perplexity:>14.4f}{epoch.tokens_per_second:>11,.0f}{epoch.seconds:>9.1f}"
    )


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """All epochs of all runs."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for run in runs:
            layer = layer_name(run.impl, run.recipe.cell)
            for epoch in run.history:
                perplexities = (epoch.train_perplexity, epoch.held_out_perplexity)
                speed = (epoch.tokens, epoch.seconds, epoch.tokens_per_second)
                writer.writerow((layer, epoch.number, *perplexities, *speed))


@dataclass(frozen=True)
class Comparison:
    """Two runs of the same recipe, side by side, over the epochs that both have."""

    opening: float  # largest relative difference of perplexity in the first steps, before rounding errors have grown
    opening_limit: float
    epochs: int  # up to torch.nn's lowest held-out perplexity
    whole: float  # largest relative difference in these epochs, training and held-out
    whole_absolute: float
    torch_speed: float  # tokens per second, the median epoch
    fastrnn_speed: float
    epoch_ratios: list[float]  # fastrnn's tokens per second over torch.nn's, epoch by epoch

    @property
    def equal(self) -> bool:
        """Whether the two learned the same thing, but for rounding. False also for NaN."""
        return self.opening <= self.opening_limit and self.whole <= WHOLE_LIMIT


def compare(torch_run: Run, fastrnn_run: Run) -> Comparison:
    """Compare two runs epoch by epoch."""
    pairs = list(zip(torch_run.history, fastrnn_run.history, strict=False))
    # The median, because a burst of other work on the machine can make a single epoch several times slower.
    speeds = [statistics.median(epoch.tokens_per_second for epoch in side) for side in zip(*pairs, strict=True)]
    epochs = 1 + min(range(len(pairs)), key=lambda i: pairs[i][0].held_out_perplexity)
    perplexities = [(a.train_perplexity, b.train_perplexity) for a, b in pairs[:epochs]]
    perplexities += [(a.held_out_perplexity, b.held_out_perplexity) for a, b in pairs[:epochs]]
    tf32 = torch_run.device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return Comparison(
        opening=_largest([abs(a - b) / a for a, b in zip(pairs[0][0].opening, pairs[0][1].opening, strict=True)]),
        opening_limit=OPENING_LIMIT_TF32 if tf32 else OPENING_LIMIT,
        epochs=epochs,
        whole=_largest([abs(a - b) / a for a, b in perplexities]),
        whole_absolute=_largest([abs(a - b) for a, b in perplexities]),
        torch_speed=speeds[0],
        fastrnn_speed=speeds[1],
        epoch_ratios=[b.tokens_per_second / a.tokens_per_second for a, b in pairs],
    )


def _largest(values: Sequence[float]) -> float:
    """The maximum; NaN if there is one, which Python's own max may overlook."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def comparison_lines(comparison: Comparison, runs: Sequence[Run]) -> list[str]:
    """The comparison in words."""
    recipe = runs[0].recipe
    names = [layer_name(run.impl, recipe.cell) for run in runs]
    limits = f"{comparison.opening_limit:.0e} and {WHOLE_LIMIT:.0%}"
    verdict = "the two learn the same" if comparison.equal else f"NOT EQUAL, expected at most {limits}"
    lines = [
        f"parity: perplexities differ by at most {comparison.opening:.1e} (relative) over {OPENING_STEPS} steps,",
        f"        {comparison.whole_absolute:.2g} ({comparison.whole:.2%}) over {comparison.epochs} epochs: {verdict}.",
        "        (Up to the lowest held-out perplexity. Kernels round differently, and training amplifies it:",
        "        see WHOLE_LIMIT in _char_lm/report.py.)",
        f"speed:  {names[0]} {comparison.torch_speed:,.0f} tokens/s, {names[1]} {comparison.fastrnn_speed:,.0f}: "
        f"{comparison.fastrnn_speed / comparison.torch_speed:.2f}x (median epochs; "
        f"{min(comparison.epoch_ratios):.2f}x to {max(comparison.epoch_ratios):.2f}x by epoch)",
        "        One run, with whatever else this machine was doing; training steps only, after a warm-up, the two",
        "        taking turns epoch by epoch.",
    ]
    if not comparable_masks(recipe):
        lines.append(
            "        On a GPU torch.nn draws the dropout between layers inside cuDNN, so the two sides drop different\n"
            "        units: expect similar curves, not equal ones."
        )
    return lines


def comparable_masks(recipe: Recipe) -> bool:
    """Whether both sides drop the same units; if not, their perplexities need not agree."""
    return recipe.device.startswith("cpu") or recipe.dropout == 0 or recipe.layers == 1
