"""Which calls on a CPU go to torch's own kernels: those at which it was measured ahead of ours.

A table holds the measurements of one class of CPU, which is the instruction set that the kernels use and the number of
cores. If ``python -m fastrnn tune`` has kept a table of this class, that one counts; else all of this class in
``choice.json``, which ``benchmarks/choice.py`` makes of the committed results. Several CPUs may be of one class, and
names do not tell them apart (virtual machines hide them): torch has to be ahead in all tables that have the nearest
shape. Calls of a class or a kind without measurements run on our kernels.

The kind of a call is its cell, dtype, whether it trains, whether it is a single step, and whether it has several layers
or both directions. Nearest is in the logarithms of T, B and H.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from .._kernels import ext
from .._spec import Call
from ..registry import CELLS
from ..verdict import kept
from ..verdict.proof import nearest

COMMAND = "python -m fastrnn tune"
SHIPPED = Path(__file__).with_name("choice.json")
AHEAD = 0.97
"""Torch is ahead where its time is below this share of ours: torch against itself differed by up to 2.5 % in four of
five rows in which it served both sides (grid of 2026-11-20)."""


class Cpu(NamedTuple):
    """A class of CPU."""

    isa: str
    cores: int

    def __str__(self) -> str:
        return f"{self.isa}, {self.cores} cores"


class Table(NamedTuple):
    """Measurements of a class: torch's time over ours by :func:`key_of`. ``stamp`` is empty in the shipped ones."""

    isa: str
    cores: int
    source: str
    date: str
    stamp: dict[str, str]
    ratios: dict[str, float]


class Row(NamedTuple):
    """A measurement at a shape of a kind of call: torch's time over ours."""

    T: int
    B: int
    H: int
    ratio: float
    source: str

    def __str__(self) -> str:
        shape = f"T={self.T} B={self.B} H={self.H}"
        return f"torch was measured at {self.ratio:.2f} of our time at {shape} on this class of CPU ({self.source})"


def key_of(case) -> str:
    """What the measurement of a ``bench.case.Case`` is called in a table."""
    sizes = case.T, case.B, case.H, case.layers, case.directions
    return " ".join(map(str, (case.cell, case.dtype, case.mode, *sizes)))


def this_cpu() -> Cpu | None:
    """The class of the CPU at hand; None without kernels for it."""
    kernels = getattr(ext.load(), "cpu", None)
    return kernels and Cpu(kernels.isa(), os.cpu_count() or 1)


def path_of(cpu: Cpu) -> Path:
    """The file of a class that :data:`COMMAND` writes."""
    return kept.path_of("choice", str(cpu))


def save(cpu: Cpu, ratios: dict[str, float]) -> Path:
    """Keeps what was measured here; it counts at once."""
    path = path_of(cpu)
    kept.write(path, Table(*cpu, path.name, kept.today(), kept.stamp(), ratios)._asdict())
    reread()
    return path


def forget(cpu: Cpu) -> bool:
    """Deletes what was kept; whether there was anything."""
    there = kept.remove(path_of(cpu))
    reread()
    return there


def _rows(table: Table) -> Iterator[tuple[tuple, tuple, Row]]:
    """The table's rows, each with the kind of call: mode, dtype and training; single step, layers and directions.
    Raises one of ``kept.DAMAGE`` for what is no table."""
    for name, ratio in table.ratios.items():
        layer, dtype, trains, *sizes = name.split()
        T, B, H, layers, directions = map(int, sizes)
        row = Row(max(T, 1), max(B, 1), max(H, 1), float(ratio), table.source)
        for mode in [mode for mode, cell in CELLS.items() if cell.layer == layer]:
            yield (mode, getattr(torch, dtype), trains == "training"), (T == 1, layers > 1, directions > 1), row


def _kept_table(cpu: Cpu) -> Table | str | None:
    """What was kept of the class; in words why it does not count; None if there is nothing."""

    def check(content: dict) -> None:
        table = Table(**content)
        if (table.isa, table.cores) != cpu:
            raise ValueError(f"it is about {table.isa}, {table.cores} cores")
        list(_rows(table))

    found = kept.read(path_of(cpu), check, kept.stamp())
    return Table(**found) if isinstance(found, dict) else found and f"{found}; run {COMMAND} again"


@functools.cache
def in_force() -> tuple[list[Table], str]:
    """The tables that count here, and what they are in words; read once per process."""
    cpu = this_cpu()
    if cpu is None:
        return [], "none, without the cpu kernels"
    own = _kept_table(cpu)
    if isinstance(own, Table):
        return [own], f"measured here {own.date}, {path_of(cpu)}"
    shipped = [Table(**table) for table in json.loads(SHIPPED.read_text(encoding="utf-8"))]
    tables = [table for table in shipped if (table.isa, table.cores) == cpu]
    text = (
        f"shipped, of {', '.join(table.source for table in tables)}"
        if tables
        else f"none for {cpu}: {COMMAND} makes it"
    )
    return tables, f"{text}; {own}" if own else text


def _rule(rows: list[Row]) -> Callable[[int, int, int], Row | None]:
    """What the rows of a kind of call say of a shape: the measurement by which torch takes it, or None."""

    @functools.lru_cache(maxsize=1024)
    def rule(T: int, B: int, H: int) -> Row | None:
        best = max(nearest(rows, T, B, H), key=lambda row: row.ratio)
        return best if best.ratio < AHEAD else None

    return rule


@functools.cache
def _rules() -> dict[tuple, dict[tuple, Callable[[int, int, int], Row | None]]]:
    """The rules of the kinds of call at which torch is ahead anywhere, which are few."""
    kinds: dict[tuple[tuple, tuple], list[Row]] = {}
    for table in in_force()[0]:
        for first, rest, row in _rows(table):
            kinds.setdefault((first, rest), []).append(row)
    found: dict[tuple, dict] = {}
    for (first, rest), rows in kinds.items():
        if any(row.ratio < AHEAD for row in rows):
            found.setdefault(first, {})[rest] = _rule(rows)
    return found


def torch_ahead(call: Call) -> Row | None:
    """The measurement by which torch takes a call on the CPU; None if it is our kernels'."""
    rules = _rules().get((call.mode, call.dtype, call.grad))
    if rules is None or call.packed or call.P or call.extended or call.transformed:
        return None
    rule = rules.get((call.T == 1, call.layers > 1, call.directions > 1))
    return rule and rule(call.T, call.B, call.H)


def reread() -> None:
    """Reads the tables anew at the next call."""
    in_force.cache_clear()
    _rules.cache_clear()
