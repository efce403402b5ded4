"""Checks of tensors against each other, before anything is computed. Where torch has a check, its text is used."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .registry import Cell


def check_same(input: Tensor, tensors: Sequence[Tensor], kind: str) -> None:
    """Raises RuntimeError where a tensor is not on the input's device or not of its type."""
    device, dtype = input.device, input.dtype
    for t in tensors:
        if t.device != device:
            raise RuntimeError(
                f"Input and {kind} tensors are not at the same device, found input tensor at {device} and "
                f"{kind} tensor at {t.device}"
            )
        if t.dtype != dtype:
            raise RuntimeError(
                f"Input and {kind} tensors are not the same dtype, found input tensor with {dtype} and "
                f"{kind} tensor with {t.dtype}"
            )


def layer_weights(cell: Cell, weights: Sequence[Tensor], layers: int, directions: int) -> list[Sequence[Tensor]]:
    """Groups a flat weight list by layer.

    Raises:
        ValueError: the count fits no layout of ``layers`` layers and ``directions`` directions.
    """
    count, rest = divmod(len(weights), layers * directions)
    counts = (2, 3, 4, 5) if cell.mode == "LSTM" else (2, 4)
    if rest or count not in counts:
        raise ValueError(
            f"fastrnn.{cell.layer.lower()}: expected {' or '.join(map(str, counts))} weights for each of {layers} "
            f"layer(s) and {directions} direction(s), got {len(weights)} in all"
        )
    step = count * directions
    return [weights[i * step : (i + 1) * step] for i in range(layers)]


def check_shapes(
    cell: Cell,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    groups: list[Sequence[Tensor]],
    directions: int,
) -> None:
    """Raises RuntimeError where a state or a weight does not fit the others; ``groups`` are the weights by layer."""
    name = f"fastrnn.{cell.layer.lower()}"
    if len(hx) != cell.states:
        raise RuntimeError(f"{name} expects {'two hidden states' if cell.states == 2 else 'one hidden state'}")
    batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
    width, hidden = hx[0].size(-1), hx[-1].size(-1)
    for position, (state, features) in enumerate(zip(hx, (width, hidden))):
        expected = (len(groups) * directions, batch, features)
        if state.shape != expected:
            raise RuntimeError(f"{name}: state {position} must have shape {expected}, got {tuple(state.shape)}")
    count, gates = len(groups[0]) // directions, cell.gates * hidden
    if width != hidden and not count % 2:
        raise RuntimeError(f"{name}: h has {width} features and c has {hidden}, but there is no projection weight")
    for index, group in enumerate(groups):
        features = directions * width if index else input.size(-1)
        shapes = [(gates, features), (gates, width)]
        shapes += [(gates,), (gates,)] if count >= 4 else []
        shapes += [(width, hidden)] if count % 2 else []
        for position, (weight, expected) in enumerate(zip(group, shapes * directions)):
            if weight.shape != expected:
                raise RuntimeError(
                    f"{name}: weight {position} of layer {index} must have shape {expected}, got {tuple(weight.shape)}"
                )
