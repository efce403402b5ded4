"""Makes fastrnn/_backends/choice.json of the results: `python benchmarks/choice.py`, or with --check to compare only.

A table per file, of its rows of the grids `cpu` and `tune` that our CPU kernels served (`--backend cpu`, or chosen). Of
several thread counts the ratio that is best for our kernels counts: torch has to be ahead with all of them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from results import case_of, read_rows

from fastrnn._backends.choice import SHIPPED, Table, key_of

RESULTS = Path(__file__).resolve().parent / "results"
GRIDS = ("cpu", "tune")


def table_of(path: Path) -> Table | None:
    """The table of a file; None if our CPU kernels served none of its rows."""
    newest, last = {}, None
    for row in read_rows(path):
        is_ours = (row["opponent"], row["chosen"], row["status"]) == ("torch", "cpu", "ok")
        if is_ours and row["grid"] in GRIDS and row["isa"]:
            last = row
            newest[key_of(case_of(row)), row["threads"]] = float(row["ratio"])
    if last is None:
        return None
    ratios: dict[str, float] = {}
    for (key, _), ratio in newest.items():
        ratios[key] = max(ratio, ratios.get(key, 0.0))
    cores = int(re.search(r"\((\d+) cores", last["device"])[1])
    return Table(last["isa"], cores, f"benchmarks/results/{path.name}", last["date"][:10], {}, ratios)


def text_of(folder: Path = RESULTS) -> str:
    """The shipped file's text."""
    tables = filter(None, map(table_of, sorted(folder.glob("*-cores-*.csv"))))
    texts = [re.sub(r"(.{80,}?,) ", r"\1\n", json.dumps(table._asdict())) for table in tables]
    return "[\n" + ",\n".join(texts) + "\n]\n"


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if --check finds another text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the file is stale")
    if parser.parse_args(argv).check:
        return int(SHIPPED.read_text() != text_of())
    SHIPPED.write_text(text_of())
    print(f"written to {SHIPPED}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
