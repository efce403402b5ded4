"""The machine behind a result row: its ceilings and latencies as measured, or the constants of an H200."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from floor import H200, Machine
from results import Row

BARRIERS = ("cluster_barrier", "grid_barrier")
LAUNCHES = ("launch", "graph_launch")
UNITS = {"": 1.0, "GB/s": 1e9, "TFLOP/s": 1e12}


class Unknown(Exception):
    """Figures of a machine are missing, with the way to get them as its text."""


@dataclass(frozen=True)
class Ceilings:
    """What bounds any program on a device: bytes and operations a second, in one place for CPUs and GPUs.

    `steps` is the model of a recurrent step, None on a CPU: it is a GPU's.
    """

    copy: float
    matrix: dict[str, float]
    steps: Machine | None = None


class Figures:
    """Ceilings by device and threads, from the files of ceilings.py and barriers.cu."""

    def __init__(self, ceilings: Path | None = None, barriers: Path | None = None):
        self._measured: dict[tuple[str, str], dict[str, float]] = {}
        for row in _read(ceilings):
            place = self._measured.setdefault((row["device"], row["threads"]), {})
            place[row["what"]] = float(row["value"]) * UNITS[row["unit"]]
        self._latencies = latencies(_read(barriers))

    def of(self, row: Row) -> Ceilings:
        """The ceilings of the device that the row was measured on; raises Unknown where they are not known."""
        found = self._of_gpu(row) if row["cuda"] else self._of_cpu(row)
        if kind_of(row) not in found.matrix:
            raise Unknown(f"no matrix rate of {kind_of(row)} on {row['device']}: known are {', '.join(found.matrix)}")
        return found

    def _of_cpu(self, row: Row) -> Ceilings:
        measured = self._measured.get((row["device"], row["threads"]))
        if measured is None:
            raise Unknown(
                f"no ceilings of {row['device']} with {row['threads']} threads: measure them there with "
                f"`python benchmarks/ceilings.py --threads {row['threads']} --out FILE` and give --ceilings FILE"
            )
        return Ceilings(measured["copy"], matrix_rates(measured))

    def _of_gpu(self, row: Row) -> Ceilings:
        measured = next((value for (device, _), value in self._measured.items() if device == row["device"]), {})
        if not row["device"].startswith(H200.name) and not (measured and self._latencies):
            raise Unknown(
                f"no constants of {row['device']}: measure them there with `python benchmarks/ceilings.py --device "
                "cuda --out FILE` and benchmarks/barriers.cu, and give --ceilings FILE --barriers FILE"
            )
        changes: dict = {"name": row["device"], **self._latencies}
        if measured:
            changes["multiprocessors"] = int(measured["multiprocessors"])
            changes["copy"], changes["matrix"] = measured["copy"], matrix_rates(measured)
        machine = replace(H200, **changes)
        return Ceilings(machine.copy, dict(machine.matrix), machine)


def kind_of(row: Row) -> str:
    """What is multiplied: float32 on CUDA by its precision."""
    return row["precision"] or row["dtype"]


def matrix_rates(measured: dict[str, float]) -> dict[str, float]:
    """Rates by kind, of the figures called `matrix KIND`."""
    prefix = "matrix "
    return {what.removeprefix(prefix): rate for what, rate in measured.items() if what.startswith(prefix)}


def latencies(rows: Iterable[Row]) -> dict[str, dict[int, float] | float]:
    """Fields of Machine from rows of `what,size,us`; a device without clusters has no cluster barriers."""
    found: dict[str, dict[int, float] | float] = {}
    for row in rows:
        seconds = float(row["us"]) * 1e-6
        if row["what"] in LAUNCHES:
            found[row["what"]] = seconds
        elif row["what"] in BARRIERS:
            found.setdefault(row["what"], {})[int(row["size"])] = seconds
        else:
            raise ValueError(f"barriers: expected one of {', '.join((*BARRIERS, *LAUNCHES))}, got {row['what']!r}")
    return {what: {} for what in BARRIERS} | found if found else {}


def _read(path: Path | None) -> list[dict[str, str]]:
    if path is None:
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
