"""Backend ``aten``: torch's own kernels, called as ``torch.nn`` calls them.

A single step of a layer on the CPU runs on torch's kernels for cells where those for layers were measured slower: up to
ten times with oneDNN's LSTM, which brings the weights into a layout of its own first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import _VF, Tensor

from .._kernels.gate import with_strides
from .._spec import Call
from ..registry import Cell

_LAYERS = {"LSTM": _VF.lstm, "GRU": _VF.gru, "RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu}
_STEPS = {"LSTM": _VF.lstm_cell, "GRU": _VF.gru_cell, "RNN_TANH": _VF.rnn_tanh_cell, "RNN_RELU": _VF.rnn_relu_cell}


def step(cell: Cell, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """One step of a cell: ``input`` (B, I) and ``states`` (B, H) to the states after it."""
    if cell.states > 1:
        return list(_STEPS[cell.mode](input, states, *weights))
    return [_STEPS[cell.mode](input, states[0], *weights)]


def is_step(call: Call) -> bool:
    """Whether torch's cells compute the call."""
    if call.mode not in _STEPS or call.T != 1 or call.packed or call.device != "cpu" or call.B == 0:
        return False
    return call.mode != "LSTM" or (call.B < 32 and not call.P)  # torch's cells know no projection


def _step_of_layer(cell: Cell, input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]):
    h, *rest = step(cell, input.squeeze(0), [state.squeeze(0) for state in hx], weights)
    output = h.unsqueeze(0)
    return output, [output.clone(), *[state.unsqueeze(0) for state in rest]]


def run_step(
    cell: Cell,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    layers: int,
    directions: int,
    dropout: float,
    training: bool,
) -> tuple[Tensor, list[Tensor]]:
    """As :func:`run`, for a call of which :func:`is_step` holds."""
    dropout = dropout if training else 0.0
    if layers * directions == 1:
        return _step_of_layer(cell, input, hx, weights)
    input = input.squeeze(0)
    per_direction, after, states = len(weights) // (layers * directions), [], list(zip(*hx))
    for layer in range(layers):
        rows = range(layer * directions, (layer + 1) * directions)
        groups = [weights[row * per_direction : (row + 1) * per_direction] for row in rows]
        after += [step(cell, input, states[row], group) for row, group in zip(rows, groups)]
        input = torch.cat([after[row][0] for row in rows], 1) if directions > 1 else after[layer][0]
        if dropout and layer < layers - 1:
            input = torch.dropout(input, dropout, True)
    return input.unsqueeze(0), [torch.stack(state) for state in zip(*after)]


def _with_zeros(tensor: Tensor) -> Tensor:
    """The tensor, with memory where it is autograd's zero without any: oneDNN would read past its end."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not tensor._is_zerotensor():
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device).add(tensor)


def run(
    cell: Cell,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    layers: int,
    directions: int,
    dropout: float,
    training: bool,
    foreign: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """A stack of layers; arguments and results as of :func:`fastrnn._call.stack.run`, ``foreign`` as of a call."""
    if foreign:  # such a tensor may know no strides
        input, *tensors = map(_with_zeros, (input, *hx, *weights))
        hx, weights = tensors[: len(hx)], tensors[len(hx) :]
        if input.layout != torch.strided:  # zeros made like it are sparse
            hx = [with_strides(h) for h in hx]
    else:
        input, hx = input.contiguous(), [h.contiguous() for h in hx]
    state = tuple(hx) if cell.states > 1 else hx[0]  # by the class of this torch's overrides tell packed calls
    biases = len(weights) // (layers * directions) >= 4
    options = (weights, biases, layers, dropout, training, directions == 2)
    if batch_sizes is None:
        output, *hn = _LAYERS[cell.mode](input, state, *options, False)
    else:
        output, *hn = _LAYERS[cell.mode](input, batch_sizes, state, *options)
    return output, hn
