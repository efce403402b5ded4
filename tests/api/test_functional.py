"""fastrnn.functional: the layers without modules, on explicit weights."""

from __future__ import annotations

import pytest
import torch
from support import available, build, cells, device_of, layers, like, pairs, random_states, tensors, twins
from torch import zeros
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import functional
from fastrnn.registry import CELLS

RESETS = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]]).bool()


def call(cell, input, hx, weights, *args, **options):
    """The function of the cell's layer."""
    if cell.nonlinearity:
        options["nonlinearity"] = cell.nonlinearity
    return getattr(functional, cell.layer.lower())(input, hx, weights, *args, **options)


@pairs(
    cell=CELLS.values(),
    bias=[False, True],
    batch_first=[False, True],
    with_states={"zeros": False, "hx": True},
    asked={"plain": {}, "asked": {"lengths": [5, 3], "all_states": True, "checkpoint_chunks": 2, "reset_mask": RESETS}},
    autocast=[False, True],
    backend=available(),
)
def test_the_function_is_the_module(cell, bias, batch_first, with_states, asked, autocast, backend):
    proj, device = 3 if cell.mode == "LSTM" else 0, device_of(backend)
    options, sizes = {"bidirectional": True, "batch_first": batch_first}, {"proj_size": proj} if proj else {}
    module = build(fastrnn, cell, 4, 6, 2, bias=bias, **options, **sizes, device=device)
    x = torch.randn(*((2, 5) if batch_first else (5, 2)), 4)
    x, hx = like(module, x), like(module, random_states(cell, 4, 2, 6, proj)) if with_states else None
    if backend == "aten":  # which torch's own layers have not, or not on every CPU
        asked, autocast = {}, False
    asked = {name: value.to(device) if name == "reset_mask" else value for name, value in asked.items()}
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        expected = module(x, hx, **asked)
        found = call(cell, x, hx, list(module.parameters()), 2, **options, **asked)
    assert [type(part) for part in found] == [type(part) for part in expected]
    pairs_of_results = list(zip(tensors(found), tensors(expected), strict=True))
    assert all(torch.equal(*pair) and pair[0].requires_grad for pair in pairs_of_results)


@cells
def test_packed_rows(cell, backend):
    module = build(fastrnn, cell, 4, 6, 2, bidirectional=True, device=device_of(backend))
    packed = pack_padded_sequence(torch.randn(5, 3, 4, device=device_of(backend)), [5, 3, 1])
    options = {"bidirectional": True, "batch_sizes": packed.batch_sizes}
    found = call(cell, packed.data, None, list(module.parameters()), 2, **options)
    assert all(torch.equal(*pair) for pair in zip(tensors(found), tensors(module(packed)), strict=True))


@layers
def test_dropout_needs_training(cell, backend):
    ours, *_ = twins(cell, 4, 6, 2, device=device_of(backend))
    weights = list(ours.parameters())
    x = torch.randn(5, 2, 4, device=device_of(backend))
    still = call(cell, x, None, weights, 2, dropout=0.5)[0]
    assert torch.equal(still, call(cell, x, None, weights, 2)[0])
    assert not torch.equal(still, call(cell, x, None, weights, 2, dropout=0.5, training=True)[0])


def weights_of(mode="LSTM", **options):
    return list(twins(CELLS[mode], 4, 6, **options)[0].parameters())


X, H = zeros(3, 2, 4), zeros(1, 2, 6)
ERRORS = [
    ("input dims", lambda: functional.lstm(zeros(3, 4), None, weights_of()), ValueError,
     "fastrnn.lstm: input must have 3 dimensions, got 2"),
    ("packed dims", lambda: functional.gru(X, None, weights_of("GRU"), batch_sizes=torch.tensor([2, 2])), ValueError,
     "fastrnn.gru: input must have 2 dimensions, got 3"),
    ("dropout", lambda: functional.lstm(X, None, weights_of(), dropout=1.5), ValueError,
     "fastrnn.lstm: dropout must be a number in [0, 1], got 1.5"),
    ("dropout True", lambda: functional.rnn(X, None, weights_of("RNN_TANH"), dropout=True), ValueError,
     "fastrnn.rnn: dropout must be a number in [0, 1], got True"),
    ("weight count", lambda: functional.gru(X, H, weights_of("GRU")[:3]), ValueError,
     "fastrnn.gru: expected 2 or 4 weights for each of 1 layer(s) and 1 direction(s), got 3 in all"),
    ("weight count, none given", lambda: functional.gru(X, None, []), ValueError,
     "fastrnn.gru: expected 2 or 4 weights for each of 1 layer(s) and 1 direction(s), got 0 in all"),
    ("layers", lambda: functional.lstm(X, (zeros(3, 2, 6),) * 2, weights_of(), 3), ValueError,
     "fastrnn.lstm: expected 2 or 3 or 4 or 5 weights for each of 3 layer(s) and 1 direction(s), got 4 in all"),
    ("no layers", lambda: functional.lstm(X, None, weights_of(), num_layers=0), ValueError,
     "fastrnn.lstm: num_layers must be a positive integer, got 0"),
    ("layers True", lambda: functional.gru(X, None, weights_of("GRU"), num_layers=True), ValueError,
     "fastrnn.gru: num_layers must be a positive integer, got True"),
    ("w_ih 1-D", lambda: functional.lstm(X, None, [zeros(24), *weights_of()[1:]]), RuntimeError,
     "fastrnn.lstm: weight_ih_l0 must have 2 dimensions, got (24,)"),
    ("w_hh 1-D", lambda: functional.gru(X, None, [zeros(18, 4), zeros(18)]), RuntimeError,
     "fastrnn.gru: weight_hh_l0 must have 2 dimensions, got (18,)"),
    ("one state", lambda: functional.lstm(X, H, weights_of()), RuntimeError, "fastrnn.lstm expects two hidden states"),
    ("two states", lambda: functional.gru(X, (H, H), weights_of("GRU")), RuntimeError,
     "fastrnn.gru expects one hidden state"),
    ("set of states", lambda: functional.lstm(X, {H, H.clone()}, weights_of()), TypeError,
     "fastrnn.lstm: expected hx to be 2 tensor(s) in a tuple, got set"),
    ("number as state", lambda: functional.gru(X, 3, weights_of("GRU")), TypeError,
     "fastrnn.gru: expected hx to be 1 tensor(s) in a tuple, got int"),
    ("state shape", lambda: functional.gru(X, zeros(1, 5, 6), weights_of("GRU")), RuntimeError,
     "fastrnn.gru: state 0 must have shape (1, 2, 6), got (1, 5, 6)"),
    ("cell state shape", lambda: functional.lstm(X, (H, zeros(2, 2, 6)), weights_of()), RuntimeError,
     "fastrnn.lstm: state 1 must have shape (1, 2, 6), got (2, 2, 6)"),
    ("weight shape", lambda: functional.lstm(zeros(3, 2, 5), (H, H), weights_of()), RuntimeError,
     "fastrnn.lstm: weight_ih_l0 must have shape (24, 5), got (24, 4)"),
    ("state width", lambda: functional.gru(X, zeros(1, 2, 5), weights_of("GRU")), RuntimeError,
     "fastrnn.gru: weight_ih_l0 must have shape (15, 4), got (18, 4)"),
    ("unprojected", lambda: functional.lstm(X, (zeros(1, 2, 3), H), weights_of()), RuntimeError,
     "fastrnn.lstm: h has 3 features and c has 6, but there is no projection weight"),
    ("T = 0", lambda: functional.lstm(zeros(0, 2, 4), None, weights_of()), RuntimeError,
     "Expected sequence length to be larger than 0 in RNN"),
    ("nonlinearity", lambda: functional.rnn(X, None, weights_of("RNN_TANH"), nonlinearity="gelu"), ValueError,
     "Unknown nonlinearity 'gelu'. Select from 'tanh' or 'relu'."),
    ("dtype", lambda: functional.lstm(X.double(), None, weights_of()), RuntimeError,
     "Input and parameter tensors are not the same dtype, "
     "found input tensor with torch.float64 and parameter tensor with torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize("name, action, kind, text", ERRORS, ids=lambda v: v if isinstance(v, str) else "")
def test_errors(name, action, kind, text, any_backend):
    """They come before any backend is asked, so they are the same for all."""
    with pytest.raises(kind) as info:
        action()
    assert type(info.value) is kind and str(info.value) == text
