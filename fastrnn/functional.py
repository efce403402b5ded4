"""Stacks of recurrent layers as functions: several layers, both directions, packed batches, dropout between layers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import _VF, Tensor

from . import _dispatch
from ._autograd import layer
from ._checks import check_same, check_shapes, layer_weights
from .reference import scan
from .registry import CELLS, Cell

_ATEN = {"LSTM": _VF.lstm, "GRU": _VF.gru, "RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu}
# On the CPU torch's autocast runs these in the low type as a whole; the others keep the type of their state.
_CPU_AUTOCAST_LOW = frozenset({"LSTM", "RNN", "RNNCell"})


def is_autocast(device: str) -> bool:
    """Whether autocast is on for a type of device; torch refuses to say for those that know none, such as meta."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast(name: str, input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], packed: bool = False):
    """The arguments of a call of class ``name`` in the type autocast asks for, which is also the result's.

    The type is torch's for that class and device. Where torch mixes types inside (GRU, LSTMCell, GRUCell and the packed
    LSTM on the CPU) everything is computed in the wider one.
    """
    device = input.device.type
    if not is_autocast(device) or any(t.dtype == torch.float64 for t in weights):
        return input, hx, weights
    dtype = torch.get_autocast_dtype(device)
    if device == "cpu" and (name not in _CPU_AUTOCAST_LOW or (name == "LSTM" and packed)):
        for state in hx:
            dtype = torch.promote_types(dtype, state.dtype)
    return input.to(dtype), [h.to(dtype) for h in hx], [w.to(dtype) for w in weights]


def describe(
    cell: Cell,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    layers: int = 1,
    directions: int = 1,
) -> _dispatch.Call:
    """The call that these arguments make, as the backend choice sees it."""
    width, hidden = hx[0].size(-1), hx[-1].size(-1)
    return _dispatch.Call(
        mode=cell.mode,
        device=input.device.type,
        dtype=input.dtype,
        T=input.size(0) if batch_sizes is None else batch_sizes.size(0),
        B=hx[0].size(1),
        I=input.size(-1),
        H=hidden,
        P=width if width != hidden else 0,
        layers=layers,
        directions=directions,
        packed=batch_sizes is not None,
        grad=torch.is_grad_enabled() and any(t.requires_grad for t in (input, *hx, *weights)),
        transformed=_dispatch.is_transformed(),
    )


def _run_aten(cell: Cell, input, batch_sizes, hx, weights, biases, layers, directions, dropout, training):
    state = tuple(h.contiguous() for h in hx) if cell.states > 1 else hx[0].contiguous()
    options = (list(weights), biases, layers, dropout, training, directions == 2)
    if batch_sizes is None:
        result = _ATEN[cell.mode](input.contiguous(), state, *options, False)
    else:
        result = _ATEN[cell.mode](input.contiguous(), batch_sizes, state, *options)
    return result[0], list(result[1:])


def run(
    cell: Cell,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Runs a stack of layers on the backend chosen for it.

    ``input`` is (T, B, I), or (N, I) with ``batch_sizes``; the states are (layers * D, B, ...). Returns the output and
    the final states. Types are taken as they are: autocast is the caller's to apply.
    """
    directions = 2 if bidirectional else 1
    check_same(input, hx, "hidden")
    check_same(input, weights, "parameter")
    if (input if batch_sizes is None else batch_sizes).size(0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    groups = layer_weights(cell, weights, num_layers, directions)
    check_shapes(cell, input, batch_sizes, hx, groups, directions)

    call = describe(cell, input, batch_sizes, hx, weights, num_layers, directions)
    backend = _dispatch.choose(call)
    if backend == "aten":
        biases = len(groups[0]) // directions >= 4
        return _run_aten(cell, input, batch_sizes, hx, weights, biases, num_layers, directions, dropout, training)
    finals = []
    for index, group in enumerate(groups):
        states = [h[index * directions : (index + 1) * directions] for h in hx]
        if call.transformed:
            input, final = scan(cell.index, input, batch_sizes, states, group)
        else:
            input, final = layer(backend, cell.index, input, batch_sizes, states, group)
        finals.append(final)
        if dropout and training and index < num_layers - 1:
            input = torch.dropout(input, dropout, True)
    if num_layers == 1:
        return input, list(finals[0])
    return input, [torch.cat(states) for states in zip(*finals)]


def _public(mode, input, hx, weights, num_layers, bidirectional, dropout, training, batch_first, batch_sizes):
    cell = CELLS[mode]
    name = f"fastrnn.{cell.layer.lower()}"
    dims = 3 if batch_sizes is None else 2
    if input.dim() != dims:
        raise ValueError(f"{name}: input must have {dims} dimensions, got {input.dim()}")
    if not isinstance(dropout, (int, float)) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(f"{name}: dropout must be a number in [0, 1], got {dropout!r}")
    if batch_first and batch_sizes is None:
        input = input.transpose(0, 1)
    if hx is None:
        groups = layer_weights(cell, weights, num_layers, 2 if bidirectional else 1)
        batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
        shape = (num_layers * (2 if bidirectional else 1), batch)
        widths = (groups[0][1].size(1), groups[0][0].size(0) // cell.gates)
        hx = [input.new_zeros(*shape, width) for width in widths[: cell.states]]
    elif isinstance(hx, Tensor):
        hx = [hx]
    input, hx, weights = autocast(cell.layer, input, list(hx), list(weights), batch_sizes is not None)
    device = input.device.type
    with torch.autocast(device, enabled=False) if is_autocast(device) else contextlib.nullcontext():
        output, hn = run(cell, input, hx, weights, num_layers, bidirectional, dropout, training, batch_sizes)
    return (output.transpose(0, 1) if batch_first and batch_sizes is None else output), hn


def lstm(
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    r"""A stack of LSTM layers: i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b), c' = f c + i g,
    h' = o tanh(c'), and h' = W_hr h' if projected.

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``, or packed rows (N, I) with ``batch_sizes``.
        hx: ``(h_0, c_0)`` of shapes (layers * D, B, R) and (layers * D, B, H), or None for zeros; R is P with a
            projection and H without.
        weights: flat list in torch's order, that of ``nn.LSTM``'s ``_flat_weights``: for every layer, for every
            direction, ``w_ih (4H, I), w_hh (4H, R)``, then ``b_ih, b_hh (4H,)`` or neither, then ``w_hr (P, H)`` if
            projected. Gates are stacked i, f, g, o.
        num_layers, bidirectional, dropout, training, batch_first: as for ``torch.nn.LSTM``; ``training`` switches the
            dropout between layers.
        batch_sizes: a ``PackedSequence``'s batch sizes: (T,), int64 on the CPU, not increasing.

    Returns:
        The output, shaped like the input with D * R features, and ``(h_n, c_n)`` shaped like ``hx``.

    Raises:
        ValueError, RuntimeError: arguments that do not fit together, before anything is computed.

    float64, float32, bfloat16 and float16; the 16-bit types accumulate in float32. The same inputs give the same bits.
    Source: Hochreiter and Schmidhuber 1997; Gers et al. 2000; Sak et al. 2014 (projection); ``torch.nn.LSTM``.
    """
    output, hn = _public(
        "LSTM", input, hx, weights, num_layers, bidirectional, dropout, training, batch_first, batch_sizes
    )
    return output, (hn[0], hn[1])


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""A stack of GRU layers: r, z = sigmoid(W x + U h + b), n = tanh(W_n x + b_n + r (U_n h + b_hn)),
    h' = n + z (h - n).

    Arguments, errors and numerics are those of :func:`lstm`, with one state: ``hx`` is ``h_0`` (layers * D, B, H) or
    None, the gates are stacked r, z, n (3H rows), there is no projection, and the result is ``(output, h_n)``.

    Source: Cho et al. 2014, with the reset gate applied after the product as in cuDNN and ``torch.nn.GRU``.
    """
    output, hn = _public(
        "GRU", input, hx, weights, num_layers, bidirectional, dropout, training, batch_first, batch_sizes
    )
    return output, hn[0]


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""A stack of Elman layers: h' = act(W x + U h + b) with ``nonlinearity`` ``"tanh"`` or ``"relu"``.

    Arguments, errors and numerics are those of :func:`lstm`, with one state and one gate: ``hx`` is ``h_0``
    (layers * D, B, H) or None, and the result is ``(output, h_n)``. An unknown ``nonlinearity`` is a ValueError.

    Source: Elman 1990; ``torch.nn.RNN``.
    """
    modes = {cell.nonlinearity: mode for mode, cell in CELLS.items() if cell.nonlinearity}
    if nonlinearity not in modes:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    output, hn = _public(
        modes[nonlinearity], input, hx, weights, num_layers, bidirectional, dropout, training, batch_first, batch_sizes
    )
    return output, hn[0]
