"""Writes the tables of docs/benchmarks.md: `python benchmarks/tables.py`, or with --check to compare only.

A table stands between `<!-- results: NAME.csv BACKEND -->` and `<!-- /results -->`: the newest rows of that file of
results/ against torch.nn with that backend setting, of grid `cpu`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from plot import markdown
from results import latest, read_rows

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
BLOCK = re.compile(r"<!-- results: (\S+) (\S+) -->\n.*?<!-- /results -->", re.DOTALL)


def with_tables(text: str) -> str:
    """The page's text with every table made anew; ValueError if one has no rows."""

    def made(match: re.Match[str]) -> str:
        name, backend = match.groups()
        wanted = {"grid": "cpu", "opponent": "torch", "backend": backend}
        rows = [row for row in latest(read_rows(HERE / "results" / name)) if row.items() >= wanted.items()]
        if not rows:
            raise ValueError(f"{PAGE}: expected rows of {wanted} in {name}, got none")
        return f"<!-- results: {name} {backend} -->\n{markdown(rows)}\n<!-- /results -->"

    return BLOCK.sub(made, text)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if --check finds a stale table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is stale")
    check, before = parser.parse_args(argv).check, PAGE.read_text(encoding="utf-8")
    after = with_tables(before)
    if not check:
        PAGE.write_text(after, encoding="utf-8")
    return int(check and after != before)


if __name__ == "__main__":
    sys.exit(main())
