"""Arguments of the layer operations (fastrnn/_spec.py), from what a test has at hand."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastrnn._spec import pack, slots_of
from fastrnn.registry import BY_NUMBER


def forward_arguments(
    cell: int,
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    save: int = 1,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    all_states: bool = False,
    mask: Tensor | None = None,
    seeds: Tensor | None = None,
    rates: tuple[float, ...] = (),
    first_step: int = 0,
) -> tuple:
    """``weights`` are flat, in torch's order."""
    slots = slots_of(BY_NUMBER[cell], weights, hx[0].size(0)) if cell < len(BY_NUMBER) else list(weights)
    spec = pack(cell, save, reverse, all_states, first_step)
    return x, [batch_sizes, lengths, resets, mask, seeds], list(hx), slots, spec, list(rates)


def backward_arguments(
    forward: tuple, grads: Sequence[Tensor | None], output: Tensor, saved: Sequence[Tensor], needs=(True, True, True)
) -> tuple:
    """Of the backward of a call with the arguments ``forward``, which gave ``output`` and ``saved``."""
    x, given, hx, weights, spec, scalars = forward
    return list(grads), x, given, hx, weights, [output, *saved], spec, scalars, list(needs)


def flat(grads) -> list[Tensor]:
    """All gradients that there are, in one list; those of weights in torch's order."""
    grad_x, grad_hx, grad_weights = grads
    found = [grad_x, *(grad_hx or []), *(grad_weights or [])]
    return [g for g in found if g is not None and (g.numel() or g.dim() > 1)]
