"""The kernels' proof on a GPU: the machine's verdict, and the choices that follow from it."""

from __future__ import annotations

import json
import os
import time
import types

import pytest
import torch
from stand_in import (  # noqa: F401
    AFTER,
    CALL,
    FORWARD,
    GPU,
    ORDER,
    PLAIN,
    finding,
    gpu,
    known,
    order,
    said,
    ship,
    write,
)
from support import compiled
from torch._dynamo.testing import CompileCounter

import fastrnn
from fastrnn._backends import dispatch
from fastrnn._kernels import ext, ops
from fastrnn.registry import CELLS
from fastrnn.verdict import kept, proof
from fastrnn.verdict.proof import WRONG, Gpu


def test_a_verdict_is_in_memory_as_it_stands_in_the_file():
    findings = {FORWARD: finding(), "GRU float32 tf32 training": finding(WRONG, {}, "T=7: output: error 1")}
    proof.add(GPU, {FORWARD: finding(WRONG, {})})
    proof.add(GPU, findings)
    path = proof.path_of(GPU)
    assert proof.read(GPU) == json.loads(path.read_text()) and proof.read(GPU)["findings"] == findings
    assert path.name == "verdict-stand-in-3000-9.0.json" and os.listdir(path.parent) == [path.name]
    assert proof.read(Gpu(GPU.name, "8.0")) is proof.read(Gpu("Stand-in", "9.0")) is None


def test_where_the_file_is(monkeypatch, tmp_path):
    assert proof.path_of(GPU).parent == tmp_path / "cache"
    monkeypatch.delenv("FASTRNN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(proof.path_of(GPU).parent) == "/xdg/fastrnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(proof.path_of(GPU).parent) == "/home/me/.cache/fastrnn"


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_verdict_alone(monkeypatch, failing):
    known()
    before = proof.read(GPU)

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="disk full"):
            proof.add(GPU, {})
    assert proof.read(GPU) == before and len(os.listdir(proof.path_of(GPU).parent)) == 1


@pytest.mark.parametrize("name", ["fastrnn", "torch", "CUDA", "cuDNN", "driver", "FASTRNN_CUDA_TIER", "extension"])
def test_a_verdict_found_with_something_else_counts_for_nothing(name):
    write({FORWARD: finding()}, **{name: "another"})
    what = "the kernels were built anew" if name == "extension" else f"{name} was another and is "
    assert order() == AFTER and what in said()
    proof.add(GPU, {"GRU float16 forward": finding()})
    assert list(proof.read(GPU)["findings"]) == ["GRU float16 forward"]


@compiled
def test_the_extensions_identity(monkeypatch, tmp_path):
    monkeypatch.undo()
    path = tmp_path / "kernels"
    monkeypatch.setattr(ext, "_module", types.SimpleNamespace(__file__=str(path)))
    seen = []
    for content in (b"one", b"two", b"one"):
        path.write_bytes(content)
        kept.digest.cache_clear()
        seen.append(kept.digest())
    kept.digest.cache_clear()
    assert seen[0] == seen[2] != seen[1]


DAMAGED = ["", "{", "[]", "null", '{"findings": {}}', '{"gpu": 3, "findings": {"a": {}}}', "\x00"]
CHANGED = [
    {"gpu": [GPU.name, "8.0"]},
    {"findings": [1]},
    {"findings": {FORWARD: finding("fine")}},
    {"findings": {FORWARD: finding(speeds={"plain": [[1, 2, 1.5]]})}},
    {"findings": {FORWARD: finding(speeds={"plain": [[0, 1, 2, 1.5]]})}},
    {"findings": {FORWARD: finding(speeds={"plain": [[1, 1, 2, "x"]]})}},
    {"findings": {FORWARD: finding(speeds={"plain": [[1, 1, 2, 10**400]]})}},
    {"findings": {FORWARD: finding(speeds=None)}},
    {"findings": {FORWARD: finding() | {"tiers": [[1, 1, 2, "warp"]]}}},
    {"findings": {FORWARD: finding() | {"tiers": [[1, 1, 0, "step"]]}}},
    {"findings": {"LSTM float17 forward": finding() | {"tiers": [[1, 1, 2, "step"]]}}},
]


@pytest.mark.parametrize("file", ["verdict", "table"])
@pytest.mark.parametrize("damage", [*DAMAGED, *CHANGED, "folder"])
def test_a_damaged_file_is_no_verdict_and_no_error(damage, file):
    known()
    path = proof.path_of(GPU)
    if file == "table":
        path = path.rename(proof.table_of("9.0"))
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        changed = damage if isinstance(damage, str) else json.dumps(json.loads(path.read_text()) | damage)
        path.write_text(changed)
    proof.reread()
    assert order() == AFTER and f"{path} is damaged" in said()


@pytest.mark.parametrize("change", [{"gpu": ["Another", "9.0"]}, {"stamp": []}])
def test_what_a_verdict_of_this_machine_has_to_name(change):
    write({FORWARD: finding()})
    proof.path_of(GPU).write_text(json.dumps(json.loads(proof.path_of(GPU).read_text()) | change))
    proof.reread()
    assert order() == AFTER and "is damaged" in said()


def test_the_kernels_are_told_the_tiers(monkeypatch):
    """Of the verdict in force, by a call that chooses, and by one for which the kernels are forced."""
    told = []
    monkeypatch.setattr(ops, "keep_tiers", lambda *given: told.append(given))
    tiers = {"tiers": [[1, 1, 64, "step"], [64, 32, 128, "auto"]]}
    write({FORWARD: finding(), "GRU float32 tf32 training": finding() | tiers})
    kept = [(CELLS["GRU"].index, torch.float32, True, True, [(1.0, 1.0, 64.0, False), (64.0, 32.0, 128.0, True)])]
    assert order() == ORDER and told == [(0, kept)]
    proof.reread()
    with fastrnn.backend("cuda"):
        assert dispatch.choose(CALL) == "cuda"
    assert told == [(0, kept)] * 2
    known()
    assert order() == ORDER and told[2:] == [(0, [])]
    ship({FORWARD: finding() | tiers, "GRU float32 tf32 training": finding() | tiers})
    assert order() == ORDER and told[3:] == [(0, kept)]  # of what this machine has not measured


def test_the_file_is_read_once(monkeypatch):
    known()
    assert order() == ORDER
    monkeypatch.setattr(proof, "read", None)
    assert order() == ORDER and order(T=3) == ORDER
    assert order(index=1) == AFTER  # a GPU that is not there


# --- the choice --------------------------------------------------------------------------------------------------


def test_without_a_verdict_the_kernels_are_opt_in():
    assert order() == order(grad=True) == AFTER
    assert said() == proof.unproven(GPU)
    assert dispatch.choose(CALL) == "aten" and dispatch.choose(CALL._replace(extended=True)) == "reference"


def test_the_nearest_shape_decides():
    known()
    assert order() == order(T=1000, B=100, H=500) == ORDER
    assert dispatch.choose(CALL) == "cuda"
    assert order(T=1, B=2, H=200) == AFTER and dispatch.choose(CALL._replace(T=1, B=2, H=200)) == "aten"
    assert said(T=1, B=2) == "measured at 0.83 of torch's speed on this GPU, 2026-01-02, at T=1 B=1 H=256 (plain)"
    assert said(B=0) == "an empty batch launches nothing" and order(T=0) == AFTER


def test_of_shapes_equally_near_all_decide():
    known(speeds={"plain": [[32, 32, 128, 1.2], [128, 32, 128, 0.9]]})
    assert order() == AFTER and order(T=63) == ORDER and order(T=65) == AFTER
    known(speeds={"plain": [[64, 32, 128, 1.0]]})
    assert order() == ORDER
    known(speeds={"plain": [[64, 32, 128, float("nan")]]})
    assert order() == AFTER


def test_only_the_kind_that_was_proven():
    known()
    for other in ({"mode": "GRU"}, {"grad": True}, {"dtype": torch.float32}, {"dtype": torch.bfloat16}):
        assert order(**other) == AFTER
        assert " have not been proven on this GPU (Stand-in 3000" in said(**other)
    assert said(grad=True).startswith("the kernels of LSTM float16 training have")
    assert dispatch.choose(CALL._replace(transformed=True)) == "reference"


@pytest.mark.parametrize("state", [WRONG, "failed"])
def test_what_is_not_right_is_never_chosen(state):
    known(state, {}, "of this")
    for more in ({}, {"extended": True}, {"step": True, "T": 1}):
        assert order(**more)[0] != "cuda" and dispatch.choose(CALL._replace(**more)) != "cuda"
        assert state in said(**more) and "of this" in said(**more)
    assert proof.why_not_in_graphs(0, "LSTM", torch.float16, False, ("plain",), 128)


FEATURES = {"layers": {"layers": 2}, "directions": {"directions": 2}, "packed": {"packed": True}, "projected": {"P": 5}}


@pytest.mark.parametrize("variant", FEATURES)
def test_every_variant_of_a_call_has_to_be_measured(variant):
    asked = FEATURES[variant]
    known()
    assert order() == ORDER and order(**asked) == AFTER and "was not timed" in said(**asked)
    known(speeds=PLAIN | {variant: [[8, 8, 8, 2.0]]})
    assert order(**asked) == ORDER
    known(speeds=PLAIN | {variant: [[8, 8, 8, 0.5]]})
    assert order() == ORDER and order(**asked) == AFTER and f"B=8 H=8 ({variant})" in said(**asked)
    known(speeds=PLAIN | {variant: []}, detail="no room")
    assert order() == ORDER and order(**asked) == AFTER and "no room" in said(**asked)
    assert order(**asked, extended=True) == ORDER


def test_a_cells_step_is_measured_by_itself():
    known()
    assert order(step=True, T=1) == AFTER
    known(speeds={"step": [[1, 8, 64, 1.1]]})
    assert order(step=True, T=1) == ORDER and order() == AFTER


def test_what_torch_does_not_have_runs_on_kernels_that_are_right():
    known(speeds={"plain": [[64, 32, 128, 0.1]], "extended": []})
    assert order() == AFTER and order(extended=True) == ORDER
    assert dispatch.choose(CALL._replace(extended=True)) == "cuda"
    known(speeds={"plain": [[64, 32, 128, 2.0]]}, detail="no room")
    assert order(extended=True) == AFTER


def single(precision: str, ratio=2.0, variant="plain") -> dict[str, dict]:
    return {f"GRU float32 {precision} forward": finding(speeds={variant: [[9, 9, 9, ratio]]})}


def test_float32_goes_by_the_precision_in_force(monkeypatch):
    call = {"mode": "GRU", "dtype": torch.float32}
    force = {"rnn": "tf32", "matmul": "none"}
    monkeypatch.setattr(torch._C, "_get_fp32_precision_getter", lambda _, op: force[op])
    write(single("ieee") | single("tf32", 0.5))
    assert order(**call) == AFTER
    for other in ("ieee", "none"):
        force["rnn"] = other
        assert order(**call) == ORDER
    asked = 0, "GRU", torch.float32, False, ("plain",), 9
    assert proof.why_not_in_graphs(*asked) is None
    force["rnn"] = "tf32"
    assert "speed" in proof.why_not_in_graphs(*asked)


def test_a_capture_goes_by_what_was_timed_in_cuda_graphs_too(monkeypatch):
    captured = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(captured))
    known(speeds={"plain": [[64, 32, 128, 0.9, 1.2], [64, 32, 1024, 1.3, 0.8], [1, 1, 128, 1.1]]})
    assert (order(), order(H=1024), order(T=1, B=1)) == (AFTER, ORDER, ORDER)
    captured.append(True)
    assert (order(), order(H=1024), order(T=1, B=1)) == (AFTER, AFTER, ORDER)
    assert said(H=1024).endswith(
        "at 0.80 of torch's speed on this GPU, 2026-01-02, at T=64 B=32 H=1024 (plain, in a CUDA graph)"
    )


def test_the_precision_in_force_is_torchs():
    rnn, before = torch.backends.cudnn.rnn, torch.backends.cudnn.rnn.fp32_precision
    try:
        for value in ("ieee", "tf32"):
            rnn.fp32_precision = value
            assert proof.precision_of(torch.float32, False) == value
    finally:
        rnn.fp32_precision = before
    assert proof.precision_of(torch.float16, False) == ""


def test_a_cell_is_not_rounded_more_than_torchs(monkeypatch):
    """torch's cells multiply as matmul does, in full float32 by default, its layers in tf32."""
    force = {}
    monkeypatch.setattr(torch._C, "_get_fp32_precision_getter", lambda _, op: force[op])
    call = {"mode": "GRU", "dtype": torch.float32, "T": 1}
    for variant, step in (("step", True), ("plain", False)):
        write(single("ieee", variant=variant) | single("tf32", 0.5, variant))
        for rnn, matmul, found in (("tf32", "none", ORDER), ("tf32", "tf32", AFTER), ("ieee", "tf32", ORDER)):
            force.update(rnn=rnn, matmul=matmul)
            assert order(**call, step=step) == found


def in_graph(x, extended=False):
    call = CALL._replace(T=x.size(0), B=x.size(1), H=x.size(2), extended=extended)
    return x + (1 if dispatch._choose_for_graph(call) == "cuda" else 0)


SLOW_ONCE = {"plain": [[1, 1, 128, 0.9], [64, 32, 128, 1.5], [64, 32, 1024, 1.0]], "extended": []}


def test_in_a_graph_every_shape_of_the_nearest_size_has_to_be_fast():
    """T and B may be symbolic, and stay so; a graph has one H."""
    known(speeds=SLOW_ONCE)
    torch._dynamo.reset()
    counter = CompileCounter()
    run = torch.compile(in_graph, backend=counter, fullgraph=True, dynamic=True)
    for T, B in ((3, 4), (7, 5)):
        for H, runs in ((128, 0), (900, 1)):
            assert run(torch.zeros(T, B, H)).unique().item() == runs
            assert run(torch.zeros(T, B, H), extended=True).unique().item() == 1
    assert counter.frame_count == 4
    proof.forget(GPU)
    torch._dynamo.reset()
    assert run(torch.zeros(3, 4, 900)).unique().item() == 0


def test_what_torch_follows_goes_by_the_rule_of_graphs(monkeypatch):
    known(speeds=SLOW_ONCE)
    assert dispatch.choose(CALL) == "cuda"
    monkeypatch.setattr(ops, "is_watched", lambda: True)
    assert dispatch.choose(CALL) == "aten" and dispatch.choose(CALL._replace(H=1024)) == "cuda"


def test_forcing_still_forces():
    known(WRONG)
    with fastrnn.backend("cuda"):
        assert dispatch.choose(CALL) == "cuda"
    known()
    with fastrnn.backend("aten"):
        assert dispatch.choose(CALL) == "aten"
        assert said() == "backend 'aten' is forced"


@compiled
def test_calls_on_the_cpu_ask_nothing(monkeypatch):
    monkeypatch.setattr(proof, "why_not", None)
    monkeypatch.setattr(proof, "why_not_in_graphs", None)
    fastrnn.LSTM(4, 5)(torch.randn(3, 2, 4))
    fastrnn.GRUCell(4, 5)(torch.randn(2, 4))


def test_the_price_of_a_call():
    known()
    began = time.perf_counter()
    for _ in range(1000):
        proof.why_not(CALL)
    assert (time.perf_counter() - began) / 1000 < 5e-5
