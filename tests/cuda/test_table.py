"""The table of proofs that ships, what this machine says before it, and what users hear where there is neither."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from stand_in import AFTER, CALL, FORWARD, GPU, ORDER, finding, gpu, known, order, said, ship, write  # noqa: F401

import fastrnn
from fastrnn import cells
from fastrnn._backends import autograd, dispatch
from fastrnn._call import stack
from fastrnn._kernels import ops
from fastrnn.verdict import proof, prove
from fastrnn.verdict.proof import WRONG, Gpu


def test_a_table_serves_every_gpu_of_its_capability():
    """Whatever the driver, torch and the build."""
    ship({FORWARD: finding()})
    assert order() == ORDER and order(T=1, B=1, H=256) == AFTER
    where = "on Table 1, 2025-12-31, shipped with fastrnn"
    assert said(T=1, B=1, H=256) == f"measured at 0.83 of torch's speed {where}, at T=1 B=1 H=256 (plain)"
    assert proof.verdict_of(0).summary == f"proven {where}: 1 of 1 kinds of call right"
    assert order(mode="GRU") == AFTER and "LSTM" not in said(mode="GRU")
    proof.table_of("9.0").rename(proof.table_of("8.0"))
    proof.reread()
    assert order() == AFTER


def test_what_this_machine_measured_comes_before_the_table():
    ship({FORWARD: finding(), "GRU float16 forward": finding()})
    known(WRONG, {}, "of this")
    assert order() == AFTER and order(mode="GRU") == ORDER
    assert said() == f"python -m fastrnn prove on this GPU, 2026-01-02: {FORWARD} wrong: of this"
    assert proof.verdict_of(0).summary == (
        "proven on this GPU, 2026-01-02: 0 of 1 kinds of call right; "
        "proven on Table 1, 2025-12-31, shipped with fastrnn: 2 of 2 kinds of call right"
    )
    write({FORWARD: finding(WRONG)}, driver="older")
    assert order() == ORDER and "no longer holds (driver was older" in proof.verdict_of(0).summary
    proof.add(GPU, {"RNN_TANH float16 forward": finding()})
    assert list(json.loads(proof.path_of(GPU).read_text())["findings"]) == ["RNN_TANH float16 forward"]
    assert proof.forget(GPU) and not proof.forget(GPU) and order() == ORDER


def test_a_tier_that_is_asked_for_is_not_in_the_table(monkeypatch):
    ship({FORWARD: finding()})
    monkeypatch.setattr(ops, "TIER", "step")
    proof.reread()
    assert order() == AFTER and "proven-9.0.json does not count with FASTRNN_CUDA_TIER=step" in said()
    known()
    assert order() == ORDER


def test_the_tables_that_ship(monkeypatch):
    monkeypatch.undo()
    folder = Path(fastrnn.__file__).parent / "verdict"
    assert proof.table_of("9.0") == folder / "proven-9.0.json"
    pairs = [proof.kinds_of(*pair.split(":")) for pair in prove.PAIRS]
    paths = list(folder.glob("proven-*.json"))
    assert paths
    for path in paths:
        table = proof._read_table(Gpu("", path.stem.removeprefix("proven-")))
        assert isinstance(table, dict), table
        known = [kind for pair in pairs if table["findings"].keys() >= set(pair) for kind in pair]  # whole pairs
        assert list(table["findings"]) == known and table["stamp"]["FASTRNN_CUDA_TIER"] == "measured"
        assert {finding["state"] for finding in table["findings"].values()} == {proof.RIGHT}


def test_what_the_table_of_hopper_decides(monkeypatch):
    """As `logs/prove.log` among the H200's results has it; cells that torch.nn does not have need be right alone."""
    monkeypatch.setattr(proof, "table_of", lambda capability: Path(fastrnn.__file__).parent / "verdict/proven-9.0.json")
    proof.reread()
    sizes = {"T": 64, "B": 32, "H": 256, "grad": True}
    served = [("LSTM", "bfloat16"), ("GRU", "float32"), ("LAYER_NORM_GRU", "float64"), ("SLSTM", "bfloat16")]
    for mode, dtype in served:
        assert order(mode=mode, dtype=getattr(torch, dtype), **sizes) == ORDER, (mode, dtype)
    for mode, dtype in (("GRU", "float16"), ("SLSTM_EXP", "float16"), ("LSTM", "float64")):
        assert order(mode=mode, dtype=getattr(torch, dtype), **sizes) == AFTER, (mode, dtype)
        assert "have not been proven on this GPU" in said(mode=mode, dtype=getattr(torch, dtype), **sizes)
    assert order(mode="GRU", dtype=torch.float32, **sizes | {"H": 64, "grad": False}) == AFTER


def test_calls_without_a_verdict_warn_once(monkeypatch):
    monkeypatch.setattr(dispatch, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for changes in ({"B": 0}, {"dtype": torch.complex64}, {"transformed": True}, {"index": 1}, {"device": "cpu"}):
            dispatch.choose(CALL._replace(**changes))
        said(), dispatch._choose_for_graph(CALL)
        with fastrnn.backend("aten"):
            dispatch.choose(CALL)
        with monkeypatch.context() as patch:
            patch.setattr(ops, "is_watched", lambda: True)
            dispatch.choose(CALL)
    words = (
        r"have not been proven on this GPU \(Stand-in 3000, compute capability 9.0\): `python -m fastrnn prove` does"
    )
    with pytest.warns(UserWarning, match=words):
        assert dispatch.choose(CALL) == "aten"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.choose(CALL) == dispatch.choose(CALL._replace(mode="GRU")) == "aten"
        monkeypatch.setattr(dispatch, "_warned", set())
        known()
        assert dispatch.choose(CALL) == "cuda" and dispatch.choose(CALL._replace(grad=True)) == "aten"


@pytest.mark.parametrize("name, sizes", [("GRU", (64, 32, 4)), ("GRUCell", (2, 4))])
def test_modules_run_where_the_table_says_so(monkeypatch, name, sizes):
    """On tensors that pass for CUDA ones."""
    describe, ran = stack.describe, []
    for module in (stack, cells):
        monkeypatch.setattr(module, "describe", lambda *args, **named: describe(*args, **named)._replace(device="cuda"))
    reference = ops.layer_ops("reference")
    monkeypatch.setattr(autograd, "layer_ops", lambda backend: ran.append(backend) or reference)
    module, x = getattr(fastrnn, name)(4, 5).half(), torch.zeros(sizes).half()
    ship({"GRU float16 forward": finding(speeds={"plain": [[64, 32, 8, 1.5]], "step": [[1, 2, 8, 0.5]]})})
    with torch.no_grad():
        module(x), module(x)
    assert ran == (["cuda", "cuda"] if name == "GRU" else [])
