"""Checks of tensors against each other, before anything is computed. Where torch has a check, its text is used."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._backends.dispatch import Call
from .._spec import W_HR
from ..registry import CELLS, Cell


def as_states(cell: Cell, name: str, function: str, hx) -> list[Tensor]:
    """``hx``, given to a module of class ``name`` for torch's ``function``, as a list of the cell's states."""
    if cell.states == 1:
        if not isinstance(hx, Tensor):
            raise TypeError(f"{name}: expected hx to be a tensor, got {type(hx).__name__}")
        return [hx]
    states = list(hx) if isinstance(hx, (tuple, list)) else []  # nothing else has an order
    for state in states:
        if not isinstance(state, Tensor):
            got = ", ".join(type(part).__name__ for part in states)
            raise TypeError(f"{name}: expected hx to be a tuple of {cell.states} tensors, got ({got})")
    if len(states) == cell.states:
        return states
    if isinstance(hx, (tuple, list)):
        if cell.mode in CELLS:
            raise RuntimeError(f"{function} expects two hidden states")
        raise RuntimeError(f"{name}: expected hx to be a tuple of {cell.states} tensors, got {len(states)}")
    raise TypeError(f"{name}: expected hx to be a tuple of {cell.states} tensors, got {type(hx).__name__}")


def check_weight_count(cell: Cell, weights: Sequence[Tensor], layers: int, directions: int) -> None:
    """Raises ValueError where the count fits no layout of ``layers`` layers and ``directions`` directions."""
    count, rest = divmod(len(weights), layers * directions)
    counts = [n + len(cell.params) for n in ((2, 3, 4, 5) if cell.projects else (2, 4))]
    if rest or count not in counts:
        raise ValueError(
            f"fastrnn.{cell.layer.lower()}: expected {' or '.join(map(str, counts))} weights for each of {layers} "
            f"layer(s) and {directions} direction(s), got {len(weights)} in all"
        )


def check_call(cell: Cell, call: Call, input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor | None]) -> None:
    """Raises RuntimeError where there is no time step, or a state or a weight does not fit the input.

    There are as many states as the cell has; ``weights`` are by slot.
    """
    if call.T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    rows, hidden, width, gates = call.layers * call.directions, call.H, call.P or call.H, cell.gates * call.H
    if call.P and weights[W_HR] is None:
        name = f"fastrnn.{cell.layer.lower()}"
        raise RuntimeError(f"{name}: h has {width} features and c has {hidden}, but there is no projection weight")
    inner = [(gates, width), (gates,), (gates,), (width, hidden), *cell.param_sizes(hidden)]
    shapes = [(rows, call.B, width), *[(rows, call.B, hidden)] * (cell.states - 1)]
    features = call.I
    for _ in range(call.layers):
        shapes += [(gates, features), *inner] * call.directions
        features = call.directions * width

    device, dtype, tensors = input.device, input.dtype, (*hx, *weights)
    for t, shape in zip(tensors, shapes):
        if t is not None and (t.shape != shape or t.dtype is not dtype or t.device != device):
            raise _misfit(cell, input, tensors, shapes, len(weights) // call.layers)


def _misfit(
    cell: Cell, input: Tensor, tensors: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]], per_layer: int
) -> RuntimeError:
    """What is wrong with the first of the states and then weights that does not fit."""
    for index, (t, shape) in enumerate(zip(tensors, shapes)):
        if t is None:
            continue
        kind = "hidden" if index < cell.states else "parameter"
        if t.device != input.device:
            return RuntimeError(
                f"Input and {kind} tensors are not at the same device, found input tensor at {input.device} and "
                f"{kind} tensor at {t.device}"
            )
        if t.dtype != input.dtype:
            return RuntimeError(
                f"Input and {kind} tensors are not the same dtype, found input tensor with {input.dtype} and "
                f"{kind} tensor with {t.dtype}"
            )
        if t.shape != shape:
            break
    what = f"state {index}"
    if kind == "parameter":
        layer, slot = divmod(index - cell.states, per_layer)
        first = index - slot
        position = sum(t is not None for t in tensors[first:index])
        what = f"weight {position} of layer {layer}"
    return RuntimeError(f"fastrnn.{cell.layer.lower()}: {what} must have shape {shape}, got {tuple(t.shape)}")
