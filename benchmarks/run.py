"""Run the benchmark grids: `python benchmarks/run.py --grid cpu`. README.md beside this file says how to read them."""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from cases import CPU_GRIDS, GRIDS, select
from opponents import OPPONENTS, opponent
from results import ResultFile, Row, default_path, is_done, job_fields, read_rows, to_row
from summary import table
from tqdm import tqdm

from fastrnn.bench.case import Case
from fastrnn.bench.environment import ALL_THREADS, environment, heading, warn_if_busy
from fastrnn.bench.measure import PRECISIONS, Measurement, Refused, Setting, measure, precisions_of
from fastrnn.bench.timing import Pace

RESULTS = Path(__file__).resolve().parent / "results"
QUICK_RESULTS = RESULTS.parents[1] / "runs"  # not tracked: noisy rows must not replace good ones


@dataclass(frozen=True)
class Job:
    """One case of a grid under one setting."""

    grid: str
    case: Case
    setting: Setting
    opponent: str

    def measure(self) -> list[Measurement]:
        """Run it; an opponent that cannot be had is an outcome too."""
        try:
            against = opponent(self.opponent, self.case)
        except Refused as reason:
            return [Measurement("refused", detail=str(reason))]
        return measure(self.case, self.setting, against)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every case was right and ran, 1 if one was wrong or failed, 130 if interrupted."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        jobs = list_jobs(args)
        if args.list:
            print("\n".join(f"{job.grid:<10} {job.case}{_variant(job)}" for job in jobs))
            return 0
        devices = {job.setting.device for job in jobs}
        if len(devices) > 1:
            raise ValueError(f"--grid {args.grid}: runs on several devices, one file is for one; give --device")
        place = environment(devices.pop()) | ({"commit": args.commit} if args.commit else {})
        path = args.out or default_path(QUICK_RESULTS if args.quick else RESULTS, place["device"])
        file = ResultFile(path)
    except ValueError as wrong:
        parser.error(str(wrong))
    warn_if_busy()
    earlier = read_rows(path) if args.resume else []
    if args.shuffle:
        random.Random(0).shuffle(jobs)
    rows, interrupted = _run(jobs, place, file, earlier, time.monotonic() + args.stop_after)
    print(f"\n{heading(place)}\n\n{table(rows)}\n\nwritten to {path}" if rows else "nothing measured")
    if interrupted:
        print("interrupted: the rows so far are in the file; --resume continues", file=sys.stderr)
        return 130
    return 1 if any(row["status"] in ("WRONG", "error") for row in rows) else 0


def _run(jobs: list[Job], place: Row, file: ResultFile, earlier: list[Row], stop_at: float) -> tuple[list[Row], bool]:
    """Measure the jobs that are not in `earlier`; all rows of this run, and whether it was interrupted."""
    rows: list[Row] = []
    bar = tqdm(jobs, unit="case", dynamic_ncols=True, disable=None)
    try:
        for done, job in enumerate(bar):
            if time.monotonic() >= stop_at:
                bar.write(f"--stop-after: stopped with {done} of {len(jobs)} jobs done")
                break
            known = job_fields(job.grid, job.opponent, job.case, job.setting, place)
            if is_done(known, earlier):
                rows += [row for row in earlier if all(row[name] == value for name, value in known.items())]
                continue
            bar.set_description(f"{job.grid} {job.case}{_variant(job)}")
            for found in job.measure():
                row = to_row(known, found, job.setting.device.type)
                file.append(row)
                rows.append(row)
                graph = " graph" if found.launch == "graph" else ""
                bar.write(f"{job.case}{_variant(job)}{graph}  {found}")
    except KeyboardInterrupt:
        return rows, True
    finally:
        bar.close()
    return rows, False


def list_jobs(args: argparse.Namespace) -> list[Job]:
    """The jobs asked for; ValueError where a name or value is not known."""
    jobs = []
    for grid in args.grid.split(","):
        if grid not in GRIDS:
            raise ValueError(f"--grid: expected some of {', '.join(GRIDS)}, got {grid!r}")
        device = torch.device(args.device or ("cpu" if grid in CPU_GRIDS else "cuda"))
        if device.type == "cuda" and not args.list and not torch.cuda.is_available():
            raise ValueError(f"grid {grid}: torch {torch.__version__} sees no CUDA device; --device cpu runs it there")
        pace = Pace(args.seconds_per_case or (0.2 if args.quick else 2.0), least=3 if args.quick else 5)
        base = Setting(device, args.backend, graph=args.graph, pace=pace, floor=True)
        for case in select(GRIDS[grid], args.filter):
            for threads in _threads(args.threads) if device.type == "cpu" else (ALL_THREADS,):
                for precision in precisions_of(args.precision, device, case.dtype):
                    setting = replace(base, threads=threads, precision=precision)
                    jobs.append(Job(grid, case, setting, args.opponent))
    if not jobs:
        raise ValueError(f"--filter {args.filter!r} leaves no case of {args.grid}")
    return jobs


def _threads(text: str) -> list[int]:
    """Thread counts of `1,all`, each once."""
    return list(dict.fromkeys(ALL_THREADS if part == "all" else int(part) for part in text.split(",")))


def _variant(job: Job) -> str:
    threads = f" {job.setting.threads} thr" if job.setting.device.type == "cpu" else ""
    return threads + (f" {job.setting.precision}" if job.setting.precision else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="cpu", help=f"one or more, comma-separated, of {', '.join(GRIDS)}")
    parser.add_argument("--filter", default="", metavar="F=V,…", help="cases to keep, e.g. cell=GRU|RNN,dtype=float32")
    parser.add_argument("--backend", default="auto", help="auto (default), cpu, cuda, aten or reference")
    parser.add_argument("--opponent", choices=OPPONENTS, default="torch")
    parser.add_argument("--device", help="default: cpu for the grids cpu and tune, cuda for the others")
    parser.add_argument("--threads", default="1,all", help="CPU thread counts (default: %(default)s)")
    parser.add_argument("--precision", choices=(*PRECISIONS, "both"), default="both", help="float32 on CUDA")
    parser.add_argument("--graph", choices=("auto", "on", "off"), default="auto", help="also time as a CUDA graph")
    parser.add_argument("--seconds-per-case", type=float, help="time per case (default: 2, or 0.2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="short and noisy, for seeing that everything runs")
    parser.add_argument(
        "--out",
        type=Path,
        help="CSV to append to (default: benchmarks/results/<device>.csv, or runs/<device>.csv with --quick)",
    )
    parser.add_argument("--resume", action="store_true", help="skip what the CSV already has for this commit")
    parser.add_argument("--shuffle", action="store_true", help="in a random order, always the same one")
    parser.add_argument(
        "--stop-after", type=float, default=math.inf, metavar="SECONDS", help="begin no case after so long"
    )
    parser.add_argument("--commit", help="label of the code measured, where it is not a git checkout")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
