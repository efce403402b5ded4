"""Backend ``aten``: torch's own kernels, called as ``torch.nn`` calls them.

A single step of a layer on the CPU runs on torch's kernels for cells where those for layers were measured slower: up to
ten times with oneDNN's LSTM, which brings the weights into a layout of its own first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import _VF, Tensor

from .registry import Cell

_LAYERS = {"LSTM": _VF.lstm, "GRU": _VF.gru, "RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu}
_STEPS = {"LSTM": _VF.lstm_cell, "GRU": _VF.gru_cell, "RNN_TANH": _VF.rnn_tanh_cell, "RNN_RELU": _VF.rnn_relu_cell}


def step(cell: Cell, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """One step of a cell: ``input`` (B, I) and ``states`` (B, H) to the states after it."""
    if cell.states > 1:
        return list(_STEPS[cell.mode](input, states, *weights))
    return [_STEPS[cell.mode](input, states[0], *weights)]


def _is_for_cells(cell: Cell, input: Tensor, hx: Sequence[Tensor]) -> bool:
    if not input.is_cpu or input.size(0) != 1 or input.size(1) == 0:
        return False
    if cell.mode != "LSTM":
        return torch.is_grad_enabled() or hx[0].size(-1) >= 512
    return input.size(1) < 32 and hx[0].size(-1) == hx[1].size(-1)  # torch's cells know no projection


def _step_of_stack(cell: Cell, input, hx, weights, layers, directions, dropout):
    input = input.squeeze(0)
    if layers * directions == 1:
        after = step(cell, input, [h.squeeze(0) for h in hx], weights)
        return after[0].unsqueeze(0), [h[None].clone() for h in after[:1]] + [c[None] for c in after[1:]]
    per_direction, after, states = len(weights) // (layers * directions), [], list(zip(*hx))
    for layer in range(layers):
        rows = range(layer * directions, (layer + 1) * directions)
        groups = [weights[row * per_direction : (row + 1) * per_direction] for row in rows]
        after += [step(cell, input, states[row], group) for row, group in zip(rows, groups)]
        input = torch.cat([after[row][0] for row in rows], 1) if directions > 1 else after[layer][0]
        if dropout and layer < layers - 1:
            input = torch.dropout(input, dropout, True)
    return input.unsqueeze(0), [torch.stack(state) for state in zip(*after)]


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
) -> tuple[Tensor, list[Tensor]]:
    """A stack of layers; arguments and results as of :func:`fastrnn._stack.run`."""
    if batch_sizes is None and _is_for_cells(cell, input, hx):
        return _step_of_stack(cell, input, hx, weights, layers, directions, dropout if training else 0.0)
    state = [h.contiguous() for h in hx] if cell.states > 1 else hx[0].contiguous()
    biases = len(weights) // (layers * directions) >= 4
    options = (weights, biases, layers, dropout, training, directions == 2)
    if batch_sizes is None:
        output, *hn = _LAYERS[cell.mode](input.contiguous(), state, *options, False)
    else:
        output, *hn = _LAYERS[cell.mode](input.contiguous(), batch_sizes, state, *options)
    return output, hn
