"""Writes the tables of the documents: `python benchmarks/tables.py`, or with --check compares.

Between `<!-- results: NAME.csv BACKEND -->` and `<!-- /results -->` stands a table of the newest rows of that file of
results/ against torch.nn with that backend setting, of grid `cpu`; between `<!-- clients -->` and `<!-- /clients -->`
that of results/clients.csv; between `<!-- deployed: NAME.csv N -->` and `<!-- /deployed -->` that of the rows
of infer.py with N threads in that file of results/deployed/.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import clients
import deployed_report
from plot import markdown
from results import latest, read_rows

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PAGES = (DOCS / "benchmarks.md", DOCS / "clients.md", DOCS / "inference.md", HERE.parent / "README.md")
BLOCK = re.compile(r"<!-- results: (\S+) (\S+) -->\n.*?<!-- /results -->", re.DOTALL)
CLIENTS = re.compile(r"<!-- clients -->\n.*?<!-- /clients -->", re.DOTALL)
DEPLOYED = re.compile(r"<!-- deployed: (\S+) (\d+) -->\n.*?<!-- /deployed -->", re.DOTALL)


def with_tables(text: str) -> str:
    """The page's text with every table made anew; ValueError if one has no rows."""

    def made(match: re.Match[str]) -> str:
        name, backend = match.groups()
        wanted = {"grid": "cpu", "opponent": "torch", "backend": backend}
        rows = [row for row in latest(read_rows(HERE / "results" / name)) if row.items() >= wanted.items()]
        if not rows:
            raise ValueError(f"tables.py: expected rows of {wanted} in {name}, got none")
        return f"<!-- results: {name} {backend} -->\n{markdown(rows)}\n<!-- /results -->"

    def deployed(match: re.Match[str]) -> str:
        name, threads = match.groups()
        rows = [row for row in deployed_report.read(HERE / "results" / "deployed" / name) if row["threads"] == threads]
        return f"<!-- deployed: {name} {threads} -->\n{deployed_report.table(rows)}\n<!-- /deployed -->"

    text = DEPLOYED.sub(deployed, BLOCK.sub(made, text))
    if not CLIENTS.search(text):
        return text
    table = clients.markdown(clients.read_rows(clients.RESULTS))
    return CLIENTS.sub(lambda _: f"<!-- clients -->\n{table}\n<!-- /clients -->", text)


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
