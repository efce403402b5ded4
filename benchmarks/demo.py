"""What the swap gives on this machine: the table and the figure that end `make demo`.

    python benchmarks/demo.py --out runs/demo

LSTM, GRU and RNN in float32 and bfloat16: training with 32 rows and with 2, and one step of a stream. A case is timed
only after its results agree with float64; both sides run in turns in one process (fastrnn.bench.measure).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fastrnn.bench.case import Case
from fastrnn.bench.environment import ALL_THREADS, environment, warn_if_busy
from fastrnn.bench.measure import Measurement, Setting, measure
from fastrnn.bench.timing import Pace

SITUATIONS = {
    "training, 32 rows": dict(T=50, B=32, I=256, H=256, mode="training"),
    "training, 2 rows": dict(T=100, B=2, I=128, H=128, mode="training"),
    "one step of a stream": dict(T=1, B=1, I=256, H=256, mode="forward"),
}
CASES = {
    (situation, cell, dtype): Case(cell, dtype=dtype, **sizes)
    for situation, sizes in SITUATIONS.items()
    for cell in ("LSTM", "GRU", "RNN")
    for dtype in ("float32", "bfloat16")
}
LEVEL = 0.03  # times of the same code differ by so much from run to run
COLORS = {"float32": "#2b6cb0", "bfloat16": "#2f9e6e"}


def in_words(ratio: float) -> str:
    """A ratio as the table says it: torch.nn's time over fastrnn's."""
    if ratio > 1 + LEVEL:
        return f"{ratio:.2f}x as fast"
    return f"{ratio:.2f}x, slower" if ratio < 1 - LEVEL else f"{ratio:.2f}x, level"


def row_of(key: tuple[str, str, str], case: Case, found: Measurement) -> str:
    """A line of the table; what was wrong or failed has its reason and no time."""
    situation, cell, dtype = key
    head = f"{situation:<21} {f'T={case.T} B={case.B} H={case.H}':<18} {cell:<5} {dtype:<9} {found.served!s:<10}"
    if found.status != "ok":
        return f"{head} {found.status}: {found.detail}"
    return f"{head} {found.other.median:10.3f} {found.ours.median:10.3f}  {in_words(found.ratio)}"


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a case was wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time per case (default: %(default)s)")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = environment(device)
    where = f"{place['device']}, torch.nn {place['torch']}, fastrnn {place['fastrnn']}"
    warn_if_busy()
    print(f"What the swap gives here: {where}")
    print(f"{'':<21} {'shape':<18} {'cell':<5} {'dtype':<9} {'backend':<10} {'torch ms':>10} {'ours ms':>10}  ratio")
    results = {}
    for key, case in CASES.items():
        found = measure(case, Setting(device, threads=ALL_THREADS, graph="off", pace=Pace(args.seconds)))[0]
        results[key] = found
        print(row_of(key, case, found), flush=True)
    timed = {key: found.ratio for key, found in results.items() if found.status == "ok"}
    level = sum(abs(ratio - 1) <= LEVEL for ratio in timed.values())
    print(f"{len(timed)} of {len(CASES)} cases were right and timed; level (within {LEVEL:.0%}): {level}")
    if timed:
        args.out.mkdir(parents=True, exist_ok=True)
        draw(timed, where, args.out / "swap.png")
        print(f"figure: {args.out / 'swap.png'}")
    return int(len(timed) < len(CASES))


def draw(ratios: dict[tuple[str, str, str], float], where: str, path: Path) -> None:
    """Bars of the ratios, a panel for each situation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SITUATIONS), figsize=(10, 3.6), layout="constrained")
    cells = ("LSTM", "GRU", "RNN")
    for panel, situation in zip(axes, SITUATIONS):
        for offset, dtype in ((-0.2, "float32"), (0.2, "bfloat16")):
            values = [ratios.get((situation, cell, dtype), 0.0) for cell in cells]
            bars = panel.bar([place + offset for place in range(len(cells))], values, 0.38, color=COLORS[dtype])
            panel.bar_label(bars, [f"{value:.2f}" if value else "" for value in values], fontsize=9)
        panel.axhline(1, color="#222222", linewidth=1)
        panel.set_title(situation, fontsize=11)
        panel.set_xticks(range(len(cells)), cells)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("torch.nn's time / fastrnn's time")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in COLORS.values()]
    figure.legend(handles, COLORS, loc="outside upper right", ncols=2, frameon=False)
    figure.supxlabel(f"{where}; above the line at 1 fastrnn is faster", fontsize=9, color="#555555")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
