"""The table that ends `make demo`: every situation with backend and ratio, a figure, an exit status that tells."""

from __future__ import annotations

import re
from dataclasses import replace

import demo
import pytest


@pytest.fixture
def few(monkeypatch):
    """One case of each situation, small."""
    cases = {key: replace(case, T=min(case.T, 3), H=16, I=16) for key, case in list(demo.CASES.items())[::7]}
    assert {situation for situation, *_ in cases} == set(demo.SITUATIONS)
    monkeypatch.setattr(demo, "CASES", cases)


def test_every_row_has_its_backend_and_ratio(few, tmp_path, capsys):
    assert demo.main(["--seconds", "0.01", "--out", str(tmp_path / "new")]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(tuple(demo.SITUATIONS))]
    ratio = re.compile(r"\d+\.\d\dx( as fast|, slower|, level)$")
    assert len(rows) == 3 and all(" T=" in row and ratio.search(row) for row in rows)
    assert all(any(f" {name} " in row for name in ("cpu", "cuda", "aten", "reference")) for row in rows)
    assert any(line.startswith("3 of 3 cases were right and timed") for line in lines)
    assert (tmp_path / "new" / "swap.png").stat().st_size > 5000


def test_a_wrong_case_has_no_time_and_fails(few, tmp_path, capsys, monkeypatch):
    def wrong(case, setting):
        found = real(case, setting)[0]
        return [replace(found, status="WRONG", detail="output: off", ours=None, other=None)]

    real = demo.measure
    monkeypatch.setattr(demo, "measure", wrong)
    assert demo.main(["--seconds", "0.01", "--out", str(tmp_path)]) == 1
    assert "WRONG: output: off" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_level_is_said():
    words = [demo.in_words(ratio) for ratio in (0.9, 0.98, 1.0, 1.02, 1.8)]
    assert words == ["0.90x, slower", "0.98x, level", "1.00x, level", "1.02x, level", "1.80x as fast"]
