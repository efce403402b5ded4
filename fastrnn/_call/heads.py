"""Heads: groups of units that share the input and know nothing of each other's states (Beck et al. 2024).

A layer with n heads is computed as one with n times the directions, each of H / n units, so no kernel knows of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..registry import Cell


def split_states(states: Sequence[Tensor], heads: int) -> list[Tensor]:
    """(rows, B, H), rows being layers and directions, as (rows * heads, B, H / heads)."""
    return [torch.stack(h.chunk(heads, 2), 1).flatten(0, 1) for h in states]


def join_states(states: Sequence[Tensor], heads: int) -> list[Tensor]:
    """The way back."""
    return [torch.cat(h.unflatten(0, (-1, heads)).unbind(1), 2) for h in states]


def split_weights(cell: Cell, weights: Sequence[Tensor], rows: int, heads: int) -> list[Tensor]:
    """Flat weights in torch's order, those of each head after another in the place of each direction's.

    ``w_hh`` is (heads, G * H / heads, H / heads).
    """
    each, own = len(weights) // rows, len(cell.params)
    found: list[Tensor] = []
    for first in range(0, len(weights), each):
        w_ih, w_hh, *rest = weights[first : first + each]
        biases, params = rest[: len(rest) - own], rest[len(rest) - own :]
        parts = [_by_head(cell, w_ih, heads), w_hh.unbind()]
        parts += [_by_head(cell, bias, heads) for bias in biases] + [param.chunk(heads) for param in params]
        found += [part for head in zip(*parts) for part in head]
    return found


def _by_head(cell: Cell, weight: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(G * H, ...), gate after gate, as (G * H / heads, ...) for each head."""
    return weight.unflatten(0, (cell.gates, heads, -1)).transpose(0, 1).flatten(1, 2).unbind()
