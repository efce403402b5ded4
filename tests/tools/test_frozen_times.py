"""benchmarks/infer.py runs every side that is here, refuses those that are not, and writes a row for each."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from support import compiled, using

from fastrnn.bench.case import Case

pytestmark = compiled
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def infer(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("infer", "deployed"):
        sys.modules.pop(name, None)
    import infer

    case = Case("GRU", 3, 2, 4, 5)
    monkeypatch.setattr(
        infer, "GRIDS", {"infer": (case,), "stream": (Case("GRU", 1, 1, 4, 5), Case("LSTM", 1, 1, 4, 5))}
    )
    monkeypatch.setattr(infer, "ERROR_STEPS", 20)
    return infer


def run(infer, tmp_path, sides: str, grid: str) -> tuple[int, list[dict]]:
    path = tmp_path / "rows.csv"
    with using():
        status = infer.main(["--grid", grid, "--sides", sides, "--seconds-per-case", "0.05", "--out", str(path)])
    with path.open() as file:
        return status, list(csv.DictReader(file))


def test_rows(infer, tmp_path):
    sides = "frozen,frozen-bf16,frozen-int8,fastrnn,torch,torch-int8"
    status, rows = run(infer, tmp_path, sides, "infer,stream")
    assert status == 0 and len(rows) == 18
    for row in rows:
        assert row["status"] == "ok" and float(row["ms_p99"]) >= float(row["ms_median"]) > 0 and row["device"]
        exact = row["side"] in ("frozen", "fastrnn", "torch")
        assert (float(row["max_error"]) < 1e-5) is exact and float(row["mean_error"]) <= float(row["max_error"])


def test_a_side_that_is_another_layer_is_wrong(infer, tmp_path, monkeypatch):
    monkeypatch.setitem(infer.SIDES, "torch", lambda layer: lambda x, states: (torch.zeros(*x.shape[:2], 5), *states))
    status, rows = run(infer, tmp_path, "torch", "infer")
    assert status == 1 and [row["status"] for row in rows] == ["WRONG"]


def test_what_is_not_here_is_refused(infer, tmp_path, monkeypatch):
    import deployed

    monkeypatch.setattr(deployed, "find_spec", lambda name: None)
    status, rows = run(infer, tmp_path, "openvino,onnxruntime,frozen", "infer")
    assert status == 0 and [row["status"] for row in rows] == [
        "refused: openvino is not installed", "refused: onnxruntime or onnx is not installed", "ok",
    ]  # fmt: skip


def test_onnxruntime(infer, tmp_path):
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"pip install '.[onnx]': {name} is not installed")
    status, rows = run(infer, tmp_path, "onnxruntime,frozen,ort-int8", "stream")
    assert status == 0
    assert [row["status"] for row in rows if row["cell"] == "LSTM"] == ["ok"] * 3
    assert rows[2]["status"] == "refused: ONNX Runtime quantises no GRU"
    assert all(float(row["onnxruntime_over_this"]) > 0 for row in rows if row["status"] == "ok")
