"""Result rows and the CSV they live in: one file per device, one row per measurement, appended as it is made."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path

from fastrnn.bench.case import Case
from fastrnn.bench.measure import Measurement, Setting
from fastrnn.bench.memory import KIND

Row = Mapping[str, str]

CASE = tuple(field.name for field in fields(Case))
PLACE = ("device", "driver", "cuda", "torch", "fastrnn", "extension", "isa", "commit")
HOW = ("grid", "opponent", "backend", "threads", "precision")
TIMES = ("median", "p20", "p80")
COLUMNS = (
    "date",
    *PLACE,
    *HOW,
    *CASE,
    "launch",
    "chosen",
    "forward_kernel",
    "backward_kernel",
    "status",
    "detail",
    "repeats",
    *(f"{side}_ms_{time}" for side in ("other", "ours") for time in TIMES),
    "ratio",
    "of_floor",
    "memory",
    "other_bytes",
    "ours_bytes",
    "worst_tensor",
    "ours_error",
    "torch_error",
    "error_budget",
)

# Columns that came later, and what they hold for the rows of files without them.
ADDED = {"isa": "", "resets": "0.0", "P": "0", "nonlinearity": "", "call": "", "of_floor": "", "option": ""}
ADDED |= {"forward_kernel": "", "backward_kernel": ""}

# A later row replaces an earlier one that agrees in all of these.
IDENTITY = ("device", *HOW, *CASE, "launch")


def job_fields(grid: str, opponent: str, case: Case, setting: Setting, place: Row) -> dict[str, str]:
    """The columns that are known before anything is measured."""
    how = (grid, opponent, setting.backend, str(setting.threads), setting.precision)
    return {**place, **dict(zip(HOW, how, strict=True)), **{name: str(value) for name, value in asdict(case).items()}}


def to_row(job: Row, found: Measurement, device_type: str) -> dict[str, str]:
    """A complete CSV row, all text."""
    row = dict.fromkeys(COLUMNS, "") | dict(job)
    row |= {"date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")}
    row |= dict(zip(("chosen", "forward_kernel", "backward_kernel"), found.served, strict=True))
    row |= {"launch": found.launch, "status": found.status, "detail": found.detail}
    for side, times in (("other", found.other), ("ours", found.ours)):
        if times is not None:
            row |= {f"{side}_ms_{time}": f"{getattr(times, time):.6g}" for time in TIMES}
    if found.ours is not None:
        row |= {"repeats": str(found.ours.repeats), "ratio": f"{found.ratio:.4f}"}
        row["of_floor"] = f"{found.of_floor:.3g}" if found.of_floor else ""
    if found.ours_bytes is not None:
        row |= {"memory": KIND[device_type], "ours_bytes": str(found.ours_bytes), "other_bytes": str(found.other_bytes)}
    if (worst := found.worst) is not None:
        row |= {"worst_tensor": worst.tensor, "ours_error": f"{worst.ours:.3e}"}
        row |= {"torch_error": f"{worst.torch:.3e}", "error_budget": f"{worst.budget:.3e}"}
    return row


def case_of(row: Row) -> Case:
    """The case a row is about."""
    read = {"int": int, "float": float, "str": str, "bool": lambda text: text == "True"}
    return Case(**{field.name: read[field.type](row[field.name]) for field in fields(Case)})


def default_path(folder: Path, device: str) -> Path:
    """`folder/<device>.csv` with the device's name in lower case and dashes."""
    return folder / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".csv")


class ResultFile:
    """A CSV that rows are appended to one at a time, each complete on disk before the next case starts."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size == 0:
            path.write_text(",".join(COLUMNS) + "\n")
            return
        header = checked_header(path)
        text = path.read_bytes()
        if not text.endswith(b"\n"):  # a run was killed in the middle of a row
            path.write_bytes(text[: text.rindex(b"\n") + 1])
        if header != COLUMNS:
            _widen(path)

    def append(self, row: Row) -> None:
        """Add one row and flush it."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)


def _widen(path: Path) -> None:
    """Give the columns of ADDED to a file that was begun without them; it is never there half written."""
    rows, widened = read_rows(path), path.with_name(path.name + ".widened")
    with widened.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    widened.replace(path)


def checked_header(path: Path) -> tuple[str, ...]:
    """The file's columns; ValueError if they are others than these: mixing them would shift every figure."""
    with path.open(newline="") as file:
        header = tuple(next(csv.reader(file), ()))
    if header != tuple(name for name in COLUMNS if name in header or name not in ADDED):
        differing = sorted(set(header) ^ set(COLUMNS)) or "their order"
        raise ValueError(f"{path}: columns differ from this version's in {differing}; move the file away or use --out")
    return header


def read_rows(path: Path) -> list[dict[str, str]]:
    """All rows of a file, oldest first, but one that was cut short; none if there is no file."""
    if not path.exists():
        return []
    checked_header(path)
    with path.open(newline="") as file:
        whole = [row for row in csv.DictReader(file) if None not in row.values()]
    return [{name: row[name] if name in row else ADDED[name] for name in COLUMNS} for row in whole]


def latest(rows: Iterable[Row]) -> list[Row]:
    """The newest row of every measurement, in order of first appearance."""
    return list({tuple(row[name] for name in IDENTITY): row for row in rows}.values())


def is_done(job: Row, rows: Iterable[Row]) -> bool:
    """Whether this very job (same device, versions, commit) has been measured; one that failed is tried again."""
    return any(row["status"] != "error" and all(row[name] == value for name, value in job.items()) for row in rows)
