"""The benchmark program: results that survive an interrupt, and opponents that compute the layer."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import cases
import opponents
import pytest
import results
import run
import torch
from benchmark_rows import PLACE, SETTING, TINY, row_of
from torch import nn

from fastrnn.bench import environment
from fastrnn.bench.case import Side, build, make_inputs, make_weights
from fastrnn.bench.gate import Error, deviation, errors
from fastrnn.bench.measure import Measurement, exact_results, measure
from fastrnn.bench.timing import Spread

# --- grids -------------------------------------------------------------------------------------------------------


def test_filter_keeps_matching_cases_and_refuses_unknown_fields():
    kept = cases.select(cases.GRIDS["cpu"], "cell=GRU|RNN, dtype=float32,H=650")
    assert {(case.cell, case.mode) for case in kept} == {
        (c, m) for c in ("GRU", "RNN") for m in ("forward", "training")
    }
    assert cases.select(cases.GRIDS["packed"], "packed=True") == list(cases.GRIDS["packed"])
    with pytest.raises(ValueError, match="FIELD one of cell, T, B"):
        cases.select(cases.GRIDS["cpu"], "hidden=3")


# --- results -----------------------------------------------------------------------------------------------------


def test_rows_survive_the_file(tmp_path):
    path = tmp_path / "deep" / "x.csv"
    rows = [row_of(case) for case in cases.GRIDS["cpu"][:3]] + [row_of(TINY, status="WRONG")]
    for row in rows:
        results.ResultFile(path).append(row)
    assert results.read_rows(path) == rows
    assert [results.case_of(row) for row in rows] == [*cases.GRIDS["cpu"][:3], TINY]
    assert results.case_of(row_of(replace(TINY, packed=True))).packed is True


def test_a_row_cut_short_is_dropped_and_another_header_refused(tmp_path):
    path = tmp_path / "x.csv"
    results.ResultFile(path).append(row_of(TINY))
    with path.open("a") as file:
        file.write("2026-01-01,half a r")
    assert [row["H"] for row in results.read_rows(path)] == ["5"]
    results.ResultFile(path).append(row_of(replace(TINY, H=6)))
    assert [row["H"] for row in results.read_rows(path)] == ["5", "6"]
    path.write_text("date,device\n")
    with pytest.raises(ValueError, match="columns differ"):
        results.ResultFile(path)


def test_a_file_from_before_a_column_stays_readable_and_grows(tmp_path):
    path, row, newer = tmp_path / "x.csv", row_of(TINY, of_floor="", detail=""), row_of(TINY, option="zoneout=0.1")
    names = [name for name in results.COLUMNS if name not in results.ADDED]
    path.write_text("".join(",".join(line) + "\n" for line in (names, [row[name] for name in names])))
    assert results.read_rows(path) == [row]
    results.ResultFile(path).append(newer)
    assert results.read_rows(path) == [row, newer] and list(tmp_path.iterdir()) == [path]


def test_the_newest_row_of_a_measurement_counts():
    old, other, new = row_of(TINY, ratio=1.0), row_of(replace(TINY, H=6)), row_of(TINY, ratio=3.0, commit="def")
    assert results.latest([old, other, new]) == [new, other]


@pytest.fixture
def fake_run(monkeypatch, tmp_path):
    """run.main on two cases with the measurement replaced; gives a function that returns (status, cases measured)."""
    two = (TINY, replace(TINY, mode="training"))
    monkeypatch.setattr(run, "GRIDS", {"cpu": two})
    monkeypatch.setattr(run, "environment", lambda _device: PLACE)
    plan = {"status": "ok", "stop_after": math.inf}

    def go(*argv, out=("--out", str(tmp_path / "r.csv"))):
        measured = []

        def fake(case, *_):
            if len(measured) >= plan["stop_after"]:
                raise KeyboardInterrupt
            measured.append(case)
            times = Spread(1.0, 1.0, 1.0, 5) if plan["status"] == "ok" else None
            return [Measurement(plan["status"], detail="why", ours=times, other=times)]

        monkeypatch.setattr(run, "measure", fake)
        return run.main(["--threads", "1", *argv, *out]), measured

    go.plan, go.path = plan, tmp_path / "r.csv"
    return go


def test_an_interrupted_run_keeps_its_rows_and_resumes(fake_run, capsys):
    fake_run.plan["stop_after"] = 1
    assert fake_run() == (130, [TINY]) and len(results.read_rows(fake_run.path)) == 1
    fake_run.plan["stop_after"] = math.inf
    assert fake_run("--resume") == (0, [replace(TINY, mode="training")])
    assert len(results.read_rows(fake_run.path)) == 2 and fake_run("--resume") == (0, [])
    assert "2 of" not in capsys.readouterr().err
    assert len(fake_run("--resume", "--commit", "other")[1]) == 2  # other code: measured again
    assert len(fake_run()[1]) == 2


def test_a_run_stops_in_time_and_in_the_same_mixed_order(fake_run, monkeypatch, capsys):
    many = [replace(TINY, H=h) for h in range(1, 20)]
    monkeypatch.setattr(run, "GRIDS", {"cpu": many})
    (first, in_order), (_, mixed), (_, again) = fake_run(), fake_run("--shuffle"), fake_run("--shuffle")
    assert in_order == many and first == 0
    assert mixed == again != many and sorted(mixed, key=lambda case: case.H) == many
    now = iter(range(100))
    monkeypatch.setattr(run.time, "monotonic", lambda: next(now))
    capsys.readouterr()
    assert fake_run("--stop-after", "5") == (0, many[:4])
    assert "stopped with 4 of 19 jobs done" in capsys.readouterr().out


def test_a_wrong_result_has_its_figures_and_no_time_in_line_and_row():
    found = Measurement("WRONG", detail="output: error 2e-3", worst=Error("output", 2e-3, 1e-7, 3e-7))
    assert str(found) == "WRONG  output: error 2e-3"
    row = results.to_row({}, found, "cpu")
    assert row["ratio"] == row["repeats"] == row["ours_ms_median"] == row["of_floor"] == ""
    assert (row["worst_tensor"], row["ours_error"], row["error_budget"]) == ("output", "2.000e-03", "3.000e-07")


@pytest.mark.parametrize(("status", "code"), [("WRONG", 1), ("error", 1), ("refused", 0)])
def test_exit_status_tells_wrong_and_failed_runs(fake_run, status, code):
    fake_run.plan["status"] = status
    assert fake_run()[0] == code
    again = 2 if status == "error" else 0  # what failed is tried again
    assert len(fake_run("--resume")[1]) == again


def test_command_line_errors_name_the_choices(capsys):
    for argv, message in (
        (["--grid", "nope"], "expected some of cpu, tune, cudnn-best"),
        (["--filter", "H=3"], "leaves no case"),
        (["--filter", "x=3"], "FIELD one of"),
    ):
        with pytest.raises(SystemExit):
            run.main(argv)
        assert message in capsys.readouterr().err
    assert run.main(["--grid", "packed", "--list"]) == 0 and "bidirectional packed" in capsys.readouterr().out


def test_real_run_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "GRIDS", {"cpu": (TINY, replace(TINY, mode="training", cell="GRU"))})
    out = tmp_path / "r.csv"
    assert run.main(["--quick", "--seconds-per-case", "0.001", "--threads", "1,all", "--out", str(out)]) == 0
    rows = results.read_rows(out)
    counts = dict.fromkeys(("1", str(environment.ALL_THREADS)))
    assert [row["threads"] for row in rows] == [*counts, *counts] and all(
        float(row["ratio"]) > 0 < float(row["of_floor"]) for row in rows
    )
    assert all(row["torch"] == torch.__version__ and row["chosen"] and row["date"] for row in rows)
    assert rows[-1]["memory"] == "saved" and int(rows[-1]["other_bytes"]) > 0
    assert "GRU" in capsys.readouterr().out


def test_a_busy_machine_is_told(fake_run, monkeypatch, capsys):
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 4)
    for load, told in ((1.9, False), (2.1, True)):
        monkeypatch.setattr(environment.os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        fake_run()
        assert ("load average" in capsys.readouterr().err) == told


def test_quick_rows_go_where_they_replace_no_others(fake_run, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "QUICK_RESULTS", tmp_path / "runs")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    fake_run("--quick", out=())
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["test-cpu.csv"]
    assert not (tmp_path / "results").exists()


# --- opponents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_the_loop_opponent_computes_the_layer(cell, monkeypatch):
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function: function)  # its maths; compiling it takes a minute
    case = replace(TINY, cell=cell, layers=2, mode="training")
    weights, inputs = make_weights(case), make_inputs(case, "cpu")[0]
    loop = opponents.opponent("compiled-loop", case)(case, torch.device("cpu"), weights)
    sides = [loop, Side(build(getattr(nn, cell), case, "cpu", weights), case)]
    exact = exact_results(case, weights, inputs, "cpu")
    found = errors(sides[0].names, sides[0](inputs), sides[1](inputs), exact)
    assert all(error.ok for error in found), found[0]


def test_an_opponent_that_computes_something_else_is_refused():
    def other(case, device, weights):
        return Side(build(nn.LSTM, case, device, {name: -value for name, value in weights.items()}), case)

    (found,) = measure(TINY, SETTING, other)
    assert found.status == "refused" and "opponent's output is off" in found.detail and found.other is None


@pytest.mark.parametrize("resets", [0.0, 0.2])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_torchrl_computes_the_layer(cell, resets):
    pytest.importorskip("torchrl", reason="torchrl is not installed; CI's lane clients has it")
    case = replace(TINY, cell=cell, layers=2, mode="training", resets=resets)
    weights, inputs = make_weights(case), make_inputs(case, "cpu")[0]
    side = opponents.opponent("torchrl", case)(case, torch.device("cpu"), weights)
    side.prepare(inputs)
    found, exact = list(side(inputs)), exact_results(case, weights, inputs, "cpu")
    states, weighed = len(case.states), len(weights)
    found[1 + states] = found[1 + states].transpose(0, 1)  # of the input
    if resets:  # it does not promise the final states
        found, exact = found[:1], exact[:1]
    for k in range(2 + states, len(found) - weighed):  # of the states that the first step reads
        assert not found[k][:, 1:].any()
        found[k] = found[k][:, 0].transpose(0, 1)
    assert all(deviation(actual, true) < 1e-6 for actual, true in zip(found, exact, strict=True))


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("torchrl", {"cell": "RNN"}, "compared on LSTM and GRU"),
        ("torchrl", {"dtype": "bfloat16"}, "its kernels keep float32, not bfloat16"),
        ("compiled-loop", {"directions": 2}, "written for one direction"),
        ("compiled-loop", {"resets": 0.2}, "not written for resets"),
        ("flashrnn", {"cell": "GRU"}, "compared on one padded LSTM layer"),
        ("flashrnn", {}, "not importable here"),
    ],
)
def test_an_opponent_that_cannot_be_had_says_why(name, changes, why, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    (found,) = run.Job("cpu", replace(TINY, **changes), SETTING, name).measure()
    assert found.status == "refused" and found.detail.startswith(f"{name}: {why}")
