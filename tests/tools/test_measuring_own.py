"""Measuring what torch.nn does not have: against a loop over PyTorch's operations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn.bench.case import Case, _Loop, build, make_inputs, make_weights
from fastrnn.bench.measure import Setting, measure
from fastrnn.bench.timing import Pace

SETTING = Setting(pace=Pace(seconds=0.0, least=2, most=2))
TINY = Case("LSTM", T=3, B=2, I=4, H=5)
OWN = [
    ("PeepholeLSTM", ""),
    ("IndRNN", ""),
    ("LayerNormLSTM", ""),
    ("SLSTM", "forget_gate=exp"),
    ("LSTM", "num_heads=5"),
    ("GRU", "zoneout=0.3"),
]


@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("cell, option", OWN)
def test_what_torch_lacks_is_timed_against_a_loop(cell, option, mode):
    case = replace(TINY, cell=cell, option=option, mode=mode)
    (found,) = measure(case, SETTING)
    assert found.status == "ok" and found.ratio > 0 and found.served.backend in ("cpu", "reference"), found.detail
    loop = build(case.layer(nn), case, "cpu", make_weights(case))
    with torch.profiler.profile() as profile:
        loop(make_inputs(case, "cpu")[0].x, make_inputs(case, "cpu")[0].hx)
    names = [event.name for event in profile.events()]
    assert sum("sigmoid" in n or "tanh" in n or "relu" in n for n in names) >= case.T, "no step of PyTorch's operations"


def test_a_wrong_layer_that_torch_lacks_is_found(monkeypatch):
    class Wrong(fastrnn.CIFGLSTM):
        def forward(self, x, hx):
            output, state = super().forward(x, hx)
            return output * (1.001 if torch.is_grad_enabled() and not isinstance(self, _Loop) else 1), state

    monkeypatch.setattr("fastrnn.CIFGLSTM", Wrong)
    (found,) = measure(replace(TINY, cell="CIFGLSTM", mode="training"), SETTING)
    assert found.status == "WRONG" and found.worst.tensor == "output"
