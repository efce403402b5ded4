"""Draw a results CSV, or make a table of it.

`python benchmarks/plot.py results/<device>.csv --grid cpu` draws one PNG per thread count beside the CSV; `tables.py`
puts the tables into the documents.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cases import GRIDS, NOTES
from results import Row, case_of, latest, read_rows
from summary import Group, groups, ratio, reset_label

FASTER, SLOWER = {"forward": "#2b6cb0", "training": "#2f9e6e"}, "#c0392b"
INCHES_PER_BAR = 0.17
MANY_SHAPES = 30


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is drawn."""
    parser = _parser()
    args = parser.parse_args(argv)
    rows = [row for row in latest(read_rows(args.csv)) if row["grid"] == args.grid]
    rows = [row for row in rows if (row["opponent"], row["backend"]) == (args.opponent, args.backend)]
    if not rows:
        parser.error(f"{args.csv} has no row of grid {args.grid} with {args.opponent} against backend {args.backend}")
    for path, part in figures(rows, args.png or args.csv.with_name(f"{args.csv.stem}-{args.grid}.png")):
        draw(part, path)
        print(path)
    return 0


def caption(rows: Sequence[Row]) -> str:
    """Device, opponent, versions and dates of the rows, in one sentence; every distinct value is named."""

    def distinct(name: str) -> str:
        return " / ".join(dict.fromkeys(row[name] for row in rows if row[name]))

    opponent = distinct("opponent")
    opponent = f"torch.nn {distinct('torch')}" if opponent == "torch" else f"{opponent}, torch {distinct('torch')}"
    parts = [distinct("device")]
    parts += [f"driver {distinct('driver')}, CUDA {distinct('cuda')}"] if distinct("cuda") else []
    parts += [f"against {opponent}", f"fastrnn {distinct('fastrnn')}"]
    parts[-1] += f" ({distinct('commit')})" if distinct("commit") else ""
    parts += ["without the compiled extension"] if "no" in {row["extension"] for row in rows} else []
    parts += [f"backend {distinct('backend')}"] if distinct("backend") != "auto" else []
    days = sorted({row["date"][:10] for row in rows})
    parts.append(days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}")
    note = NOTES.get(rows[0]["grid"])
    return ", ".join(parts) + (f"; {note}" if note else "")


# --- the table ---------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """A row per cell, dtype and variant: geometric mean and worst case of both modes."""
    variants: dict[tuple[str, ...], dict[str, Group]] = {}
    for group in groups(rows):
        key = group.key
        parts = (key["dtype"], key["precision"], key["launch"], reset_label(key))
        dtype = " ".join(part for part in parts if part not in ("", "eager"))
        variants.setdefault((key["cell"], dtype, key["threads"]), {})[key["mode"]] = group
    on_gpu = bool(rows[0]["cuda"])
    head = ["cell", "dtype", *([] if on_gpu else ["threads"]), "forward", "worst", "training", "worst", "memory"]
    lines = [head, ["---"] * (2 if on_gpu else 3) + ["---:"] * 5]
    for (cell, dtype, threads), modes in variants.items():
        figures = [text for mode in ("forward", "training") for text in _mean_and_worst(modes.get(mode))]
        memory = ratio(modes["training"].memory) if "training" in modes else ""
        lines.append([cell, dtype, *([] if on_gpu else [threads]), *figures, memory])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    cases = len({case_of(row) for row in rows})
    asked = len(GRIDS.get(rows[0]["grid"], ()))
    covered = f"All {asked} cases" if cases == asked else f"{cases} of the {asked} cases"
    legend = (
        f"{covered} of grid `{rows[0]['grid']}`: the opponent's median time divided by fastrnn's, geometric mean and "
        "worst case (above 1 fastrnn is faster); memory: fastrnn's bytes in training divided by the opponent's."
    )
    return f"{table}\n\n{legend}\n{caption(rows)}."


def _mean_and_worst(group: Group | None) -> tuple[str, str]:
    if group is None:
        return "", ""
    missing = ", ".join(f"{count} {state}" for state, count in group.untimed.items())
    mean = f"{ratio(group.mean)}x" if group.mean else ""
    return " ".join(filter(None, (mean, f"({missing})" if missing else ""))), (
        ratio(float(group.worst["ratio"])) + "x" if group.worst else ""
    )


# --- the figure --------------------------------------------------------------------------------------------------


def figures(rows: Sequence[Row], path: Path) -> list[tuple[Path, list[Row]]]:
    """The rows of each figure and its file: one per thread count, and per cell where a grid has many shapes.

    What tells the figures apart joins the file's name.
    """
    by = ["threads"] if len({row["threads"] for row in rows}) > 1 else []
    by += ["cell"] if len({case_of(row).shape for row in rows}) > MANY_SHAPES else []
    parts: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(tuple(row[name] for name in by), []).append(row)
    named = []
    for key, part in parts.items():
        words = [
            f"{value}-threads" if name == "threads" else value.lower() for name, value in zip(by, key, strict=True)
        ]
        named.append((path.with_name("-".join([path.stem, *words]) + path.suffix), part))
    return named


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars of the ratio per case from the line at 1.0, log scale; a panel per cell (down) and dtype (across)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def kind(row: Row) -> str:
        return " ".join(part for part in (row["dtype"], row["precision"], row["launch"]) if part not in ("", "eager"))

    cells = list(dict.fromkeys(row["cell"] for row in rows))
    kinds = list(dict.fromkeys(kind(row) for row in rows))
    shapes = list(dict.fromkeys(case_of(row).shape for row in rows))
    modes = [mode for mode in FASTER if any(row["mode"] == mode for row in rows)]
    ratios = [float(row["ratio"]) for row in rows if row["status"] == "ok"]
    low, high = min([0.8, *(0.85 * r for r in ratios)]), max([1.5, *(1.35 * r for r in ratios)])
    height = max(1.1, INCHES_PER_BAR * len(modes) * len(shapes) + 0.2)
    figure, axes = plt.subplots(
        len(cells),
        len(kinds),
        figsize=(3.2 + 4.1 * len(kinds), 1.5 + (height + 0.45) * len(cells)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for line, cell in zip(axes, cells, strict=True):
        for panel, name in zip(line, kinds, strict=True):
            chosen = [row for row in rows if row["cell"] == cell and kind(row) == name]
            _draw_panel(panel, chosen, shapes, modes)
            panel.set_title(f"{cell}  {name}", loc="left", fontsize=10, fontweight="bold")
            panel.set_xlim(low, high)
    for panel in axes[-1]:
        panel.set_xlabel("opponent's time / fastrnn's time   (right of 1.0: fastrnn is faster)", fontsize=8)
    threads = f", {rows[0]['threads']} threads" if not rows[0]["cuda"] else ""
    threads = threads.replace(", 1 threads", ", 1 thread")
    figure.suptitle(f"fastrnn, grid {rows[0]['grid']}{threads}", x=0.01, ha="left", fontsize=12, fontweight="bold")
    handles = [plt.Rectangle((0, 0), 1, 1, color=FASTER[mode]) for mode in modes]
    handles.append(plt.Rectangle((0, 0), 1, 1, color=SLOWER))
    figure.legend(handles, [*modes, "slower"], loc="upper right", ncols=len(handles), fontsize=8, frameon=False)
    figure.supxlabel(caption(rows), fontsize=7, color="#555555", x=0.01, ha="left", wrap=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_panel(panel, rows: Sequence[Row], shapes: Sequence[str], modes: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    thickness = 0.8 / len(modes)
    for row in rows:
        place = shapes.index(case_of(row).shape) + (modes.index(row["mode"]) - (len(modes) - 1) / 2) * thickness
        if row["status"] != "ok":
            panel.text(1.02, place, row["status"], va="center", fontsize=6.5, color=SLOWER, fontweight="bold")
            continue
        value = float(row["ratio"])
        color = FASTER[row["mode"]] if value >= 1 else SLOWER
        panel.barh(place, value - 1, left=1, height=0.9 * thickness, color=color)
        panel.text(max(value, 1) * 1.02, place, f"{value:.2f}", va="center", fontsize=6.5, color="#333333")
    panel.axvline(1, color="#222222", linewidth=1)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    panel.set_yticks(range(len(shapes)), shapes, fontsize=7)
    panel.set_ylim(len(shapes) - 0.45, -0.55)  # the first case on top
    panel.tick_params(axis="x", labelsize=7, labelbottom=True)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#e2e2e2", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, help="results of benchmarks/run.py")
    parser.add_argument("--grid", choices=GRIDS, default="cpu")
    parser.add_argument("--opponent", default="torch", help="rows against this opponent (default: %(default)s)")
    parser.add_argument("--backend", default="auto", help="rows of this backend setting (default: %(default)s)")
    parser.add_argument("--png", type=Path, help="default: <csv>-<grid>.png beside the CSV")
    return parser


if __name__ == "__main__":
    sys.exit(main())
