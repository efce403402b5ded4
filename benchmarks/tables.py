"""Writes the tables of the documents: `python benchmarks/tables.py`, or with --check compares.

A table stands between two comments, `<!-- KIND: … -->` and `<!-- /KIND -->`:

results: NAME.csv BACKEND   the newest rows of results/NAME.csv against torch.nn with that backend, of grid `cpu`
own: NAME.csv               those of the grids of cells and options that torch.nn does not have
deployed: NAME.csv N        the rows of results/deployed/NAME.csv, which infer.py writes, with N threads
clients                     results/clients.csv
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import clients
import deployed_report
from cases import OWN_GRIDS
from plot import markdown
from results import case_of, latest, read_rows

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PAGES = (
    DOCS / "benchmarks.md",
    DOCS / "clients.md",
    DOCS / "inference.md",
    DOCS / "cells.md",
    HERE.parent / "README.md",
)
BLOCK = re.compile(r"(<!-- (results|own|deployed|clients)(?:: (.+?))? -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """The page's text with every table made anew; ValueError if one has no rows."""

    def made(match: re.Match[str]) -> str:
        begin, kind, arguments, end = match.groups("")
        return f"{begin}{TABLES[kind](*arguments.split())}\n{end}"

    return BLOCK.sub(made, text)


def _results(name: str, backend: str) -> str:
    wanted = {"grid": "cpu", "opponent": "torch", "backend": backend}
    rows = [row for row in latest(read_rows(HERE / "results" / name)) if row.items() >= wanted.items()]
    if not rows:
        raise ValueError(f"tables.py: expected rows of {wanted} in {name}, got none")
    return markdown(rows)


def _deployed(name: str, threads: str) -> str:
    rows = deployed_report.read(HERE / "results" / "deployed" / name)
    return deployed_report.table([row for row in rows if row["threads"] == threads])


def _own(name: str) -> str:
    """A row for each layer and option, and for each of its shapes our time and the loops' over it."""
    rows = [row for row in latest(read_rows(HERE / "results" / name)) if row["grid"] in OWN_GRIDS]
    shapes = list(dict.fromkeys(case_of(row).shape.removesuffix(f" {row['option']}") for row in rows))
    lines = ["| layer | " + " | ".join(f"{shape} | loop | compiled loop" for shape in shapes) + " |"]
    lines.append("| --- |" + " ---: |" * 3 * len(shapes))
    for cell, option in dict.fromkeys((row["cell"], row["option"]) for row in rows):
        cells = []
        for shape in shapes:
            mine = [
                r for r in rows if (r["cell"], r["option"]) == (cell, option) and case_of(r).shape.startswith(shape)
            ]
            of = {row["opponent"]: row for row in mine}
            cells.append(f"{float(of['torch']['ours_ms_median']):.3g} ms")
            cells += [f"{float(of[name]['ratio']):.2f}x" if name in of else "" for name in ("torch", "compiled-loop")]
        lines.append(f"| {f'{cell} {option}'.strip()} | " + " | ".join(cells) + " |")
    first = rows[-1]
    place = f"{first['device']}, {first['threads']} thread, torch {first['torch']}, fastrnn {first['fastrnn']}"
    return "\n".join([*lines, "", f"{place} ({first['commit']}), training in {first['dtype']}, {first['date'][:10]}."])


def _clients() -> str:
    return clients.markdown(clients.read_rows(clients.RESULTS))


TABLES = {"results": _results, "own": _own, "deployed": _deployed, "clients": _clients}


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if --check finds a stale table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is stale")
    check, stale = parser.parse_args(argv).check, False
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = with_tables(before)
        stale |= after != before
        if not check:
            page.write_text(after, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
