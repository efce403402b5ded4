"""Writes the tables of docs/benchmarks.md and docs/clients.md: `python benchmarks/tables.py`, or with --check compares.

Between `<!-- results: NAME.csv BACKEND -->` and `<!-- /results -->` stands a table of the newest rows of that file of
results/ against torch.nn with that backend setting, of grid `cpu`; between `<!-- clients -->` and `<!-- /clients -->`
that of results/clients.csv.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import clients
from plot import markdown
from results import latest, read_rows

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
CLIENTS = HERE.parent / "docs" / "clients.md"
BLOCK = re.compile(r"<!-- results: (\S+) (\S+) -->\n.*?<!-- /results -->", re.DOTALL)
CLIENTS_BLOCK = re.compile(r"<!-- clients -->\n.*?<!-- /clients -->", re.DOTALL)


def with_tables(text: str) -> str:
    """The page's text with every table made anew; ValueError if one has no rows."""

    def made(match: re.Match[str]) -> str:
        name, backend = match.groups()
        wanted = {"grid": "cpu", "opponent": "torch", "backend": backend}
        rows = [row for row in latest(read_rows(HERE / "results" / name)) if row.items() >= wanted.items()]
        if not rows:
            raise ValueError(f"{PAGE}: expected rows of {wanted} in {name}, got none")
        return f"<!-- results: {name} {backend} -->\n{markdown(rows)}\n<!-- /results -->"

    table = clients.markdown(clients.read_rows(clients.RESULTS))
    return CLIENTS_BLOCK.sub(lambda _: f"<!-- clients -->\n{table}\n<!-- /clients -->", BLOCK.sub(made, text))


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if --check finds a stale table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is stale")
    check, stale = parser.parse_args(argv).check, False
    for page in (PAGE, CLIENTS):
        before = page.read_text(encoding="utf-8")
        after = with_tables(before)
        stale |= after != before
        if not check:
            page.write_text(after, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
