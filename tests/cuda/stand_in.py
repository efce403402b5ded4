"""A GPU that is not there: what tests of the kernels' proof have in its place."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch

from fastrnn._backends import dispatch
from fastrnn._kernels import ops
from fastrnn._spec import Call
from fastrnn.verdict import kept, proof, prove
from fastrnn.verdict.proof import RIGHT, Gpu

GPU = Gpu("Stand-in 3000", "9.0")
CALL = Call("LSTM", "cuda", torch.float16, T=64, B=32, I=128, H=128)
FORWARD = "LSTM float16 forward"
PLAIN = {"plain": [[1, 1, 256, 0.83], [64, 32, 128, 1.5]], "extended": []}
ORDER = ["cuda", "aten", "reference", "cpu"]
AFTER = ["aten", "reference", "cuda", "cpu"]

# A GPU that all kernels are built for, but that none can be started on; stand_in_worker.py proves them.
IN_PLACE = (
    (proof, "gpu_at", lambda index: GPU if index == 0 else f"there is no cuda:{index}"),
    (proof, "table_of", lambda capability: kept.folder() / f"proven-{capability}.json"),
    (kept, "digest", lambda: "as built"),
    (ops, "missing", lambda *_: None),
    (ops, "PLANNED", ""),
    (ops, "TIER", None),
    (dispatch, "_environment", None),
    (dispatch, "_warned", {0}),
    (prove, "PROGRAM", (str(Path(__file__).with_name("stand_in_worker.py")),)),
)


def pretend() -> None:
    """All that in a process of its own."""
    for module, name, value in IN_PLACE:
        setattr(module, name, value)


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """All that, and a folder of its own; the worker writes a line for every start."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("STAND_IN", "right")
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    for module, name, value in IN_PLACE:
        monkeypatch.setattr(module, name, value)
    proof.reread()
    yield GPU
    proof.reread()


def finding(state=RIGHT, speeds=PLAIN, detail="") -> dict:
    return {"state": state, "detail": detail, "speeds": speeds}


def write(findings: dict[str, dict], **stamp: str) -> None:
    """The verdict's file."""
    written = {"gpu": GPU, "date": "2026-01-02", "stamp": proof.stamp() | stamp, "findings": findings}
    kept.write(proof.path_of(GPU), written)
    proof.reread()


def ship(findings: dict[str, dict], capability: str = "9.0", gpu: str = "Table 1", **changes) -> None:
    """The table of a capability, as another machine wrote it."""
    written = {"gpu": [gpu, capability], "date": "2025-12-31", "stamp": {"driver": "another"}, "findings": findings}
    kept.write(proof.table_of(capability), written | changes)
    proof.reread()


def known(state=RIGHT, speeds=PLAIN, detail="") -> None:
    """A verdict on CALL's kind, written down."""
    write({FORWARD: finding(state, speeds, detail)})


def order(**changes) -> list[str]:
    return list(dispatch.ranking(CALL._replace(**changes)))


def said(**changes) -> str:
    """What fastrnn.explain has against backend cuda."""
    (reason,) = dispatch.explanation(CALL._replace(**changes)).reasons["cuda"]
    return reason


def started() -> list[dict]:
    """Every worker that was started."""
    log = Path(os.environ["STAND_IN_LOG"])
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def pairs() -> list[str]:
    return ["{mode}:{dtype}".format(**start["task"]) for start in started()]


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
