"""A layer over one step on torch's backend, which runs torch's cells there: as torch.nn's layer, to the caller."""

from __future__ import annotations

import pytest
import torch
from support import cells, compare, random_states, twins

import fastrnn


@pytest.fixture(autouse=True)
def aten():
    with fastrnn.backend("aten"):
        yield


def operators(function) -> set[str]:
    with torch.profiler.profile() as profile:
        function()
    return {event.name for event in profile.events()}


@cells
@pytest.mark.parametrize("B", [1, 31, 32, 65])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bidirectional": True, "bias": False}], ids=["one", "stack"])
def test_is_torchs_layer(cell, B, options):
    modules = twins(cell, 7, 130, **options)
    rows = modules[0].num_layers * (2 if modules[0].bidirectional else 1)
    compare(modules, torch.randn(1, B, 7), random_states(cell, rows, B, 130))


@cells
def test_dropout_between_layers(cell):
    """In training all of it here, so that the second layer sees zeros; in evaluation none."""
    modules = twins(cell, 5, 6, 2, dropout=1.0)
    for training in (True, False):
        compare([module.train(training) for module in modules], torch.randn(1, 3, 5))


@cells
def test_results_share_no_memory(cell):
    ours, _, _ = twins(cell, 5, 6)
    with torch.no_grad():
        output, hn = ours(torch.randn(1, 3, 5))
    states = hn if cell.states > 1 else (hn,)
    before = [state.clone() for state in states]
    output.fill_(7)
    assert all(torch.equal(state, value) for state, value in zip(states, before))
    states[0].fill_(8)
    assert (output == 7).all()


def test_where_cells_serve():
    """Where they were measured to be no slower: LSTMs of few rows, others always."""
    for mode, kind in (("LSTM", "lstm"), ("GRU", "gru"), ("RNN", "rnn_tanh")):
        module = getattr(fastrnn, mode)(5, 6)
        assert f"aten::{kind}_cell" in operators(lambda: module(torch.randn(1, 31, 5)))  # noqa: B023
        for T, B in ((2, 31), (1, 0)):
            assert f"aten::{kind}" in operators(lambda: module(torch.randn(T, B, 5)))  # noqa: B023
    assert "aten::lstm" in operators(lambda: fastrnn.LSTM(5, 6)(torch.randn(1, 32, 5)))
    assert "aten::lstm" in operators(lambda: fastrnn.LSTM(5, 6, proj_size=3)(torch.randn(1, 3, 5)))
    with torch.no_grad():
        assert "aten::gru_cell" in operators(lambda: fastrnn.GRU(5, 6)(torch.randn(1, 32, 5)))
        assert "aten::lstm_cell" in operators(lambda: fastrnn.LSTM(5, 6)(torch.randn(1, 31, 5)))


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("position", range(4))
def test_a_weight_that_does_not_fit_is_noticed(cell, position):
    """By torch's cells, to which a module's step leaves it, or before."""
    name, right = list(getattr(fastrnn, cell)(5, 6).named_parameters())[position]
    shapes = ((7, 5), (24, 7)) if right.dim() == 2 else ((7,), (23,), (48,))
    for wrong in (right.double(), *map(torch.randn, shapes)):
        module = getattr(fastrnn, cell)(5, 6)
        setattr(module, name, torch.nn.Parameter(wrong))
        with pytest.raises((RuntimeError, ValueError)):
            module(torch.randn(1, 3, 5))


@cells
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_weights_of_one_dimension_are_named(cell, options):
    module, x = getattr(fastrnn, cell.layer)(4, 6, **options), torch.randn(1, 3, 4)
    module._flat_weights = [w.detach().flatten()[:6] for w in module._flat_weights]
    with pytest.raises(RuntimeError, match=r"weight_ih_l0 must have shape \(\d+, 4\), got \(6,\)"):
        module(x)
