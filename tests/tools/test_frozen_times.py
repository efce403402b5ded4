"""benchmarks/infer.py runs every side that is here, refuses those that are not, and writes a row for each."""

from __future__ import annotations

import csv

import infer
import pytest
import torch
from support import compiled, using

from fastrnn.bench.case import Case

pytestmark = compiled


@pytest.fixture(autouse=True)
def small(monkeypatch):
    grids = {"infer": (Case("GRU", 3, 2, 4, 5),), "stream": (Case("GRU", 1, 1, 4, 5), Case("LSTM", 1, 1, 4, 5))}
    monkeypatch.setattr(infer, "GRIDS", grids)
    monkeypatch.setattr(infer, "ERROR_STEPS", 20)


def run(tmp_path, sides: str, grid: str) -> tuple[int, list[dict]]:
    path = tmp_path / "rows.csv"
    with using():
        status = infer.main(["--grid", grid, "--sides", sides, "--seconds-per-case", "0.05", "--out", str(path)])
    with path.open() as file:
        return status, list(csv.DictReader(file))


def test_rows(tmp_path, monkeypatch):
    """Of every side that is here and, with the reason, of one that is not."""
    monkeypatch.setattr("deployed.find_spec", lambda name: None)
    sides = ("frozen", "frozen-bf16", "frozen-int8", "fastrnn", "torch", "torch-int8", "openvino")
    status, rows = run(tmp_path, ",".join(sides), "infer,stream")
    assert status == 0 and [row["side"] for row in rows] == [*sides] * 3
    for row in rows:
        if row["side"] == "openvino":
            assert row["status"] == "refused: openvino is not installed"
            continue
        assert row["status"] == "ok" and float(row["ms_p99"]) >= float(row["ms_median"]) > 0 and row["device"]
        exact = row["side"] in ("frozen", "fastrnn", "torch")
        assert (float(row["max_error"]) < 1e-5) is exact and float(row["mean_error"]) <= float(row["max_error"])


def test_a_side_that_is_another_layer_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setitem(infer.SIDES, "torch", lambda layer: lambda x, states: (torch.zeros(*x.shape[:2], 5), *states))
    status, rows = run(tmp_path, "torch", "infer")
    assert status == 1 and [row["status"] for row in rows] == ["WRONG"]
