"""Every misuse that torch.nn reports, with torch's type and torch's words; what torch lets through, in ours."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from support import build, cells, given, layers, name_of
from torch import nn, zeros
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.registry import CELLS

DOUBLE, HALF = torch.float64, torch.float16


def caught(action, space) -> tuple[type, str]:
    with pytest.raises(Exception) as info:
        action(space)
    return info.type, str(info.value)


def packed(*lengths, features=4):
    return pack_padded_sequence(zeros(max(lengths), len(lengths), features), torch.tensor(lengths))


def layer(cell, *args, **options):
    """A row of the table: constructs a layer of (4, 5) and calls it."""
    return lambda space: build(space, CELLS[cell], 4, 5, **options)(*args)


def step(cell, *args, **options):
    return lambda space: build(space, CELLS[cell], 4, 5, step=True, **options)(*args)


x, h = zeros(3, 2, 4), zeros(1, 2, 5)
DTYPE_TEXT = (
    r"RNN input dtype \(torch.float64\) does not match weight dtype \(torch.float32\). "
    r"Convert input: input.to\(torch.float32\), or convert model: model.to\(torch.float64\)"
)
MIXED = "batched 3-D input, hx and cx should also be 3-D but got"

# Action, part of the text as a regular expression.
FORWARD = [
    (layer("LSTM", zeros(1, 2, 3, 4)), "LSTM: Expected input to be 2D or 3D, got 4D instead"),
    (layer("GRU", zeros(1, 2, 3, 4)), "GRU: Expected input to be 2D or 3D, got 4D instead"),
    (layer("RNN_TANH", zeros(1, 2, 3, 4)), "RNN: .* 2D or 3D, got 4D tensor instead"),
    (layer("LSTM", zeros(4)), "LSTM: Expected input to be 2D or 3D, got 1D instead"),
    (layer("LSTM", zeros(3, 2, 7)), r"input.size\(-1\) must .* Expected 4, got 7"),
    (layer("GRU", zeros(3, 2, 7)), r"input.size\(-1\) must .* Expected 4, got 7"),
    (layer("RNN_RELU", zeros(3, 7)), r"input.size\(-1\) must .* Expected 4, got 7"),
    (layer("GRU", packed(3, 1, features=7)), r"input.size\(-1\) .* Expected 4, got 7"),
    (layer("LSTM", zeros(3, 2, 7), (zeros(1, 9, 5),) * 2), ".* Expected 4, got 7"),
    (
        layer("LSTM", x, (zeros(2, 9, 5), zeros(2, 2, 5)), bidirectional=True),
        r"Expected hidden\[0\] .* got \[2, 9, 5\]",
    ),
    (layer("LSTM", x, (h, zeros(1, 2, 6))), r"Expected hidden\[1\] size \(1, 2, 5\), got \[1, 2, 6\]"),
    (layer("LSTM", x, (h, h), proj_size=3), r"Expected hidden\[0\] size \(1, 2, 3\), got \[1, 2, 5\]"),
    (layer("GRU", x, zeros(2, 2, 5)), r"Expected hidden size \(1, 2, 5\), got \[2, 2, 5\]"),
    (layer("RNN_TANH", x, zeros(1, 2, 5), batch_first=True), r"hidden size \(1, 3, 5\), got \[1, 2, 5\]"),
    (layer("GRU", packed(3, 1), zeros(1, 3, 5)), r"Expected hidden size \(1, 2, 5\), got \[1, 3, 5\]"),
    (layer("LSTM", x, (zeros(1, 5),) * 2), rf"For {MIXED} \(2-D, 2-D\) tensors"),
    (layer("LSTM", x, (h, zeros(1, 5))), rf"For {MIXED} \(3-D, 2-D\) tensors"),
    (layer("LSTM", zeros(3, 4), (h, h)), r"For unbatched 2-D .* \(3-D, 3-D\) tensors"),
    (layer("GRU", x, zeros(1, 5)), "For batched 3-D input, hx .* 3-D but got 2-D tensor"),
    (layer("RNN_RELU", zeros(3, 4), h), "For unbatched 2-D input, .* 2-D but got 3-D tensor"),
    (layer("LSTM", x.double()), DTYPE_TEXT),
    (layer("GRU", x.double()), DTYPE_TEXT),
    (layer("RNN_TANH", x.double()), DTYPE_TEXT),
    (layer("RNN_TANH", packed(3, 1).to(DOUBLE)), DTYPE_TEXT),
    (layer("LSTM", x, (h, h, h)), "lstm expects two hidden states"),
    (layer("LSTM", zeros(0, 2, 4)), "Expected sequence length to be larger than 0 in RNN"),
    (layer("GRU", zeros(0, 2, 4)), "Expected sequence length to be larger than 0 in RNN"),
    (layer("RNN_TANH", zeros(0, 2, 4)), "Expected sequence .* larger than 0 in RNN"),
    (step("LSTM", x), "LSTMCell: Expected input to be 1D or 2D, got 3D instead"),
    (step("GRU", x), "GRUCell: Expected input to be 1D or 2D, got 3D instead"),
    (step("RNN_TANH", x), "RNNCell: Expected input to be 1D or 2D, got 3D instead"),
    (step("LSTM", x[0], (h, h)), r"LSTMCell: Expected hx\[0\] to be 1D or 2D, got 3D .*"),
    (step("GRU", x[0], h), "GRUCell: Expected hidden to be 1D or 2D, got 3D instead"),
    (step("RNN_TANH", x[0], h), "RNNCell: Expected hidden to be 1D or 2D, got 3D instead"),
    (step("LSTM", zeros(2, 7)), "input has inconsistent input_size: got 7 expected 4"),
    (step("RNN_RELU", zeros(2, 7)), "input has inconsistent .*: got 7 expected 4"),
    (step("GRU", x[0], zeros(2, 6)), "hidden0 has inconsistent .*: got 6, expected 5"),
    (step("LSTM", x[0], (zeros(2, 5), zeros(2, 6))), "hidden1 has inconsistent .*: got 6, expected 5"),
    (step("RNN_TANH", x[0], zeros(3, 5)), "Input batch size 2 doesn't match hidden0 batch size 3"),
    (lambda space: space.RNNCell(4, 5, nonlinearity="gelu")(x[0]), "Unknown nonlinearity: gelu"),
]

# Class, arguments, part of the text as a regular expression.
CONSTRUCTION = [
    ("LSTM", (4, 5), {"proj_size": -1}, "proj_size should be a positive integer or "),
    ("LSTM", (4, 5), {"proj_size": 5}, "proj_size has to be smaller than hidden_size"),
    ("GRU", (4, 5), {"proj_size": 2}, "proj_size argument is only supported for LSTM, "),
    ("RNN", (4, 5), {"proj_size": 2}, "proj_size argument is only supported for LSTM, "),
    ("LSTM", (4, 5, 2), {"dropout": 1.5}, r"dropout should be a number in range \[0, 1\]"),
    ("GRU", (4, 5, 2), {"dropout": -1}, r"dropout should be a number in range \[0, 1\]"),
    ("RNN", (4, 5, 2), {"dropout": True}, r"dropout should be a number in range \[0, 1\]"),
    ("RNN", (4, 5), {"nonlinearity": "gelu"}, "Unknown nonlinearity 'gelu'. Select from "),
    ("RNN", (4, 5), {"stride": 2}, "got an unexpected keyword argument 'stride'"),
]
for _kind in ("LSTM", "GRU", "RNN"):
    CONSTRUCTION += [
        (_kind, (0, 5), {}, "input_size must be greater than zero"),
        (_kind, (4, 0), {}, "hidden_size must be greater than zero"),
        (_kind, (4, 5, 0), {}, "num_layers must be greater than zero"),
        (_kind, (4, 5), {"bias": 1}, "bias should be of type bool, got: int"),
        (_kind, (4.0, 5), {}, "input_size should .* got: float"),
        (_kind, (4, "5"), {}, "hidden_size should .* got: str"),
        (_kind, (4, 5), {"batch_first": 1}, "batch_first should be of type bool, got: int"),
        (_kind, (), {}, "missing .* required "),
    ]


@pytest.mark.parametrize("action, text", FORWARD, ids=lambda v: v if isinstance(v, str) else "")
def test_forward(action, text, any_backend):
    ours = caught(action, fastrnn)
    assert ours == caught(action, nn) and re.search(text, ours[1])


@pytest.mark.parametrize("kind, args, options, text", CONSTRUCTION, ids=str)
def test_construction(kind, args, options, text):
    ours, theirs = (caught(lambda space: getattr(space, kind)(*args, **options), space) for space in (fastrnn, nn))
    assert ours[0] is theirs[0] and re.search(text, ours[1])
    # torch hides its signatures behind *args, so Python words a missing argument differently: only there.
    assert ours[1] == theirs[1] or (ours[0] is TypeError and "argument" in text + theirs[1])


@layers
def test_dropout_of_one_layer_warns_as_torch_does(cell):
    texts = []
    for space in (nn, fastrnn):
        with pytest.warns(UserWarning, match="num_layers greater than 1, but got dropout=0.5 and num_layers=1") as seen:
            build(space, cell, 4, 5, dropout=0.5)
        texts.append([str(w.message) for w in seen])
    assert texts[0] == texts[1]


# From here on torch checks nothing, or lets a backend's own words through.


@pytest.mark.parametrize("batch", [1, 3])
def test_packed_lstm_state_of_another_batch(batch, any_backend):
    """torch leaves this to its kernels: some answer with a broadcasting error, cuDNN with a result."""
    states = (zeros(1, batch, 5), zeros(1, batch, 5))
    with pytest.raises(RuntimeError) as info:
        fastrnn.LSTM(4, 5)(packed(3, 1), states)
    assert str(info.value) == f"Expected hidden[0] size (1, 2, 5), got [1, {batch}, 5]"


@cells
@pytest.mark.parametrize("one_step", [False, True], ids=["layer", "step"])
@pytest.mark.parametrize("other", [DOUBLE, HALF], ids=name_of)
def test_state_of_another_type(cell, one_step, other, any_backend):
    """The last one of a right and a wrong one, or all."""
    module, right = build(fastrnn, cell, 4, 5, step=one_step), zeros(2, 5) if one_step else h
    text = f"not the same dtype, found input tensor with torch.float32 and hidden tensor with {other}"
    for first in (right, right.to(other)):
        with pytest.raises(RuntimeError, match=f"Input and hidden tensors are {text}"):
            module(x[0] if one_step else x, given([first, right.to(other)][-cell.states :]))


def refusals(module, *arguments):
    """Of explain, and of the call."""
    return [caught(lambda run: run(*arguments), run) for run in (partial(fastrnn.explain, module), module)]


@cells
@pytest.mark.parametrize("one_step", [False, True], ids=["layer", "step"])
def test_explain_refuses_what_the_call_refuses(cell, one_step, any_backend):
    module, data = build(fastrnn, cell, 4, 5, step=one_step), x[0] if one_step else x
    state = zeros(2, 5) if one_step else h
    calls = [(data, given([state.double()] * cell.states)), (data.to("meta"), None)]
    calls += [] if one_step else [(zeros(0, 2, 4), None)]
    for arguments in calls:
        explained, called = refusals(module, *arguments)
        assert explained == called and called[0] is RuntimeError
    with pytest.raises(TypeError, match=f"fastrnn.explain: a call of {type(module).__name__} has no argument 'foo'"):
        fastrnn.explain(module, data, foo=1)
    if one_step:
        with pytest.raises(TypeError, match="has no argument 'lengths'"):
            fastrnn.explain(module, data, lengths=[3, 2])


def test_explain_of_heads_refuses_what_the_call_refuses(any_backend):
    module = fastrnn.GRU(4, 6, num_heads=2)
    module.bias_hh_l0 = nn.Parameter(zeros(17))
    explained, called = refusals(module, x)
    assert explained == called and "bias_hh_l0 must have shape (18,), got (17,)" in called[1]


@cells
@pytest.mark.parametrize("one_step", [False, True], ids=["layer", "step"])
def test_devices_mixed(cell, one_step, any_backend):
    module = build(fastrnn, cell, 4, 5, step=one_step)
    data, state = (x[0], zeros(2, 5)) if one_step else (x, h)
    text = "tensors are not at the same device, found input tensor at"
    with pytest.raises(RuntimeError, match=f"Input and parameter {text} meta and parameter tensor at cpu"):
        module(data.to("meta"))
    with pytest.raises(RuntimeError, match=f"Input and hidden {text} cpu and hidden tensor at meta"):
        module(data, given([state.to("meta")] * cell.states))


def test_weight_of_another_type():
    module = fastrnn.GRU(4, 5)
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().double())
    with pytest.raises(RuntimeError, match="Input and parameter tensors are not the same dtype"):
        module(x)
