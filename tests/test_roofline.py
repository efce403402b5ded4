"""Floors of result rows: right sums, measured figures in their place, clear refusals. All rows here are made up."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fastrnn.bench.case import Case, lengths_of
from fastrnn.bench.environment import ALL_THREADS, environment

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import ceilings
import floor
import machine
import results
import roofline
import torch

TINY = Case("LSTM", T=3, B=2, I=4, H=5)
WIDE = Case("LSTM", T=50, B=16, I=64, H=256, dtype="bfloat16")
GPU = {"device": "NVIDIA H200", "cuda": "13.0", "threads": "16", "chosen": "cuda", "backend": "cuda"}
LATENCIES = ("what", "size", "us")
CPU = {"device": "Test CPU", "cuda": "", "threads": "1", "chosen": "cpu", "backend": "auto"}


def row_of(case, place=GPU, ms=1.0, **changes):
    row = dict.fromkeys(results.COLUMNS, "") | {"status": "ok", "launch": "eager", "grid": "sizes", "opponent": "torch"}
    row |= {"date": "2026-01-01T00:00:00Z", "torch": "2.0", "fastrnn": "0.1", "extension": "yes"} | place
    return row | {name: str(value) for name, value in asdict(case).items()} | {"ours_ms_median": str(ms)} | changes


def point_of(case, figures=None, **changes):
    row = row_of(case, **changes)
    return roofline.Point(row, roofline.Work(case), (figures or machine.Figures()).of(row))


def csv_of(path, rows):
    file = results.ResultFile(path)
    for row in rows:
        file.append(row)
    return path


def figures_file(path, fields, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([fields, *rows])
    return path


def test_flops_and_bytes_of_a_call():
    work = roofline.Work(TINY)
    assert work.flops == 2 * 6 * 20 * (4 + 5) and work.flops_in_steps == 2 * 6 * 20 * 5
    assert work.bytes == 4 * (6 * (4 + 5) + 20 * (4 + 5 + 2))
    training = roofline.Work(replace(TINY, mode="training"))
    assert training.flops == 3 * work.flops and training.flops_in_steps == 2 * work.flops_in_steps
    deep = replace(TINY, cell="GRU", layers=2, directions=2, dtype="bfloat16")
    assert roofline.Work(deep).flops == 2 * 6 * 15 * 2 * ((4 + 5) + (10 + 5))
    packed = replace(TINY, T=50, packed=True)
    assert roofline.Work(packed).rows == lengths_of(packed).sum() < 100 == roofline.Work(replace(TINY, T=50)).rows


def test_the_floor_is_steps_and_the_products_around_them():
    point = point_of(WIDE)
    (least, tier), layer = point.floor, floor.Layer(4, 256, 16)
    times = floor.step_seconds(floor.H200, layer)
    assert tier == "cluster" and least == pytest.approx(50 * times["cluster"] + 2 * 800 * 64 * 1024 / 790e12)
    back = floor.step_seconds(floor.H200, layer, backward=True)
    training, tiers = point_of(replace(WIDE, mode="training")).floor
    products = (3 * 64 + 256) * 2 * 800 * 1024 / 790e12
    assert training == pytest.approx(50 * (times["cluster"] + min(back.values())) + products)
    assert tiers == "cluster"
    two = point_of(replace(WIDE, layers=2)).floor[0]
    assert two == pytest.approx(2 * least, rel=0.01)
    huge = point_of(replace(WIDE, T=1, B=1, I=4096, H=4096))
    assert huge.floor == (pytest.approx(huge.work.bytes / 4.3e12), "roof")
    large = replace(WIDE, H=512, B=256)
    assert point_of(replace(large, packed=True)).floor[0] < 0.9 * point_of(large).floor[0]
    decode = replace(WIDE, H=4096, B=1)
    assert point_of(decode, launch="graph").floor[0] < point_of(decode).floor[0]  # tier step, by its launch


def test_the_table_tells_time_floor_and_tier(tmp_path, capsys):
    kernels = {"forward_kernel": "cluster (a; b, c)", "backward_kernel": "step (fused)"}
    training = row_of(replace(WIDE, mode="training"), **kernels)
    rows = [row_of(WIDE, ms=0.1, forward_kernel="cluster (a)"), training, row_of(replace(WIDE, H=96), status="error")]
    source = csv_of(tmp_path / "r.csv", rows)
    assert roofline.main([str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    least = point_of(WIDE).floor[0]
    assert lines[0] == "r" and lines.pop(0) + lines.pop(0) == "r"
    assert lines[1].split()[-5:] == ["2", f"{least * 1e6 / 50:.3g}", f"{0.1e-3 / least:.2f}", "cluster", "cluster"]
    assert lines[2].split()[-2:] == ["cluster+step", "cluster"] and lines[3] == ""
    assert (tmp_path / "r-roofline.png").stat().st_size > 1000


def test_measured_figures_replace_the_constants(tmp_path):
    barriers = figures_file(
        tmp_path / "b.csv", LATENCIES, [("cluster_barrier", 16, 0.7), ("grid_barrier", 132, 2), ("launch", 1, 3)]
    )
    measured = [(GPU["device"], 16, "multiprocessors", 66, ""), (GPU["device"], 16, "copy", 4000, "GB/s")]
    measured += [(GPU["device"], 16, "matrix bfloat16", 400, "TFLOP/s")]
    ceiling = figures_file(tmp_path / "c.csv", ceilings.FIELDS, measured)
    found = machine.Figures(ceiling, barriers).of(row_of(WIDE))
    assert (found.copy, found.matrix) == (4e12, {"bfloat16": 400e12}) and found.steps.multiprocessors == 66
    assert (found.steps.cluster_barrier, found.steps.launch) == ({16: pytest.approx(0.7e-6)}, pytest.approx(3e-6))
    assert found.steps.graph_launch == floor.H200.graph_launch
    slower = point_of(WIDE, machine.Figures(barriers=barriers)).floor[0] - point_of(WIDE).floor[0]
    assert slower == pytest.approx(50 * 0.5e-6, rel=0.01)
    with pytest.raises(machine.Unknown, match="no matrix rate of tf32 on NVIDIA H200: known are bfloat16"):
        machine.Figures(ceiling).of(row_of(replace(WIDE, dtype="float32"), precision="tf32"))
    other = GPU | {"device": "NVIDIA B200"}
    moved = figures_file(tmp_path / "d.csv", ceilings.FIELDS, [("NVIDIA B200", *rest) for _, *rest in measured])
    assert machine.Figures(moved, barriers).of(row_of(WIDE, other)).steps.name == "NVIDIA B200"
    with pytest.raises(machine.Unknown, match="--ceilings FILE --barriers FILE"):
        machine.Figures(moved).of(row_of(WIDE, other))
    with pytest.raises(ValueError, match="got 'fence'"):
        machine.latencies([{"what": "fence", "size": "1", "us": "1"}])
    assert machine.latencies([{"what": "launch", "size": "1", "us": "2"}])["cluster_barrier"] == {}  # none on this GPU


def test_a_cpu_is_held_against_its_roof(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ceilings, "copy_rate", lambda *_: 40.0)
    monkeypatch.setattr(ceilings, "matrix_rate", lambda *_: 0.1)
    source = csv_of(tmp_path / "r.csv", [row_of(TINY, CPU | {"device": environment(torch.device("cpu"))["device"]})])
    assert roofline.main([str(source)]) == 1
    assert "--threads 1 --out FILE` and give --ceilings FILE" in capsys.readouterr().err
    found = tmp_path / "new" / "c.csv"
    for threads in ("1", "2"):
        assert ceilings.main(["--threads", threads, "--out", str(found)]) == 0
    torch.set_num_threads(ALL_THREADS)
    assert len(found.read_text().splitlines()) == 1 + 2 * 3
    capsys.readouterr()
    assert roofline.main([str(source), "--ceilings", str(found)]) == 0
    line = capsys.readouterr().out.splitlines()[3].split()
    work = roofline.Work(TINY)
    assert line[-2:] == ["cpu", "roof"] and float(line[-4]) == pytest.approx(1e6 * work.bytes / 40e9 / 3, rel=0.01)
    assert (tmp_path / "r-roofline.png").exists()


def test_thread_counts_have_ceilings_of_their_own(tmp_path):
    rates = [("Test CPU", threads, what, threads, "") for threads in (1, 2) for what in ("copy", "matrix float32")]
    figures = machine.Figures(figures_file(tmp_path / "c.csv", ceilings.FIELDS, rates))
    found = [figures.of(row_of(TINY, CPU | {"threads": threads})) for threads in ("1", "2")]
    assert [(place.copy, place.matrix, place.steps) for place in found] == [
        (1.0, {"float32": 1.0}, None),
        (2.0, {"float32": 2.0}, None),
    ]
    with pytest.raises(machine.Unknown, match="with 3 threads"):
        figures.of(row_of(TINY, CPU | {"threads": "3"}))


def test_a_file_without_times_costs_the_others_nothing(tmp_path, capsys):
    empty = csv_of(tmp_path / "e.csv", [row_of(WIDE, status="WRONG"), row_of(WIDE, grid="sizes")])
    full = csv_of(tmp_path / "f.csv", [row_of(WIDE, grid="odd")])
    assert roofline.main([str(empty), str(full), "--grid", "odd"]) == 1
    told = capsys.readouterr()
    assert f"{empty}: no row with a time of grid odd" in told.err and "T=50 B=16" in told.out
    assert [path.name for path in tmp_path.glob("*.png")] == ["f-roofline.png"]
