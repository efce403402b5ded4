"""Measuring with episode resets: torch.nn's side computes the same, by the faster of two writings."""

from __future__ import annotations

from dataclasses import replace

import benchmark_rows
import pytest
import summary
import torch
from benchmark_rows import SETTING, row_of
from plain import run as by_steps

import fastrnn
from fastrnn import bench
from fastrnn.bench import resets
from fastrnn.bench.case import build, make_inputs, make_weights
from fastrnn.bench.measure import measure

TINY = replace(benchmark_rows.TINY, T=9, B=4, resets=0.2)
# A row that begins with a reset, one with two in a row, one with none, one that ends with one.
MASK = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1]], dtype=torch.bool)


@pytest.mark.parametrize("writing", resets.WRITINGS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_both_writings_compute_the_layer_row_by_row(cell, writing):
    case = replace(TINY, cell=cell, T=6, layers=2)
    inputs = make_inputs(case, "cpu")[0]._replace(reset_mask=MASK)
    layer = build(resets.torch_class(case, writing), case, "cpu", make_weights(case))
    output, state = layer(inputs.x, inputs.hx, MASK)
    found = (output, *(state if cell == "LSTM" else (state,)))
    plain = build(getattr(fastrnn, cell), case, "cpu", make_weights(case))
    output, state, _ = by_steps(plain, inputs.x, inputs.hx if cell == "LSTM" else (inputs.hx,), reset_mask=MASK)
    wanted = (output, *state)
    for ours, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, true)
    grads = [torch.autograd.grad(sum(y.sum() for y in results), inputs.leaves) for results in (found, wanted)]
    for ours, true in zip(*grads, strict=True):
        torch.testing.assert_close(ours, true)


def test_a_new_mask_is_looked_at():
    for writing in resets.WRITINGS:
        layer = build(resets.torch_class(TINY, writing), replace(TINY, T=6), "cpu")
        x, hx = make_inputs(replace(TINY, T=6), "cpu")[0][:2]
        first, none = layer(x, hx, MASK)[0], layer(x, hx, torch.zeros_like(MASK))[0]
        assert torch.allclose(first[:, 2], none[:, 2]) and not torch.allclose(first[:, 0], none[:, 0])


def test_segments_are_cut_where_a_row_resets_and_nowhere_else():
    lengths, fresh = resets._segments(MASK[2:])
    assert lengths == [3, 2, 1] and fresh[0] is None


def test_resets_that_are_not_done_are_wrong(monkeypatch):
    class Forgetful(fastrnn.LSTM):
        def forward(self, x, hx, reset_mask):
            return super().forward(x, hx)

    monkeypatch.setattr("fastrnn.LSTM", Forgetful)
    (found,) = measure(TINY, SETTING)
    assert found.status == "WRONG" and found.ours is None


@pytest.mark.parametrize("faster", resets.WRITINGS)
def test_the_faster_writing_is_timed(faster, monkeypatch):
    monkeypatch.setattr(resets, "_seconds", lambda side, *_: 1.0 if side.writing == faster else 2.0)
    (found,) = measure(TINY, SETTING)
    assert (found.status, found.detail) == ("ok", f"torch.nn by {faster}")


def test_what_is_not_written_for_resets_says_so():
    for changes in ({"packed": True}, {"directions": 2}):
        (found,) = measure(replace(TINY, **changes), SETTING)
        assert found.status == "refused" and "padded input in one direction" in found.detail


def test_rows_with_resets_have_a_mean_of_their_own():
    case = replace(TINY, mode="forward", resets=0.0)
    rows = [row_of(case, 1.0, grid="rl"), row_of(replace(case, resets=0.03), 4.0, grid="rl")]
    assert [group.mean for group in summary.groups(rows)] == [pytest.approx(1.0), pytest.approx(4.0)]
    assert "rl 3% resets " in summary.table(rows)


def test_bench_command_with_resets(capsys):
    shape = ["--seq-len", "9", "--batch", "4", "--hidden", "5", "--seconds", "0.001", "--mode", "forward"]
    assert bench.main([*shape, "--resets", "0.2"]) == 0 and "torch.nn by " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["--resets", "3"])
    assert "between 0 and 1, got '3'" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("writing", resets.WRITINGS)
@pytest.mark.parametrize("mode", ["forward", "training"])
def test_resets_are_timed_on_cuda(mode, writing, monkeypatch):
    monkeypatch.setattr(resets, "WRITINGS", {writing: resets.WRITINGS[writing]})
    monkeypatch.setattr(resets.torch_class, "__defaults__", (writing,))  # the exact results, too
    setting = replace(SETTING, device=torch.device("cuda"), backend="cuda", precision="ieee", graph="off")
    (found,) = measure(replace(TINY, T=20, B=8, I=32, H=32, layers=2, mode=mode), setting)
    assert (found.status, found.detail) == ("ok", f"torch.nn by {writing}"), found.detail
    assert found.served.backend == "cuda" and found.served.forward_kernel
