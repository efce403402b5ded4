"""What the tests of first calls share: calls, and what was started for them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
from stand_in import CALL

from fastrnn import _dispatch, _first_call, _proof

X = torch.zeros(1)
PROGRAM = _first_call.PROGRAM


@pytest.fixture(autouse=True)
def switched_on(monkeypatch, tmp_path):
    """A program that finds all right is what a first call starts; it writes a line for every time."""
    monkeypatch.delenv("FASTRNN_PROVE")
    monkeypatch.setenv("STAND_IN", "right")
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("STAND_IN_STAMP", json.dumps(_proof.stamp()))


def started() -> list[dict]:
    log = Path(os.environ["STAND_IN_LOG"])
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def pairs() -> list[str]:
    return [start["argv"][-2] for start in started()]


def first(**changes) -> str:
    return _dispatch.choose(CALL._replace(**changes), X)


def another_process(monkeypatch) -> None:
    """What this process remembers is forgotten."""
    monkeypatch.setattr(_first_call, "_tried", {})
    _proof.verdict_of.cache_clear()


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def children_of(pid: int) -> list[int]:
    return [int(p) for path in Path(f"/proc/{pid}/task").glob("*/children") for p in path.read_text().split()]
