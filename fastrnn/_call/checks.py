"""Checks of tensors against each other, before anything is computed. Where torch has a check, its text is used."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._backends.dispatch import Call
from .._spec import W_HR
from ..registry import CELLS, Cell

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
"""What modules call the weights of a direction, by slot."""


def as_states(cell: Cell, name: str, hx) -> list[Tensor]:
    """``hx``, given to a module of class ``name``, as a list of the cell's states."""
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
            raise RuntimeError(f"{'lstm_cell' if name == cell.step else 'lstm'} expects two hidden states")
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
    if call.P and weights[W_HR] is None:
        raise RuntimeError(
            f"{_owner(cell, call)}: h has {call.P} features and c has {call.H}, but there is no projection weight"
        )
    shapes = _shapes(cell, call)
    device, dtype, tensors = input.device, input.dtype, (*hx, *weights)
    for t, shape in zip(tensors, shapes):
        if t is not None and (t.shape != shape or t.dtype is not dtype or t.device != device):
            raise _misfit(cell, call, input, tensors, shapes)


def check_heads(cell: Cell, call: Call, hx: Sequence[Tensor], weights: Sequence[Tensor | None], heads: int) -> None:
    """Raises RuntimeError where a state or a weight of a layer with ``heads``, not yet split, has another shape."""
    for index, (t, shape) in enumerate(zip((*hx, *weights), _shapes(cell, call, heads))):
        if t is not None and t.shape != shape:
            raise _wrong_shape(cell, call, index, t, shape)


def _shapes(cell: Cell, call: Call, heads: int = 1) -> list[tuple[int, ...]]:
    """Of the states, and then of the weights by slot."""
    rows, hidden, width, gates = call.layers * call.directions, call.H, call.P or call.H, cell.gates * call.H
    recurrent = (gates, width) if heads == 1 else (heads, gates // heads, width // heads)
    inner = [recurrent, (gates,), (gates,), (width, hidden), *cell.param_sizes(hidden)]
    shapes: list[tuple[int, ...]] = [(rows, call.B, width), *[(rows, call.B, hidden)] * (cell.states - 1)]
    features = call.I
    for _ in range(call.layers):
        shapes += [(gates, features), *inner] * call.directions
        features = call.directions * width
    return shapes


def _owner(cell: Cell, call: Call) -> str:
    name = cell.step if call.step else cell.layer
    return f"fastrnn.{name if call.step or cell.mode not in CELLS else name.lower()}"


def _wrong_shape(cell: Cell, call: Call, index: int, t: Tensor, shape: tuple[int, ...]) -> RuntimeError:
    """Of the state, or then the weight by slot, at an index; a weight goes by the name that modules give it."""
    what = f"state {index}"
    if index >= cell.states:
        names = *_NAMES, *cell.params
        row, slot = divmod(index - cell.states, len(names))
        layer, direction = divmod(row, call.directions)
        what = names[slot] + ("" if call.step else f"_l{layer}" + "_reverse" * direction)
    return RuntimeError(f"{_owner(cell, call)}: {what} must have shape {shape}, got {tuple(t.shape)}")


def _misfit(
    cell: Cell, call: Call, input: Tensor, tensors: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]]
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
            return _wrong_shape(cell, call, index, t, shape)
    raise AssertionError("all of them fit")
