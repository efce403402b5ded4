"""From rows to figures a reader can hold: geometric means and worst cases, with the targets beside them.

`python benchmarks/summary.py FILE.csv ...` prints the table of each file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cases import GRIDS, NOTES
from results import Row, case_of, latest, read_rows
from targets import target_of

RATIOS = "ratios: opponent's time / ours; floor: the least time / ours; memory: our bytes / the opponent's"
HEAD = ("grid", "cell", "dtype", "mode", "threads", "launch", "cases", "mean", "worst", "worst case", "floor")
HEAD += ("memory", "target")
GROUP = ("grid", "cell", "resets", "dtype", "mode", "threads", "precision", "launch", "opponent", "backend", "device")


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a file has no rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, nargs="+", help="results of benchmarks/run.py")
    status = 0
    for path in parser.parse_args(argv).csv:
        rows = latest(read_rows(path))
        print(f"{path.stem}\n\n{table(rows)}\n" if rows else f"{path}: no rows\n")
        status |= not rows
    return status


@dataclass(frozen=True)
class Group:
    """The measured rows of one (grid, cell, dtype, mode, threads, …); at least one row."""

    key: dict[str, str]
    rows: tuple[Row, ...]

    @property
    def timed(self) -> list[Row]:
        """The rows that have a time."""
        return [row for row in self.rows if row["status"] == "ok"]

    @property
    def mean(self) -> float | None:
        """Geometric mean of the ratios."""
        return geometric_mean([float(row["ratio"]) for row in self.timed])

    @property
    def worst(self) -> Row | None:
        """The row with the smallest ratio."""
        return min(self.timed, key=lambda row: float(row["ratio"]), default=None)

    @property
    def memory(self) -> float | None:
        """Geometric mean of our bytes over the opponent's, None where there are none to compare."""
        kept = [(int(r["ours_bytes"]), int(r["other_bytes"])) for r in self.timed if r["ours_bytes"]]
        return geometric_mean([ours / other for ours, other in kept if ours > 0 and other > 0])

    @property
    def of_floor(self) -> float | None:
        """Geometric mean of the shares that the floor is of our time, None where it was not measured."""
        return geometric_mean([float(row["of_floor"]) for row in self.timed if row["of_floor"]])

    @property
    def untimed(self) -> dict[str, int]:
        """How many rows are WRONG, refused or error."""
        states = [row["status"] for row in self.rows if row["status"] != "ok"]
        return {state: states.count(state) for state in sorted(set(states))}

    @property
    def verdict(self) -> str:
        """`met` or `missed` with the reason, and how much of the grid it was judged on; "" without a target."""
        target = target_of(self.rows[0])
        goal = target and target.goal(self.key["cell"], self.key["mode"])
        if goal is None:
            return ""
        wanted = f"mean {goal:g}" + (f", worst {target.worst:g}" if target.worst else "")
        reasons = [f"{count} {state}" for state, count in self.untimed.items()]
        if self.mean is None:
            reasons.append("no time")
        else:
            reasons += ["mean"] if self.mean < goal else []
            reasons += ["worst"] if target.worst and float(self.worst["ratio"]) < target.worst else []
        asked = sum(_belongs(case, self.key) for case in GRIDS.get(self.key["grid"], ()))
        part = "" if len(self.timed) >= asked else f" on {len(self.timed)} of {asked} cases"
        return f"{wanted}: " + (f"missed ({', '.join(reasons)})" if reasons else "met") + part


def _belongs(case, key: dict[str, str]) -> bool:
    wanted = (key["cell"], key["dtype"], key["mode"], float(key["resets"]))
    return (case.cell, case.dtype, case.mode, case.resets) == wanted


def geometric_mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return statistics.geometric_mean(values) if values else None


def groups(rows: Iterable[Row]) -> list[Group]:
    """Rows gathered by GROUP, in order of first appearance."""
    gathered: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        gathered.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    return [Group(dict(zip(GROUP, key, strict=True)), tuple(members)) for key, members in gathered.items()]


def table(rows: Sequence[Row]) -> str:
    """The closing table of a run, as text."""
    lines = [HEAD]
    for group in groups(rows):
        key, worst = group.key, group.worst
        opponent = "" if key["opponent"] == "torch" else f" vs {key['opponent']}"
        lines.append(
            (
                " ".join(filter(None, (key["grid"], reset_label(key)))) + opponent,
                key["cell"],
                key["dtype"] + (f" {key['precision']}" if key["precision"] else ""),
                key["mode"],
                key["threads"],
                key["launch"],
                str(len(group.timed)) + "".join(f" +{count} {state}" for state, count in group.untimed.items()),
                ratio(group.mean),
                ratio(worst and float(worst["ratio"])),
                case_of(worst).shape if worst else "",
                ratio(group.of_floor),
                ratio(group.memory),
                group.verdict,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [f"{grid}: {NOTES[grid]}" for grid in dict.fromkeys(row["grid"] for row in rows) if grid in NOTES]
    return "\n".join([*text, "", RATIOS, *notes])


def reset_label(row: Row) -> str:
    """`3% resets`, empty for none."""
    share = float(row["resets"])
    return f"{share:.0%} resets" if share else ""


def ratio(value: float | None) -> str:
    """A ratio in three figures, empty for None."""
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
