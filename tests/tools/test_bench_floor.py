"""The least time of a case: the right work, by measured peaks and bandwidths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmark_rows import TINY

from fastrnn.bench import floor
from fastrnn.bench.case import lengths_of


def test_flops_and_bytes_of_a_call():
    work = floor.work_of(TINY)
    assert work.flops == 2 * 6 * 20 * (4 + 5) and (work.recurrent, work.readings) == (4 * 20 * 5, 3)
    assert work.once == 4 * (6 * (4 + 5) + 20 * (4 + 2))
    training = floor.work_of(replace(TINY, mode="training"))
    assert (training.flops, training.once, training.readings) == (3 * work.flops, 3 * work.once, 2 * work.readings)
    deep = floor.work_of(replace(TINY, cell="GRU", layers=2, directions=2, dtype="bfloat16"))
    assert deep.flops == 2 * 6 * 15 * 2 * ((4 + 5) + (10 + 5)) and deep.readings == 3 * 4
    projected = floor.work_of(replace(TINY, P=2))
    assert projected.flops == 2 * 6 * (20 * (4 + 2) + 5 * 2) and projected.recurrent == 4 * (20 * 2 + 5 * 2)
    packed = replace(TINY, T=50, packed=True)
    assert (
        floor.work_of(packed).flops == 2 * 20 * 9 * lengths_of(packed).sum() < floor.work_of(replace(TINY, T=50)).flops
    )


def test_the_floor_is_the_slower_of_products_and_reading(monkeypatch):
    asked = []
    monkeypatch.setattr(floor, "peak", lambda *given: 1e12)
    monkeypatch.setattr(floor, "bandwidth", lambda size, *_: (asked.append(size), 1e9)[1])
    cpu, gpu, work = torch.device("cpu"), torch.device("cuda"), floor.work_of(TINY)
    assert floor.floor_ms(TINY, cpu) == pytest.approx(1e-6 * (3 * work.recurrent + work.once))
    assert floor.floor_ms(TINY, gpu) == pytest.approx(1e-6 * (work.recurrent + work.once))
    assert set(asked) == {work.recurrent, work.once}
    monkeypatch.setattr(floor, "peak", lambda dtype, precision, *_: {"tf32": 1e3, "": 1e6}[precision])
    assert floor.floor_ms(TINY, cpu) == pytest.approx(1e-3 * work.flops)
    assert floor.floor_ms(TINY, gpu, "tf32") == pytest.approx(work.flops)


def test_peaks_and_bandwidths_are_by_the_times_of_their_work_and_measured_once(monkeypatch):
    cpu, threads = torch.device("cpu"), 99  # with which no other test has measured
    times = iter([0.5, 0.001, 0.011, 0.5, 0.51])
    monkeypatch.setattr(floor, "_seconds", lambda work, device: (work(), next(times))[1])
    for _ in range(2):
        assert floor.peak(torch.float32, "", cpu, threads) == pytest.approx(2 * 1024**3 / 0.5)
        assert floor.bandwidth(2**20, cpu, threads) == pytest.approx(2**20 / 0.01)
        assert floor.bandwidth(2**18, cpu, threads) == pytest.approx(2**18 / 0.051)  # at least a tenth of the time
    assert floor.bandwidth(2**17 + 1, cpu, threads) == floor.bandwidth(2**18, cpu, threads)
