"""What becomes of result rows: right means, the targets that apply to them, figures and tables."""

from __future__ import annotations

import cases
import plot
import pytest
import results
import summary
import targets
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


def test_every_target_row_of_a_gpu_is_found():
    place = {"backend": "auto", "extension": "yes", "cuda": "13.0", "device": "NVIDIA H200", "dtype": "float32"}
    for grid, against, goal, worst in (
        ("sizes", "torch", 2.0, 1.0),
        ("decode", "torch", 2.0, 1.0),
        ("packed", "torch", 5.0, 2.0),
        ("cudnn-best", "torch", 1.2, 1.0),
        ("long", "flashrnn", 2.0, 1.5),
    ):
        target = targets.target_of(place | {"grid": grid, "opponent": against})
        assert (target.goal("GRU", "training"), target.worst) == (goal, worst)
    assert targets.target_of(place | {"grid": "long", "opponent": "torch"}) is None


def test_a_figure_and_a_table_are_made(tmp_path):
    source = tmp_path / "r.csv"
    file = results.ResultFile(source)
    for row in cpu_rows(2.5):
        file.append(row)
    assert plot.main([str(source), "--png", str(tmp_path / "r.png")]) == 0
    assert (tmp_path / "r.png").stat().st_size > 1000
    text = plot.markdown(cpu_rows(2.5))
    assert "| GRU | float32 | 1 | 2.50x | 2.50x | 2.50x | 2.50x | 0.50 |" in text
    assert "Test CPU, against torch.nn 2.0, fastrnn 0.1 (abc)" in text and "18 of the 108 cases" in text


def test_the_caption_says_what_was_not_the_default():
    plain = plot.caption(cpu_rows(2.0))
    assert "backend" not in plain and "extension" not in plain
    other = plot.caption(cpu_rows(2.0, backend="reference", extension="no", date="2026-01-02T03:04:05Z"))
    assert "without the compiled extension, backend reference, 2026-01-02" in other


def test_figures_split_by_threads_and_by_cell_where_there_are_many_shapes(tmp_path):
    one = cpu_rows(2.0)
    two = [row | {"threads": "2"} for row in one]
    assert [path.name for path, _ in plot.figures(one, tmp_path / "a.png")] == ["a.png"]
    names = [path.name for path, _ in plot.figures(one + two, tmp_path / "a.png")]
    assert names == ["a-1-threads.png", "a-2-threads.png"]
    many = [row_of(case) for case in cases.GRIDS["odd"]]
    names = [path.name for path, _ in plot.figures(many, tmp_path / "a.png")]
    assert names == ["a-lstm.png", "a-gru.png", "a-rnn.png"]


def test_the_tables_of_files(tmp_path, capsys):
    full = tmp_path / "full.csv"
    file = results.ResultFile(full)
    for row in cpu_rows(2.5):
        file.append(row)
    assert summary.main([str(full)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("full\n\ngrid ") and "mean 2.3, worst 0.95: met" in text
    assert summary.main([str(full), str(tmp_path / "none.csv")]) == 1
    assert "none.csv: no rows" in capsys.readouterr().out
