"""The process that measures: what it measures, what it makes of that, and how it ends."""

from __future__ import annotations

import pytest
import torch
from stand_in import GPU, finding, gpu  # noqa: F401
from support import compiled

from fastrnn._kernels import ops
from fastrnn.bench.case import Case, make_inputs, make_weights
from fastrnn.bench.measure import Measurement, Setting, measure
from fastrnn.bench.timing import Spread
from fastrnn.registry import BY_NUMBER, CELLS
from fastrnn.verdict import proof, prove, worker
from fastrnn.verdict.proof import FAILED, RIGHT, WRONG


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize(
    "cause, answers, code",
    [
        (torch.OutOfMemoryError, True, prove.PASSING),
        (MemoryError, True, prove.PASSING),
        (Broken, True, 0),
        (Broken, False, prove.BROKEN),
    ],
)
def test_the_type_of_an_error_gives_the_exit_code(monkeypatch, cause, answers, code):
    said, silent = [], iter([None] + ([None] if answers else ["no answer"]) * 99)
    monkeypatch.setattr(worker, "_speech", lambda: lambda **message: said.append(message))
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)
    monkeypatch.setattr(worker, "_silence", lambda device: next(silent))
    monkeypatch.setattr(worker, "measure", lambda *_: [Measurement("error", detail="whatever it says", cause=cause)])
    task = {"mode": "GRU", "dtype": "float16", "quick": True, "tiers": [""]}
    assert worker.main(task, torch.device("cpu")) == code
    if code:
        assert "whatever it says" in said[-1]["why"]
    else:
        assert {found["state"] for found in said[-1]["findings"].values()} == {FAILED}


def test_the_worker_ends_with_its_parent(monkeypatch):
    read, ended = iter([b"x", b""]), []
    monkeypatch.setattr(worker.os, "read", lambda *_: next(read))
    monkeypatch.setattr(worker.os, "_exit", ended.append)
    worker._end_with_parent()
    assert ended == [prove.PASSING]


def rows(*ends: tuple[str, str]) -> list:
    return [
        (worker.Shape(variant, False, Case("LSTM", 1, 1, 1, 1)), [Measurement(status, detail="no room", worst="off")])
        for variant, status in ends
    ]


def test_what_rows_make_of_a_kind():
    found = worker.finding_of(rows(("plain", "ok"), ("projected", "ok"), ("projected", "error"), ("extended", "ok")))
    assert found["state"] == RIGHT and found["speeds"] == {"plain": [], "extended": []}
    assert "projected" in found["detail"] and "no room" in proof.describe(found)
    assert worker.finding_of(rows(("plain", "ok"), ("plain", "error")))["state"] == FAILED
    found = worker.finding_of(rows(("plain", "error"), ("extended", "WRONG")))
    assert found["state"] == WRONG and found["detail"].endswith("off")


def test_a_row_has_the_ratio_in_a_graph_where_there_is_one():
    def took(launch: str, ours: float) -> Measurement:
        return Measurement("ok", launch, ours=Spread(ours, 0, 0, 1), other=Spread(3.0, 0, 0, 1))

    refused, wrong = Measurement("refused", "graph", detail="no"), Measurement("WRONG", "graph", worst="off")
    shapes = [worker.Shape("plain", True, Case("LSTM", T, 1, 1, 8)) for T in (1, 2)]
    measured = [took("eager", 2.0), took("graph", 1.0)], [took("eager", 1.0), refused]
    found = worker.finding_of(list(zip(shapes, measured, strict=True)))
    assert found == finding(speeds={"plain": [(1, 1, 8, 1.5, 3.0), (2, 1, 8, 3.0)]})
    assert worker.finding_of([(shapes[0], [took("eager", 2.0), wrong])])["state"] == WRONG
    assert worker.finding_of([(shapes[0], [Measurement("refused", detail="no")])])["state"] == FAILED


def speeds(small: float, large: float, packed: float, variant: str = "packed") -> dict:
    return {"plain": [(4, 1, 64, small), (64, 32, 128, large)], variant: [(64, 32, 128, packed)], "extended": []}


def test_the_faster_tier_of_every_shape_is_kept():
    """Of a shape that several variants have, the one that is faster over all of them."""
    steps = finding(speeds=speeds(0.5, 2.0, 1.0))
    assert worker.faster_of(steps) == steps
    found = worker.faster_of(steps, finding(speeds=speeds(1.5, 1.9, 1.2)))
    assert found["speeds"] == speeds(1.5, 1.9, 1.2)
    assert found["tiers"] == [(4, 1, 64, "auto"), (64, 32, 128, "auto")]
    found = worker.faster_of(steps, finding(speeds=speeds(1.5, 1.9, 1.0)))
    assert found["speeds"] == speeds(1.5, 2.0, 1.0)
    assert found["tiers"] == [(4, 1, 64, "auto"), (64, 32, 128, "step")]


@pytest.mark.parametrize("resident", [finding(WRONG, {}, "off"), finding(FAILED, {}, "off")])
def test_resident_kernels_that_are_not_right_serve_no_call(resident):
    steps = finding(speeds=speeds(0.5, 2.0, 1.0))
    lacking = finding(speeds=speeds(9, 9, 9, "layers"), detail="off")
    for found in (worker.faster_of(steps, resident), worker.faster_of(steps, lacking)):
        assert found["detail"].startswith("without resident kernels, ") and found["detail"].endswith(": off")
        assert found | {"detail": ""} == steps
    assert worker.faster_of(resident, steps) == resident


def test_what_is_tried():
    """Both tiers, unless one alone could serve, or the plan was measured on such a GPU."""
    both, one = ("step", "auto"), ("",)
    assert proof.tiers_of(GPU, "LSTM", "bfloat16") == proof.tiers_of(GPU, "SLSTM_EXP", "float32") == both
    for mode, dtype in (("LSTM", "float64"), ("IND_RNN", "float16"), ("LAYER_NORM_GRU", "float16")):
        assert proof.tiers_of(GPU, mode, dtype) == one


@pytest.mark.parametrize("name, value", [("PLANNED", GPU.capability), ("TIER", "cta")])
def test_where_one_tier_is_tried(monkeypatch, name, value):
    monkeypatch.setattr(ops, name, value)
    assert proof.tiers_of(GPU, "LSTM", "bfloat16") == ("",)


MODES = [cell.mode for cell in BY_NUMBER]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_variant_is_measured_in_every_kind(mode, quick):
    measured = list(worker.shapes_of(mode, "float32", quick))
    assert list(dict.fromkeys(kind for kind, *_ in measured)) == proof.kinds_of(mode, "float32")
    for kind in {kind for kind, *_ in measured}:
        mine = [shape for other, _, shape in measured if other == kind]
        wanted = set(proof.VARIANTS) - (set() if "LSTM" in mode or "SLSTM" in mode else {"projected"})
        wanted -= {"headed"} if mode in ("IND_RNN", "LAYER_NORM_LSTM", "LAYER_NORM_GRU") else set()
        assert {shape.variant for shape in mine} == wanted
        wanted -= {"extended", "masked", "zoned", "headed"}
        assert {shape.variant for shape in mine if shape.timed} == (wanted if mode in CELLS else set())
        assert len(set(mine)) == len(mine)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_shape_that_is_checked_can_be(mode):
    """Long and large ones aside, which a CPU takes its time for."""
    for _, precision, shape in worker.shapes_of(mode, "float32", False):
        if precision == "ieee" and not shape.timed and shape.case.T < 100 and shape.case.H < 1000:
            (found,) = measure(shape.case, Setting(backend="cpu", pace=worker.CHECK))
            assert found.status == "ok", (shape, found)


def test_relus_sums_stay_off_zero():
    case = Case("RNN", 3, 2, 4, 6, nonlinearity="relu")
    for weight in make_weights(case).values():
        assert (weight[::2] >= 0).all() and (weight[1::2] <= 0).all() and weight.any()
    assert all((leaf >= 0).all() for leaf in make_inputs(case, "cpu")[0].leaves)
