"""Stacks of recurrent layers as functions: several layers, both directions, packed batches, dropout between layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import _VF, Tensor

from . import _dispatch
from ._autograd import layer, needs_grad
from ._checks import check_call, check_weight_count
from .reference import scan
from .registry import CELLS, Cell

_ATEN = {"LSTM": _VF.lstm, "GRU": _VF.gru, "RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu}
# On the CPU torch's autocast runs these in the low type as a whole; the others keep the type of their state.
_CPU_AUTOCAST_LOW = frozenset({"LSTM", "RNN", "RNNCell"})


def is_autocast(input: Tensor) -> bool:
    """Whether autocast is on for a tensor's device; torch refuses to say for those that know none, such as meta."""
    if not torch._C._is_any_autocast_enabled():
        return False
    device = input.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast(name: str, input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], packed: bool = False):
    """The arguments of a call of class ``name`` in the type that it is to be computed in under autocast.

    The type is torch's for that class and device, and also the result's but for :func:`_run_autocast`. Where torch
    mixes types inside (on the CPU GRU, LSTMCell, GRUCell and the packed or projected LSTM) everything is computed in
    the wider one.
    """
    if not is_autocast(input) or any(t.dtype == torch.float64 for t in weights):
        return input, hx, weights
    device = input.device.type
    dtype = torch.get_autocast_dtype(device)
    if device == "cpu" and (name not in _CPU_AUTOCAST_LOW or (name == "LSTM" and (packed or _is_projected(hx)))):
        for state in hx:
            dtype = torch.promote_types(dtype, state.dtype)
    return input.to(dtype), [h.to(dtype) for h in hx], [w.to(dtype) for w in weights]


def _is_projected(hx: Sequence[Tensor]) -> bool:
    return hx[0].size(-1) != hx[-1].size(-1)


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
    packed, width, H = batch_sizes is not None, hx[0].size(-1), hx[-1].size(-1)
    if packed:
        T, I = batch_sizes.size(0), input.size(-1)
        B = int(batch_sizes[0]) if T else 0
    else:
        T, B, I = input.shape
    # By position and without a look at `device` on the CPU: this is on the way of every call, however small.
    return _dispatch.Call(
        cell.mode,
        "cpu" if input.is_cpu else input.device.type,
        input.dtype,
        T,
        B,
        I,
        H,
        width if width != H else 0,
        layers,
        directions,
        packed,
        needs_grad(input, hx, weights),
        _dispatch.is_transformed(),
    )


def _run_aten(cell: Cell, input, batch_sizes, hx, weights, layers, directions, dropout, training):
    state = [h.contiguous() for h in hx] if cell.states > 1 else hx[0].contiguous()
    biases = len(weights) // (layers * directions) >= 4
    options = (weights, biases, layers, dropout, training, directions == 2)
    if batch_sizes is None:
        output, *hn = _ATEN[cell.mode](input.contiguous(), state, *options, False)
    else:
        output, *hn = _ATEN[cell.mode](input.contiguous(), batch_sizes, state, *options)
    return output, hn


def _run_autocast(cell: Cell, input, hx, weights, *options) -> tuple[Tensor, list[Tensor]]:
    """:func:`run` with autocast on: computed in one type, with results of torch's types."""
    device, packed = input.device.type, options[-1] is not None
    input, hx, weights = autocast(cell.layer, input, hx, weights, packed)
    with torch.autocast(device, enabled=False):
        output, hn = run(cell, input, hx, weights, *options)
    if device == "cpu" and _is_projected(hx) and output.dtype != torch.float64:
        # There torch projects h in the low type; c alone stays in the type of its initial value.
        low = torch.get_autocast_dtype(device)
        output, hn = output.to(low), [hn[0].to(low), *hn[1:]]
    return output, hn


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

    ``input`` is (T, B, I), or (N, I) with ``batch_sizes``; the states are (layers * D, B, ...). There are as many
    states and weights as the cell and the layout have; whether they fit is checked here. Returns the output and the
    final states, in the types that autocast asks for where it is on.
    """
    if is_autocast(input):
        return _run_autocast(cell, input, hx, weights, num_layers, bidirectional, dropout, training, batch_sizes)
    directions = 2 if bidirectional else 1
    call = describe(cell, input, batch_sizes, hx, weights, num_layers, directions)
    check_call(cell, call, input, hx, weights)
    backend = _dispatch.choose(call)
    if backend == "aten":
        return _run_aten(cell, input, batch_sizes, hx, weights, num_layers, directions, dropout, training)
    per_layer, finals = len(weights) // num_layers, []
    for index in range(num_layers):
        states, group = hx, weights
        if num_layers > 1:
            states = [h[index * directions : (index + 1) * directions] for h in hx]
            group = weights[index * per_layer : (index + 1) * per_layer]
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
    directions = 2 if bidirectional else 1
    check_weight_count(cell, weights, num_layers, directions)
    if hx is None:
        batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
        widths = (weights[1].size(1), weights[0].size(0) // cell.gates)
        hx = [input.new_zeros(num_layers * directions, batch, width) for width in widths[: cell.states]]
    elif isinstance(hx, Tensor):
        hx = [hx]
    if len(hx) != cell.states:
        raise RuntimeError(f"{name} expects {'two hidden states' if cell.states == 2 else 'one hidden state'}")
    output, hn = run(cell, input, list(hx), list(weights), num_layers, bidirectional, dropout, training, batch_sizes)
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
