"""Public programs on fastrnn, by stand-ins: a difference fails, a package that is gone does not, a crash is told."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import client_table
import clients
import pytest
import torch
from client_models import CLIENTS
from client_table import gru
from support import using

from fastrnn.bench.timing import Pace


@pytest.fixture
def measured():
    """Measures a client and returns all that was told."""

    def measured(client):
        told = []
        clients.measure(client, Pace(0.01, least=2), lambda facts: told.append(dict(facts)))
        return told

    with using():
        yield measured


def refuse(output):
    raise ValueError("no such\n output")


@pytest.mark.parametrize("by", ["patch_torch", "convert_"])
def test_a_client_that_agrees_is_timed(measured, by):
    first, second, last = measured(gru(by=by))
    assert first["status"] == "unusable" and second["status"] == "error"  # what a crash would leave
    assert last["status"] == "ok" and last["version"] == torch.__version__ and last["layers"] == "GRU"
    assert float(last["difference"]) <= float(last["allowed"]) < 1e-5
    assert float(last["ratio"]) > 0 and last["repeats"] >= 2 and last["backends"] in ("cpu", "aten", "reference")


def test_a_client_that_differs_has_no_time(measured):
    *_, last = measured(gru(lambda output: output * 1.0001))
    assert last["status"] == "WRONG" and "ratio" not in last and float(last["difference"]) > float(last["allowed"])
    *_, last = measured(gru(lambda output: output * torch.nan))
    assert last["status"] == "WRONG"


@pytest.mark.filterwarnings("ignore:fastrnn.convert. nothing")
def test_a_side_that_fails_is_named(measured, capsys):
    *_, last = measured(gru(refuse))
    assert (last["status"], last["detail"]) == ("error", "ValueError: no such output")
    *_, last = measured(gru(layer=lambda *sizes: refuse(sizes)))
    assert (last["status"], last["detail"]) == ("unusable", "torch.nn's side: ValueError: no such output")
    assert "refuse" in capsys.readouterr().err  # the traceback
    *_, last = measured(gru(layer=lambda *sizes: type("Own", (torch.nn.GRU,), {})(*sizes), by="convert_"))
    assert (last["status"], last["detail"]) == ("error", "no module of fastrnn's in the model")


def test_the_judgement_allows_what_rounding_explains():
    theirs = {"loss": torch.tensor(2.0), "grad a": torch.ones(20), "grad zero": torch.full((20,), 1e-9)}
    nudged = [{name: t + 1e-5 * t.abs().max() for name, t in theirs.items()}]
    moved = theirs | {"grad a": theirs["grad a"] + 4e-5, "grad zero": -theirs["grad zero"]}
    assert clients.judge(moved, theirs, nudged).share < 1
    assert clients.judge(theirs | {"grad a": theirs["grad a"] + 6e-5}, theirs, nudged).tensor == "grad a"
    assert clients.judge(theirs | {"grad a": theirs["grad a"] + 6e-5}, theirs, nudged).share > 1
    assert clients.judge(theirs | {"loss": torch.tensor(2.1)}, theirs, nudged).share > 1
    assert clients.judge(theirs | {"loss": torch.tensor(torch.nan)}, theirs, nudged).share == math.inf
    assert clients.judge({"loss": theirs["loss"]}, theirs, nudged).share == math.inf


def test_a_row_is_written_for_each_client_whatever_becomes_of_it(tmp_path):
    out = tmp_path / "rows.csv"
    command = [sys.executable, clients.__file__, "--install", "--table", client_table.__file__, "--seconds", "0.01"]
    settings = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run([*command, "--out", out], env=settings, capture_output=True, text=True, timeout=300)
    states = {row["client"]: row["status"] for row in clients.read_rows(out)}
    assert states == {"same": "ok", "differs": "WRONG", "dies": "error", "gone": "unusable"}, done.stdout + done.stderr
    assert done.returncode == 1 and "pip: " in done.stdout and "no-such-package" in done.stdout
    assert clients.read_rows(out)[2]["detail"] == "ended on fastrnn's side"


def test_the_exit_status_tells_a_difference_and_no_missing_package(monkeypatch, tmp_path):
    def status_of(*states):
        found, row = dict(zip(CLIENTS, states)), dict.fromkeys(clients.COLUMNS, "")
        monkeypatch.setattr(clients, "run", lambda name, *_: row | {"client": name, "status": found[name]})
        status = clients.main(["--out", str(tmp_path / "rows.csv"), *found])
        rows = clients.read_rows(tmp_path / "rows.csv")  # a row takes the place of the client's former one
        assert [(row["client"], row["status"]) for row in rows] == list(found.items())
        return status

    assert status_of("ok", "unusable") == 0
    assert status_of("ok", "WRONG") == status_of("error", "ok") == status_of("unusable", "unusable") == 1


def test_unknown_clients_are_refused(capsys):
    with pytest.raises(SystemExit):
        clients.main(["nobody"])
    assert f"expected some of {', '.join(CLIENTS)}, got nobody" in capsys.readouterr().err
