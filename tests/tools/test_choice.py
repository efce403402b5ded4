"""The choice between our CPU kernels and torch's: the rule on made-up tables, the shipped one, and `fastrnn tune`."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from benchmark_rows import row_of
from support import build, compiled

import fastrnn
from fastrnn import _info
from fastrnn.__main__ import main
from fastrnn._backends import choice, dispatch
from fastrnn._spec import Call
from fastrnn.bench.case import Case
from fastrnn.bench.measure import Measurement
from fastrnn.bench.timing import Pace, Spread
from fastrnn.registry import CELLS, OWN_CELLS
from fastrnn.verdict import kept, tune

import choice as maker  # isort: skip
import results  # isort: skip

ROOT = Path(__file__).resolve().parents[2]
CPU = choice.Cpu("avx9", 4)
CASE = Case("GRU", T=1, B=1, I=256, H=256)
CALL = Call("GRU", "cpu", torch.float32, T=1, B=1, I=256, H=256)
SEQUENCE = {"T": 100, "B": 32}


@pytest.fixture(autouse=True)
def cpu(monkeypatch, tmp_path):
    """A class of CPU that nothing is known of, and a cache folder of its own."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "this_cpu", lambda: CPU)
    monkeypatch.setattr(kept, "digest", lambda: "as built")
    monkeypatch.setattr(dispatch, "_environment", None)
    choice.reread()
    yield CPU
    choice.reread()


@pytest.fixture
def ship(monkeypatch, tmp_path):
    """Ships tables, each of ratios by case, for the class at hand or another."""

    def ship(*tables: dict[Case, float], cpu=CPU):
        named = [{choice.key_of(case): ratio for case, ratio in table.items()} for table in tables]
        written = [choice.Table(*cpu, f"file{n}.csv", "2026-01-02", {}, ratios) for n, ratios in enumerate(named, 1)]
        monkeypatch.setattr(choice, "SHIPPED", tmp_path / "shipped.json")
        choice.SHIPPED.write_text(json.dumps([table._asdict() for table in written]))
        choice.reread()

    return ship


def case(**changes) -> Case:
    return dataclasses.replace(CASE, **changes)


def first(**changes) -> str:
    return dispatch.ranking(CALL._replace(**changes))[0]


# --- the rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "backend"), [(0.5, "aten"), (0.969, "aten"), (0.971, "cpu"), (1.0, "cpu"), (3.0, "cpu")]
)
def test_torch_is_chosen_where_it_is_ahead_by_more_than_noise(ship, ratio, backend):
    ship({CASE: ratio})
    assert first() == backend
    ship({CASE: ratio, case(B=64): 0.5})
    assert first() == backend


def test_what_was_not_measured_is_ours(ship):
    ship({CASE: 0.5, case(mode="training", directions=2, T=100): 0.5})
    assert first() == "aten"
    both = {"directions": 2, "T": 100, "grad": True}
    assert first(**both) == "aten"
    others = [{"mode": "LSTM"}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"grad": True}, {"layers": 2}]
    others += [{"directions": 2}, {"packed": True}, {"extended": True}, {"transformed": True}, both | {"layers": 2}]
    assert {first(**other) for other in others} == {"cpu"}
    ship({case(cell="LSTM"): 0.5})
    assert first(mode="LSTM") == "aten" and first(mode="LSTM", P=4) == "cpu"


def test_the_nearest_shape_decides(ship):
    ship({case(B=1): 0.5, case(B=64): 2.0, case(B=64, H=1024): 0.5})
    assert first(B=7) == first(B=0) == first(B=64, H=600) == "aten"
    assert first(B=9) == first(B=64, H=400) == "cpu"
    assert first(B=8) == "cpu"  # as near to either: torch has to be ahead at both


def test_single_steps_and_sequences_do_not_borrow_from_each_other(ship):
    ship({CASE: 0.5, case(**SEQUENCE): 2.0})
    assert first() == "aten" and first(T=2) == "cpu"
    ship({CASE: 2.0, case(**SEQUENCE): 0.5})
    assert first() == "cpu" and first(T=2) == "aten"


def test_both_elman_cells_are_of_one_class(ship):
    ship({case(cell="RNN"): 0.5})
    assert first(mode="RNN_TANH") == first(mode="RNN_RELU") == "aten"


def test_torch_has_to_be_ahead_in_all_tables_that_have_the_shape(ship):
    ship({CASE: 0.5, case(B=64): 0.5}, {CASE: 2.0})
    assert first() == "cpu" and first(B=64) == "aten"


def test_another_class_says_nothing(ship):
    for other in (CPU._replace(isa="avx2"), CPU._replace(cores=5)):
        ship({CASE: 0.5}, cpu=other)
        assert first() == "cpu"
    assert choice.in_force()[1] == "none for avx9, 4 cores: python -m fastrnn tune makes it"


def test_cells_that_torch_lacks_never_ask(ship, monkeypatch):
    ship({case(cell=cell): 0.5 for cell in {cell.layer for cell in CELLS.values()}})
    assert all(first(mode=mode) == "aten" for mode in CELLS)
    monkeypatch.setattr(choice, "nearest", None)
    assert all(first(mode=mode) == "cpu" for mode in (*OWN_CELLS, "UNHEARD_OF"))


def test_without_kernels_there_is_no_table(monkeypatch):
    monkeypatch.setattr(choice, "this_cpu", lambda: None)
    assert first() == "cpu" and choice.in_force() == ([], "none, without the cpu kernels")


@compiled
def test_explain_names_the_row(ship):
    ship({case(B=2, H=256): 2.0}, {case(cell="RNN"): 0.934})
    module, x = build(fastrnn, CELLS["RNN_TANH"], 4, 300), torch.randn(1, 1, 4)
    with torch.no_grad():
        said = fastrnn.explain(module, x)
    text = "torch was measured at 0.93 of our time at T=1 B=1 H=256 on this class of CPU (file2.csv)"
    assert said.backend == "aten" and said.reasons["cpu"] == [text]
    assert fastrnn.explain(module, x).backend == "cpu"  # trains


def test_the_tables_are_read_once(ship, monkeypatch):
    ship({CASE: 0.5})
    assert first() == "aten"
    choice.SHIPPED.unlink()
    monkeypatch.setattr(choice, "this_cpu", None)
    assert first() == first(B=2) == "aten"


# --- the file of this machine ------------------------------------------------------------------------------------


def test_what_was_kept_takes_precedence_and_can_be_forgotten(ship, tmp_path):
    ship({CASE: 0.5, case(mode="training"): 0.5})
    path = choice.save(CPU, {choice.key_of(CASE): 2.0, choice.key_of(case(**SEQUENCE)): 0.9})
    assert path == tmp_path / "cache/choice-avx9-4-cores.json"
    assert first() == first(grad=True) == "cpu" and first(**SEQUENCE) == "aten"
    assert choice.in_force()[1] == f"measured here {kept.today()}, {path}"
    assert choice.forget(CPU) and first() == first(grad=True) == "aten" and first(**SEQUENCE) == "cpu"
    assert not choice.forget(CPU)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ratios": {"GRU float33 forward 1 1 1 1 1": 1.0}}, "is damaged, AttributeError: "),
        ({"cores": 5}, "is damaged, ValueError: it is about avx9, 5 cores"),
        ({"more": 1}, "is damaged, TypeError: "),
        ({"stamp": {"torch": "2.0"}}, "no longer holds (fastrnn was None and is "),
    ],
    ids=str,
)
def test_a_file_that_is_damaged_or_of_something_else_counts_for_nothing(ship, changes, why):
    """What any file of `kept` must not be is told in tests/cuda/test_proof.py."""
    ship({CASE: 0.5})
    path = choice.save(CPU, {choice.key_of(CASE): 2.0})
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    choice.reread()
    assert first() == "aten"
    text = choice.in_force()[1]
    assert text.startswith(f"shipped, of file1.csv; {path} {why}") and text.endswith("fastrnn tune again")


# --- python -m fastrnn tune --------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    grid = tuple(
        Case(cell, T, 2, 4, 4, mode=mode) for cell in ("GRU", "LSTM") for T, mode in ((1, "training"), (3, "forward"))
    )
    monkeypatch.setattr(tune, "CASES", grid)
    monkeypatch.setattr(tune, "PACE", Pace(0.0, least=2, most=2))
    return grid


@compiled
def test_tune_measures_and_keeps(tiny, capsys):
    assert main(["tune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for number, (line, measured) in enumerate(zip(lines, tiny), 1):
        assert re.fullmatch(rf"{number}/4  {re.escape(str(measured))}  \d+\.\d\dx", line)
    path = choice.path_of(CPU)
    assert lines[-1] == f"written to {path}" and lines[-2].endswith("of 4 cases measured")
    ((table,), text) = choice.in_force()
    assert list(table.ratios) == [choice.key_of(measured) for measured in tiny]
    assert all(ratio > 0 for ratio in table.ratios.values())
    assert text == f"measured here {kept.today()}, {path}" and ("cpu choice", text) in _info._cpu()
    assert main(["tune", "--forget"]) == 0 and not path.exists()
    assert capsys.readouterr().out == f"forgotten: {path}\n"
    assert main(["tune", "--forget"]) == 0 and capsys.readouterr().out == "nothing was kept for avx9, 4 cores\n"


def measured(ratio: float, status="ok") -> list[Measurement]:
    return [Measurement(status, detail="why", ours=Spread(1.0, 1.0, 1.0, 5), other=Spread(ratio, 1.0, 1.0, 5))]


def test_a_tuned_machine_follows_what_was_found(tiny, monkeypatch, capsys):
    """A case that is wrong leaves no row, and the exit status says so."""
    ratios = dict(zip(tiny, (0.5, 2.0, None, 0.9)))
    monkeypatch.setattr(
        tune, "measure", lambda case, _: measured(ratios[case]) if ratios[case] else measured(0.1, "WRONG")
    )
    assert main(["tune"]) == 1
    printed = capsys.readouterr().out
    assert f"3/4  {tiny[2]}  WRONG  why" in printed and "torch is ahead at 2 of 3 cases measured" in printed
    assert first(grad=True) == first(mode="LSTM", T=3) == "aten"
    assert first(T=3) == first(mode="LSTM", grad=True) == "cpu"


def test_tune_asks_for_the_kernels_and_stops_in_time(tiny, monkeypatch, capsys):
    asked, now = [], iter(range(100))
    monkeypatch.setattr(tune, "measure", lambda case, setting: asked.append((case, setting.backend)) or measured(2.0))
    monkeypatch.setattr(tune.time, "monotonic", lambda: next(now))
    assert main(["tune", "--seconds", "2"]) == 0
    assert asked == [(tiny[0], "cpu"), (tiny[1], "cpu")] and len(choice.in_force()[0][0].ratios) == 2
    assert "stopped after 2 s with 2 of 4 cases done" in capsys.readouterr().out


def test_a_run_that_measures_nothing_leaves_what_was_kept(tiny, monkeypatch, capsys):
    monkeypatch.setattr(tune, "measure", lambda *_: measured(2.0))
    assert main(["tune"]) == 0
    before = choice.path_of(CPU).read_text()
    assert main(["tune", "--seconds", "1e-9"]) == 2
    monkeypatch.setattr(tune, "measure", lambda *_: measured(2.0, "WRONG"))
    assert main(["tune"]) == 1 and choice.path_of(CPU).read_text() == before
    assert capsys.readouterr().err.count("no case was measured: nothing was kept") == 2


def test_tune_keeps_nothing_of_a_run_cut_short_and_says_what_hinders_it(tiny, monkeypatch, capsys, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "measure", interrupt)
    assert main(["tune"]) == 130 and not choice.path_of(CPU).exists()
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "file"))  # found before anything is measured
    assert main(["tune"]) == 2 and "python -m fastrnn tune: [Errno" in capsys.readouterr().err
    monkeypatch.setattr(choice, "this_cpu", lambda: None)
    assert main(["tune"]) == 2 and "there are no CPU kernels" in capsys.readouterr().err


# --- the shipped table -------------------------------------------------------------------------------------------


def test_the_shipped_table_is_that_of_the_committed_results(monkeypatch, tmp_path):
    monkeypatch.undo()
    assert maker.main(["--check"]) == 0, "python benchmarks/choice.py makes it anew"
    tables = [choice.Table(**table) for table in json.loads(choice.SHIPPED.read_text())]
    assert {(table.isa, table.cores) for table in tables} >= {("avx512_bf16", 2), ("amx_bf16", 2)}
    assert all((ROOT / table.source).exists() and list(choice._rows(table)) for table in tables)
    monkeypatch.setattr(maker, "SHIPPED", tmp_path / "choice.json")
    maker.SHIPPED.write_text("[]\n")
    assert maker.main(["--check"]) == 1 and maker.SHIPPED.read_text() == "[]\n"
    assert maker.main([]) == 0 and maker.main(["--check"]) == 0


def test_which_rows_make_a_table(tmp_path):
    """Ours, the newest of each thread count, and of these the one that is best for us."""
    here = {"device": "Test CPU (4 cores, AVX9)", "isa": "avx9", "date": "2026-01-02T03:04:05Z"}
    path = tmp_path / "test-cpu-4-cores-avx9.csv"
    file = results.ResultFile(path)
    others = [{"chosen": "aten"}, {"grid": "rl"}, {"opponent": "compiled-loop"}, {"status": "WRONG"}, {"isa": ""}]
    for changes in others:
        file.append(row_of(CASE, **here | changes))
    assert maker.table_of(path) is None
    for ratio, threads in ((3.0, "1"), (0.6, "1"), (0.5, "2")):
        file.append(row_of(CASE, ratio, threads=threads, **here))
    file.append(row_of(case(**SEQUENCE), 1.2345, backend="cpu", grid="tune", **here))
    ratios = {"GRU float32 forward 1 1 256 1 1": 0.6, "GRU float32 forward 100 32 256 1 1": 1.2345}
    expected = choice.Table("avx9", 4, f"benchmarks/results/{path.name}", "2026-01-02", {}, ratios)
    assert maker.table_of(path) == expected
    assert json.loads(maker.text_of(tmp_path)) == [expected._asdict()]


def test_no_source_names_a_cpu_family():
    named = re.compile(r"zen ?\d|znver|haswell|skylake|ice ?lake|sapphire|granite|__get_cpuid\(1,", re.IGNORECASE)
    sources = [path for folder in ("csrc", "fastrnn") for path in (ROOT / folder).rglob("*") if path.is_file()]
    sources = [path for path in sources if path.suffix in (".py", ".h", ".cpp", ".cuh", ".cu", ".def")]
    found = [f"{path.relative_to(ROOT)}: {hit[0]}" for path in sources for hit in named.finditer(path.read_text())]
    assert len(sources) > 100 and found == []
