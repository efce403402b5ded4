"""A GPU that is not there: what tests of the kernels' proof have in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastrnn import _dispatch, _ext, _first_call, _ops, _proof
from fastrnn._call import Call
from fastrnn._proof import RIGHT, Finding, Gpu, Speed, Verdict

GPU = Gpu("Stand-in 3000", "9.0")
CALL = Call("LSTM", "cuda", torch.float16, T=64, B=32, I=128, H=128)
compiled = pytest.mark.skipif(_ext.reason is not None, reason=f"no extension: {_ext.reason}")
PLAIN = {"plain": [Speed(1, 1, 256, 0.83), Speed(64, 32, 128, 1.5)]}
ORDER = ["cuda", "aten", "reference", "cpu"]
AFTER = ["aten", "reference", "cuda", "cpu"]


# A GPU that all kernels are built for, but that none can be started on; a call's proof is stand_in_prover.py's.
IN_PLACE = (
    (_proof, "gpu_at", lambda index: GPU if index == 0 else f"there is no cuda:{index}"),
    (_proof, "_digest", lambda: "as built"),
    (_ops, "missing", lambda backend: None),
    (_dispatch, "_environment", None),
    (_first_call, "PROGRAM", (str(Path(__file__).with_name("stand_in_prover.py")),)),
)


def pretend() -> None:
    """All that in a process of its own."""
    for module, name, value in IN_PLACE:
        setattr(module, name, value)


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """All that, and a folder of its own."""
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    for module, name, value in IN_PLACE:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(_first_call, "_tried", {})
    monkeypatch.setattr(_first_call, "_spent", 0.0)
    _proof.verdict_of.cache_clear()
    yield GPU
    _proof.verdict_of.cache_clear()


def verdict(findings: dict[str, Finding], **stamp: str) -> Verdict:
    return Verdict(GPU, "2026-01-02", _proof.stamp() | stamp, findings)


def known(state=RIGHT, speeds=PLAIN, **more) -> Verdict:
    """A verdict on CALL's kind, written down."""
    found = verdict({"LSTM float16 forward": Finding(state, speeds=speeds, **more)})
    _proof.save(found)
    return found


def order(**changes) -> list[str]:
    return list(_dispatch.ranking(CALL._replace(**changes)))


def said(**changes) -> str:
    """What fastrnn.explain has against backend cuda."""
    (reason,) = _dispatch.explanation(CALL._replace(**changes)).reasons["cuda"]
    return reason
