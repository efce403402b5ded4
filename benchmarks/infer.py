"""Time trained layers as people deploy them on a CPU: `python benchmarks/infer.py`. All sides take turns in a process.

Grid `infer` calls a layer on a whole input with given states; grid `stream` calls it for one step after another, each
with the state that the last one left (a frozen layer in place), and keeps the 99th percentile, too. Where sides take
turns, each finds the caches full of the others' weights; `ms_alone` is the median where a side goes on alone, and
`of_floor` is of that. Every side's error against float64 over 500 steps stands beside its times.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from cases import GRIDS
from deployed import SIDES, Call
from deployed_report import BASE, COLUMN, draw, table
from results import default_path
from torch import nn

import fastrnn
from fastrnn.bench.case import Case, build, make_inputs, make_weights
from fastrnn.bench.environment import environment, warn_if_busy
from fastrnn.bench.floor import floor_ms
from fastrnn.bench.measure import Refused
from fastrnn.bench.timing import ClockRounds, Pace, interleave

RESULTS = Path(__file__).resolve().parent / "results" / "deployed"
ERROR_STEPS = 500
WEIGHTS = {"bf16": "bfloat16", "int8": "int8"}
COLUMNS = (
    *("device", "torch", "fastrnn", "isa", "commit", "grid", "threads", "cell", "T", "B", "I", "H", "layers"),
    *(
        "directions",
        "side",
        "status",
        "ms_median",
        "ms_p99",
        "repeats",
        "ms_alone",
        f"{BASE}_over_this",
        "of_floor",
        "max_error",
        "mean_error",
    ),
)


def main(argv=None) -> int:
    """0 unless a side was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="infer,stream")
    parser.add_argument("--sides", default=",".join(SIDES), help="default: all")
    parser.add_argument("--cell", default="LSTM,GRU")
    parser.add_argument("--threads", default="1", help="numbers of threads, one after another: 1,2")
    parser.add_argument("--seconds-per-case", type=float, default=8.0, help="of all sides together")
    parser.add_argument("--out", type=Path, help="CSV to write (default: benchmarks/results/deployed/<device>.csv)")
    args = parser.parse_args(argv)
    place = environment(torch.device("cpu"))
    path = args.out or default_path(RESULTS, place["device"])
    warn_if_busy()
    rows = []
    for threads, grid in itertools.product(map(int, args.threads.split(",")), args.grid.split(",")):
        torch.set_num_threads(threads)
        for case in GRIDS[grid]:
            if case.cell in args.cell.split(","):
                rows += _measure(grid, case, args, place | {"threads": threads})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    for threads in dict.fromkeys(row["threads"] for row in rows):
        print(f"\n{threads} threads\n\n{table([row for row in rows if row['threads'] == threads])}")
    print(f"\nwritten to {path}")
    if not any(row["status"] == "WRONG" for row in rows):
        print(draw(rows, path.with_suffix(".png")))
    return 1 if any(row["status"] == "WRONG" for row in rows) else 0


def _measure(grid: str, case: Case, args: argparse.Namespace, place: dict) -> list[dict]:
    layer = build(case.layer(nn), case, "cpu", make_weights(case)).eval()
    inputs = make_inputs(case, "cpu")[0]
    x, states = inputs.leaves[0].detach(), tuple(leaf.detach().tanh() for leaf in inputs.leaves[1:])
    head = {**place, "grid": grid, **{name: getattr(case, name) for name in COLUMNS[7:14]}}
    rows, timed = [], {}
    for name in args.sides.split(","):
        row = head | {"side": name}
        try:
            call = SIDES[name](layer)
        except Refused as reason:
            rows.append(row | {"status": f"refused: {reason}"})
            continue
        most, mean = _errors(call, layer, case)
        # Every side has to be the layer; int8's error is the largest there is reason for.
        row |= {"status": "ok" if most < 0.05 else "WRONG", "max_error": f"{most:.2e}", "mean_error": f"{mean:.2e}"}
        rows.append(row)
        timed[name] = row, _stream(name, call, layer, x, states) if grid == "stream" else call
    sides = [lambda given, call=call: call(*given) for _, call in timed.values()]
    samples = interleave(sides, [(x, states)], Pace(args.seconds_per_case, 20, 20_000), ClockRounds())
    pace = Pace(args.seconds_per_case / 10, 20, 2_000)
    singly = [interleave([side], [(x, states)], pace, ClockRounds())[0] for side in sides]
    medians, alone = (dict(zip(timed, map(statistics.median, times))) for times in (samples, singly))
    for (name, (row, _)), times in zip(timed.items(), samples, strict=True):
        row |= {"ms_median": f"{medians[name]:.5f}", "repeats": len(times)}
        row |= {"ms_p99": f"{statistics.quantiles(times, n=100)[98]:.5f}"}
        weights = next((dtype for end, dtype in WEIGHTS.items() if name.endswith(end)), case.dtype)
        floor = floor_ms(replace(case, dtype=weights), torch.device("cpu"))
        row |= {"ms_alone": f"{alone[name]:.5f}", "of_floor": f"{floor / alone[name]:.3f}"}
        if BASE in medians:
            row[COLUMN] = f"{medians[BASE] / medians[name]:.3f}"
    print(f"{time.strftime('%H:%M:%S')} {grid} {case}: " + " ".join(f"{n} {m * 1e3:.1f}" for n, m in medians.items()))
    return rows


def _stream(name: str, call: Call, layer: nn.Module, x: torch.Tensor, states: tuple) -> Call:
    """One step, with the state of the step before."""
    if name.startswith("frozen"):
        weights = {"frozen": None, "frozen-bf16": torch.bfloat16, "frozen-int8": torch.int8}[name]
        frozen, state = fastrnn.freeze(layer, weights), tuple(h.clone() for h in states)
        kept = state if len(state) > 1 else state[0]
        out = torch.empty(state[0].size(1), layer.hidden_size)
        now = x[0]
        return lambda *_: frozen.step(now, kept, out)
    now = list(states)

    def step(x, _):
        _, now[:] = (lambda output, *final: (output, final))(*call(x, tuple(now)))

    return step


def _errors(call: Call, layer: nn.Module, case: Case) -> tuple[float, float]:
    """Largest and mean error of the output against float64, over more steps than are timed."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(ERROR_STEPS, min(case.B, 2), case.I, generator=generator)
    count = 2 if case.cell == "LSTM" else 1
    states = (torch.zeros(case.layers * case.directions, x.size(1), case.H),) * count
    with torch.no_grad():
        exact = copy.deepcopy(layer).double()(x.double())[0]
    error = (call(x, states)[0].double() - exact).abs()
    return error.max().item(), error.mean().item()


if __name__ == "__main__":
    sys.exit(main())
