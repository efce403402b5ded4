"""Every misuse that torch.nn reports, with torch's type and torch's words; what torch lets through, in ours."""

from __future__ import annotations

import re

import pytest
import torch
from support import LAYERS, build, name_of
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

# Name, action, type, the whole text as a regular expression.
FORWARD = [
    ("LSTM 4-D", layer("LSTM", zeros(1, 2, 3, 4)), ValueError, "LSTM: Expected input to be 2D or 3D, got 4D instead"),
    ("GRU 4-D", layer("GRU", zeros(1, 2, 3, 4)), ValueError, "GRU: Expected input to be 2D or 3D, got 4D instead"),
    ("RNN 4-D", layer("RNN_TANH", zeros(1, 2, 3, 4)), ValueError, "RNN: .* 2D or 3D, got 4D tensor instead"),
    ("LSTM 1-D", layer("LSTM", zeros(4)), ValueError, "LSTM: Expected input to be 2D or 3D, got 1D instead"),
    ("features", layer("LSTM", zeros(3, 2, 7)), RuntimeError, r"input.size\(-1\) must .* Expected 4, got 7"),
    ("features GRU", layer("GRU", zeros(3, 2, 7)), RuntimeError, r"input.size\(-1\) must .* Expected 4, got 7"),
    ("features 2-D", layer("RNN_RELU", zeros(3, 7)), RuntimeError, r"input.size\(-1\) must .* Expected 4, got 7"),
    ("features packed", layer("GRU", packed(3, 1, features=7)), RuntimeError, r"input.size\(-1\) .* Expected 4, got 7"),
    ("features first", layer("LSTM", zeros(3, 2, 7), (zeros(1, 9, 5),) * 2), RuntimeError, ".* Expected 4, got 7"),
    (
        "h batch",
        layer("LSTM", x, (zeros(2, 9, 5), zeros(2, 2, 5)), bidirectional=True),
        RuntimeError,
        r"Expected hidden\[0\] size \(2, 2, 5\), got \[2, 9, 5\]",
    ),
    (
        "c width",
        layer("LSTM", x, (h, zeros(1, 2, 6))),
        RuntimeError,
        r"Expected hidden\[1\] size \(1, 2, 5\), got \[1, 2, 6\]",
    ),
    (
        "h projected",
        layer("LSTM", x, (h, h), proj_size=3),
        RuntimeError,
        r"Expected hidden\[0\] size \(1, 2, 3\), got \[1, 2, 5\]",
    ),
    ("h layers", layer("GRU", x, zeros(2, 2, 5)), RuntimeError, r"Expected hidden size \(1, 2, 5\), got \[2, 2, 5\]"),
    (
        "h batch_first",
        layer("RNN_TANH", x, zeros(1, 2, 5), batch_first=True),
        RuntimeError,
        r"Expected hidden size \(1, 3, 5\), got \[1, 2, 5\]",
    ),
    (
        "packed GRU batch",
        layer("GRU", packed(3, 1), zeros(1, 3, 5)),
        RuntimeError,
        r"Expected hidden size \(1, 2, 5\), got \[1, 3, 5\]",
    ),
    ("mixed LSTM", layer("LSTM", x, (zeros(1, 5),) * 2), RuntimeError, rf"For {MIXED} \(2-D, 2-D\) tensors"),
    ("mixed LSTM c", layer("LSTM", x, (h, zeros(1, 5))), RuntimeError, rf"For {MIXED} \(3-D, 2-D\) tensors"),
    ("mixed LSTM 2-D", layer("LSTM", zeros(3, 4), (h, h)), RuntimeError, r"For unbatched 2-D .* \(3-D, 3-D\) tensors"),
    ("mixed GRU", layer("GRU", x, zeros(1, 5)), RuntimeError, "For batched 3-D input, hx .* 3-D but got 2-D tensor"),
    (
        "mixed RNN",
        layer("RNN_RELU", zeros(3, 4), h),
        RuntimeError,
        "For unbatched 2-D input, .* 2-D but got 3-D tensor",
    ),
    ("input dtype", layer("LSTM", x.double()), ValueError, DTYPE_TEXT),
    ("input dtype GRU", layer("GRU", x.double()), ValueError, DTYPE_TEXT),
    ("input dtype RNN", layer("RNN_TANH", x.double()), ValueError, DTYPE_TEXT),
    ("input dtype packed", layer("RNN_TANH", packed(3, 1).to(DOUBLE)), ValueError, DTYPE_TEXT),
    ("three states", layer("LSTM", x, (h, h, h)), RuntimeError, "lstm expects two hidden states"),
    ("T = 0", layer("LSTM", zeros(0, 2, 4)), RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
    ("T = 0 GRU", layer("GRU", zeros(0, 2, 4)), RuntimeError, "Expected sequence length to be larger than 0 in RNN"),
    ("T = 0 RNN", layer("RNN_TANH", zeros(0, 2, 4)), RuntimeError, "Expected sequence .* larger than 0 in RNN"),
    ("LSTMCell 3-D", step("LSTM", x), ValueError, "LSTMCell: Expected input to be 1D or 2D, got 3D instead"),
    ("GRUCell 3-D", step("GRU", x), ValueError, "GRUCell: Expected input to be 1D or 2D, got 3D instead"),
    ("RNNCell 3-D", step("RNN_TANH", x), ValueError, "RNNCell: Expected input to be 1D or 2D, got 3D instead"),
    (
        "LSTMCell hx 3-D",
        step("LSTM", x[0], (h, h)),
        ValueError,
        r"LSTMCell: Expected hx\[0\] to be 1D or 2D, got 3D .*",
    ),
    ("GRUCell hx 3-D", step("GRU", x[0], h), ValueError, "GRUCell: Expected hidden to be 1D or 2D, got 3D instead"),
    ("cell input", step("LSTM", zeros(2, 7)), RuntimeError, "input has inconsistent input_size: got 7 expected 4"),
    ("cell input RNN", step("RNN_RELU", zeros(2, 7)), RuntimeError, "input has inconsistent .*: got 7 expected 4"),
    ("cell hidden", step("GRU", x[0], zeros(2, 6)), RuntimeError, "hidden0 has inconsistent .*: got 6, expected 5"),
    (
        "cell c",
        step("LSTM", x[0], (zeros(2, 5), zeros(2, 6))),
        RuntimeError,
        "hidden1 has inconsistent hidden_size: got 6, expected 5",
    ),
    (
        "cell batch",
        step("RNN_TANH", x[0], zeros(3, 5)),
        RuntimeError,
        "Input batch size 2 doesn't match hidden0 batch size 3",
    ),
    (
        "unknown nonlinearity",
        lambda space: space.RNNCell(4, 5, nonlinearity="gelu")(x[0]),
        RuntimeError,
        "Unknown nonlinearity: gelu",
    ),
]
CONSTRUCTION = [
    ("proj negative", lambda s: s.LSTM(4, 5, proj_size=-1), ValueError, "proj_size should be a positive integer or .*"),
    ("proj too large", lambda s: s.LSTM(4, 5, proj_size=5), ValueError, "proj_size has to be smaller than hidden_size"),
    ("proj GRU", lambda s: s.GRU(4, 5, proj_size=2), ValueError, "proj_size argument is only supported for LSTM, .*"),
    ("proj RNN", lambda s: s.RNN(4, 5, proj_size=2), ValueError, "proj_size argument is only supported for LSTM, .*"),
    (
        "dropout 1.5",
        lambda s: s.LSTM(4, 5, 2, dropout=1.5),
        ValueError,
        r"dropout should be a number in range \[0, 1\].*",
    ),
    (
        "dropout -1",
        lambda s: s.GRU(4, 5, 2, dropout=-1),
        ValueError,
        r"dropout should be a number in range \[0, 1\] .*",
    ),
    ("dropout True", lambda s: s.RNN(4, 5, 2, dropout=True), ValueError, r"dropout should be a number in range .*"),
    (
        "nonlinearity",
        lambda s: s.RNN(4, 5, nonlinearity="gelu"),
        ValueError,
        "Unknown nonlinearity 'gelu'. Select from .*",
    ),
    ("unknown argument", lambda s: s.RNN(4, 5, stride=2), TypeError, ".* got an unexpected keyword argument 'stride'"),
]
for _kind in ("LSTM", "GRU", "RNN"):
    CONSTRUCTION += [
        (
            f"{_kind} input 0",
            lambda s, k=_kind: getattr(s, k)(0, 5),
            ValueError,
            "input_size must be greater than zero",
        ),
        (
            f"{_kind} hidden 0",
            lambda s, k=_kind: getattr(s, k)(4, 0),
            ValueError,
            "hidden_size must be greater than .*",
        ),
        (f"{_kind} layers 0", lambda s, k=_kind: getattr(s, k)(4, 5, 0), ValueError, "num_layers must be greater .*"),
        (f"{_kind} bias", lambda s, k=_kind: getattr(s, k)(4, 5, bias=1), TypeError, "bias should .* bool, got: int"),
        (f"{_kind} float", lambda s, k=_kind: getattr(s, k)(4.0, 5), TypeError, "input_size should .* got: float"),
        (f"{_kind} hidden str", lambda s, k=_kind: getattr(s, k)(4, "5"), TypeError, "hidden_size should .* got: str"),
        (
            f"{_kind} batch_first",
            lambda s, k=_kind: getattr(s, k)(4, 5, batch_first=1),
            TypeError,
            "batch_first should be of type bool, got: int",
        ),
        (f"{_kind} no sizes", lambda s, k=_kind: getattr(s, k)(), TypeError, ".*missing .* required .*"),
    ]


@pytest.mark.parametrize("name, action, kind, text", FORWARD, ids=lambda v: v if isinstance(v, str) else "")
def test_forward(name, action, kind, text, any_backend):
    ours = caught(action, fastrnn)
    assert ours == caught(action, nn)
    assert ours[0] is kind and re.fullmatch(text, ours[1])


@pytest.mark.parametrize("name, action, kind, text", CONSTRUCTION, ids=lambda v: v if isinstance(v, str) else "")
def test_construction(name, action, kind, text):
    ours, theirs = caught(action, fastrnn), caught(action, nn)
    assert ours[0] is theirs[0] is kind and re.fullmatch(text, ours[1], re.S)
    # torch hides its signatures behind *args, so Python words a missing argument differently: only there.
    assert ours[1] == theirs[1] or (kind is TypeError and "argument" in text + theirs[1])


@pytest.mark.parametrize("cell", LAYERS, ids=name_of)
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


@pytest.mark.parametrize("cell", CELLS.values(), ids=name_of)
@pytest.mark.parametrize("one_step", [False, True], ids=["layer", "step"])
@pytest.mark.parametrize("other", [DOUBLE, HALF], ids=name_of)
def test_state_of_another_type(cell, one_step, other, any_backend):
    states = [(zeros(2, 5) if one_step else h).to(other)] * cell.states
    module = build(fastrnn, cell, 4, 5, step=one_step)
    with pytest.raises(RuntimeError) as info:
        module(x[0] if one_step else x, states if cell.states > 1 else states[0])
    assert str(info.value) == (
        "Input and hidden tensors are not the same dtype, "
        f"found input tensor with torch.float32 and hidden tensor with {other}"
    )


@pytest.mark.parametrize("cell", [cell for cell in CELLS.values() if cell.states == 2], ids=name_of)
def test_only_the_second_state_of_another_type(cell):
    with pytest.raises(RuntimeError, match="hidden tensors are not the same dtype"):
        build(fastrnn, cell, 4, 5)(x, (h, h.double()))


@pytest.mark.parametrize("cell", CELLS.values(), ids=name_of)
@pytest.mark.parametrize("one_step", [False, True], ids=["layer", "step"])
def test_devices_mixed(cell, one_step, any_backend):
    module = build(fastrnn, cell, 4, 5, step=one_step)
    data, state = (x[0], zeros(2, 5)) if one_step else (x, h)
    hx = (state,) * 2 if cell.states == 2 else state
    with pytest.raises(RuntimeError) as info:
        module(data.to("meta"))
    assert str(info.value) == (
        "Input and parameter tensors are not at the same device, found input tensor at meta and parameter tensor at cpu"
    )
    with pytest.raises(RuntimeError) as info:
        module(data, tuple(t.to("meta") for t in hx) if cell.states == 2 else hx.to("meta"))
    assert str(info.value) == (
        "Input and hidden tensors are not at the same device, found input tensor at cpu and hidden tensor at meta"
    )


def test_weight_of_another_type():
    module = fastrnn.GRU(4, 5)
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().double())
    with pytest.raises(RuntimeError, match="Input and parameter tensors are not the same dtype"):
        module(x)


@pytest.mark.parametrize("one_step", [False, True], ids=["layer", "step"])
def test_state_of_the_wrong_kind(one_step):
    data = x[0] if one_step else x
    for name in ("GRU", "RNN_TANH"):
        with pytest.raises(TypeError, match="expected hx to be a tensor, got tuple"):
            build(fastrnn, CELLS[name], 4, 5, step=one_step)(data, (h,))
    with pytest.raises(TypeError, match="expected hx to be a tuple of 2 tensors, got Tensor"):
        build(fastrnn, CELLS["LSTM"], 4, 5, step=one_step)(data, h)
