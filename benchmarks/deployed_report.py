"""The rows of infer.py as a table and as a figure: times as fast as ONNX Runtime."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

BASE = "onnxruntime"  # the side that the others' ratios are against
COLUMN = f"{BASE}_over_this"
NAMES = {
    "frozen": "frozen",
    "frozen-bf16": "frozen, bfloat16",
    "frozen-int8": "frozen, int8",
    "fastrnn": "fastrnn's layer",
    "torch": "torch.nn",
    "torch-int8": "torch.nn, int8",
    "ort-int8": "ONNX Runtime, int8",
    "openvino": "OpenVINO",
}
WHAT = {"infer": "whole inputs", "stream": "single steps"}
DRAWN = {"frozen": "#2b6cb0", "frozen-bf16": "#2f9e6e", "frozen-int8": "#b7791f", "openvino": "#a0aec0"}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _ratios(rows: Iterable[dict]) -> list[float]:
    return [float(row[COLUMN]) for row in rows if row.get(COLUMN)]


def _cell(ratios: Sequence[float]) -> str:
    """Geometric mean and worst."""
    if not ratios:
        return ""
    return f"{statistics.geometric_mean(ratios):.2f}x ({min(ratios):.2f})"


def table(rows: Sequence[dict]) -> str:
    """A row for each side; a column for each grid and cell. The rows are of one number of threads."""
    columns = list(dict.fromkeys((row["grid"], row["cell"]) for row in rows))
    lines = ["| | " + " | ".join(f"{cell}, {WHAT[grid]}" for grid, cell in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for side, name in NAMES.items():
        mine = [row for row in rows if row["side"] == side]
        cells = [_cell(_ratios(row for row in mine if (row["grid"], row["cell"]) == column)) for column in columns]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    first, threads = rows[0], int(rows[0]["threads"])
    lines += [
        "",
        "ONNX Runtime's median time divided by each row's, in float32 unless stated: geometric mean and,",
    ]
    lines += [f"in brackets, the worst shape. {first['device']}, {threads} thread{'s' * (threads > 1)}, torch"]
    lines += [f"{first['torch']}, fastrnn {first['fastrnn']} ({first['commit']})."]
    return "\n".join(lines)


def draw(rows: Sequence[dict], path: Path) -> Path:
    """A group of bars for each shape, with the number of threads of the first row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = list(dict.fromkeys(row["cell"] for row in rows))
    figure, axes = pyplot.subplots(1, len(cells), figsize=(5.2 * len(cells), 5.2), squeeze=False)
    for axis, cell in zip(axes[0], cells, strict=True):
        mine = [row for row in rows if row["cell"] == cell and str(row["threads"]) == str(rows[0]["threads"])]
        shapes = list(dict.fromkeys(map(_label, mine)))
        height = 0.8 / len(DRAWN)
        for place, (side, colour) in enumerate(DRAWN.items()):
            found = {_label(row): float(row[COLUMN]) for row in mine if row["side"] == side and row.get(COLUMN)}
            at = [index + (place - (len(DRAWN) - 1) / 2) * height for index in range(len(shapes))]
            axis.barh(at, [found.get(shape, 0) for shape in shapes], height, label=NAMES[side], color=colour)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks(range(len(shapes)), shapes, fontsize=7)
        axis.invert_yaxis()
        axis.set(title=f"{cell}: times as fast as ONNX Runtime")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(DRAWN), fontsize=8)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _label(row: dict) -> str:
    label = f"T={row['T']} B={row['B']} I={row['I']} H={row['H']}"
    label += f" x{row['layers']}" if str(row["layers"]) != "1" else ""
    label += " bi" if str(row["directions"]) == "2" else ""
    return label + (", a step" if row["grid"] == "stream" else "")
