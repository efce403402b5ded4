"""What becomes of result rows: right means, the targets that apply to them, figures and tables."""

from __future__ import annotations

from pathlib import Path

import cases
import plot
import pytest
import results
import summary
from benchmark_rows import cpu_rows, row_of


def test_summary_means_worst_case_and_memory():
    rows = cpu_rows(2.0)
    rows[0]["ratio"], rows[2]["ratio"] = "0.5", "8.0"  # forward, and forward again: modes alternate
    forward, training = summary.groups(rows)
    assert (forward.key["mode"], training.key["mode"]) == ("forward", "training")
    assert forward.mean == pytest.approx(2.0) and forward.worst is rows[0] and forward.memory is None
    assert training.mean == pytest.approx(2.0) and training.memory == pytest.approx(0.5)
    assert summary.geometric_mean([]) is None
    text = summary.table(rows)
    assert "T=100 B=1 I=128 H=128" in text and "mean 2.3, worst 0.95: missed (mean, worst)" in text


@pytest.mark.parametrize(
    ("ratio", "changes", "verdict"),
    [
        (2.4, {}, "mean 2.3, worst 0.95: met"),
        (2.2, {}, "mean 2.3, worst 0.95: missed (mean)"),
        (1.1, {"backend": "reference"}, "mean 1: met"),
        (1.1, {"extension": "no"}, "mean 1, worst 0.95: met"),
        (1.1, {"backend": "aten"}, ""),
        (9.9, {"cuda": "13.0"}, ""),
    ],
)
def test_targets_apply_to_their_rows(ratio, changes, verdict):
    assert summary.groups(cpu_rows(ratio, **changes))[0].verdict == verdict


def test_a_wrong_or_missing_case_is_told_in_the_verdict():
    rows = cpu_rows(3.0)
    assert summary.groups(rows[:4])[0].verdict.endswith("met on 2 of 9 cases")
    rows[0] = row_of(results.case_of(rows[0]), status="WRONG")
    assert summary.groups(rows)[0].verdict == "mean 2.3, worst 0.95: missed (1 WRONG) on 8 of 9 cases"


def test_figures_and_tables_are_made(tmp_path, capsys):
    source = tmp_path / "r.csv"
    file = results.ResultFile(source)
    for row in cpu_rows(2.5):
        file.append(row)
    assert plot.main([str(source), "--png", str(tmp_path / "r.png")]) == 0
    assert (tmp_path / "r.png").stat().st_size > 1000
    text = plot.markdown(cpu_rows(2.5))
    assert "| GRU | float32 | 1 | 2.50x | 2.50x | 2.50x | 2.50x | 0.50 |" in text
    assert "Test CPU, against torch.nn 2.0, fastrnn 0.1 (abc)" in text and "18 of the 108 cases" in text
    assert summary.main([str(source), str(tmp_path / "none.csv")]) == 1
    printed = capsys.readouterr().out
    assert "mean 2.3, worst 0.95: met" in printed and "none.csv: no rows" in printed


def test_figures_split_by_threads_and_by_cell_where_there_are_many_shapes():
    rows = [row_of(case, threads=threads) for case in cases.GRIDS["odd"] for threads in "12"]
    names = {path.name for path, _ in plot.figures(rows, Path("a.png"))}
    assert names == {f"a-{threads}-threads-{cell}.png" for threads in "12" for cell in ("lstm", "gru", "rnn")}
