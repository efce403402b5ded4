"""Public programs on fastrnn, by stand-ins: a difference fails, a package that is gone does not, a crash is told."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import clients
import pytest
import torch
from client_models import CLIENTS, Client
from support import using
from torch import nn

from fastrnn.bench.timing import Pace

SCRIPT = Path(clients.__file__)
TABLE = """
import os
import torch
from torch import nn
from client_models import Client


def built(fault):
    rnn, x = nn.GRU(3, 5), torch.randn(4, 2, 3)
    ours = type(rnn).__module__.startswith("fastrnn")

    def call():
        output, h = rnn(x)
        output = fault(output) if ours else output
        return output.square().mean(), output, h

    return rnn, call


def client(fault=lambda output: output, bare=()):
    return Client("torch", "BSD-3-Clause", "GRU", lambda: built(fault), bare)


CLIENTS = {
    "same": client(),
    "differs": client(lambda output: output * 1.0001),
    "dies": client(lambda output: os._exit(7)),
    "gone": client(bare=("fastrnn-no-such-package",)),
}
"""


def gru(fault=lambda output: output, layer=None, **options):
    """A client with a layer whose output a fault changes on fastrnn."""

    def build():
        rnn, x = (layer or nn.GRU)(3, 5), torch.randn(4, 2, 3)

        def call():
            output, h = rnn(x)
            output = fault(output) if type(rnn).__module__.startswith("fastrnn") else output
            return output.square().mean(), output, h

        return rnn, call

    return Client("torch", "BSD-3-Clause", "GRU", build, **options)


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


def test_weights_move_by_a_unit_in_the_last_place():
    model = nn.Linear(30, 10)
    before = model.weight.clone()
    clients.nudge_(model, 0)
    moved = (model.weight - before).abs()
    assert moved.min() > 0 and (moved / before.abs()).max() <= torch.finfo(torch.float32).eps
    assert 0.3 < (model.weight > before).float().mean() < 0.7


@pytest.mark.parametrize(
    ("names", "status", "states"),
    [
        (("same", "gone"), 0, ["ok", "unusable"]),
        (("differs", "dies"), 1, ["WRONG", "error"]),
        (("gone",), 1, ["unusable"]),
    ],
)
def test_the_exit_status_tells_a_difference_and_no_missing_package(tmp_path, names, status, states):
    (tmp_path / "table.py").write_text(TABLE)
    out = tmp_path / "rows.csv"
    command = [sys.executable, SCRIPT, "--install", "--table", tmp_path / "table.py", "--seconds", "0.01", "--out", out]
    settings = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run([*command, *names], env=settings, capture_output=True, text=True, timeout=300)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == states and [row["client"] for row in rows] == list(names)
    assert done.returncode == status, done.stdout + done.stderr
    if "gone" in names:
        assert "pip: " in done.stdout and "no-such-package" in done.stdout
    if "dies" in names:
        assert rows[1]["detail"] == "ended on fastrnn's side"


def test_unknown_clients_are_refused(capsys):
    with pytest.raises(SystemExit):
        clients.main(["nobody"])
    assert f"expected some of {', '.join(CLIENTS)}, got nobody" in capsys.readouterr().err


def test_a_row_takes_the_place_of_the_former_one_and_the_table_has_all(tmp_path):
    row = dict.fromkeys(clients.COLUMNS, "") | {
        "status": "unusable",
        "detail": "pip: no",
        "date": "2026-01-02T03",
        "load": "0.5",
    }
    for name in ("a", "b"):
        clients.write_row(tmp_path / "c.csv", row | {"client": name})
    times = {"torch_ms_median": "3", "ours_ms_median": "2", "ratio": "1.5", "difference": "1e-6", "allowed": "4e-6"}
    clients.write_row(tmp_path / "c.csv", row | times | {"client": "a", "status": "ok", "backends": "cpu"})
    rows = clients.read_rows(tmp_path / "c.csv")
    assert [(row["client"], row["status"]) for row in rows] == [("a", "ok"), ("b", "unusable")]
    text = clients.markdown(rows)
    assert "| 1e-6 | 4e-6 | cpu | 3 ms | 2 ms | 1.50x |" in text and "unusable: pip: no" in text
    assert text.endswith("2026-01-02, at load averages of 0.5 to 0.5.")
