"""The same layer with ordinary differentiable operations and no writes in place: slower, but it can be differentiated
any number of times, forward and backward, and transformed by ``torch.func``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..registry import CELLS
from .rows import row_counts, split_weights, upcast, walk


def _lstm(x: Tensor, h: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), h.chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (n + z * (state[0] - n),)


def _tanh(x: Tensor, h: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (torch.tanh(x + h),)


def _relu(x: Tensor, h: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (torch.relu(x + h),)


# (gates of the input, gates of the hidden state, state before) -> state after, by mode.
STEP = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}


def scan(
    cell: int,
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """One layer over a sequence; arguments and results as in :func:`layer_forward`, nothing saved."""
    dtype, step = x.dtype, STEP[tuple(CELLS)[cell]]
    (x, *hx), weights = upcast([x, *hx]), upcast(weights)
    counts = row_counts(x, batch_sizes)
    data = x.reshape(-1, x.size(-1))
    outputs, finals = [], []

    for d, group in enumerate(split_weights(weights, hx[0].size(0))):
        x_gates = F.linear(data, group.w_ih, group.b_ih).split(counts)
        states = tuple(s[d] for s in hx)  # all B rows; a step replaces those it has
        rows: list[Tensor] = [data] * len(counts)
        for t in walk(len(counts), reverse=d == 1):
            active = tuple(s[: counts[t]] for s in states)
            after = step(x_gates[t], F.linear(active[0], group.w_hh, group.b_hh), active)
            if group.w_hr is not None:
                after = (F.linear(after[0], group.w_hr), *after[1:])
            rows[t] = after[0]
            states = tuple(torch.cat([new, old[counts[t] :]]) for new, old in zip(after, states))
        outputs.append(torch.cat(rows))
        finals.append(states)

    output = torch.cat(outputs, -1)
    output = output.view(*x.shape[:-1], output.size(-1)).to(dtype)
    return output, [torch.stack(state).to(dtype) for state in zip(*finals)]
