"""One layer call as plain data, the same for every backend: the Python side of ``csrc/common/layer_spec.h``.

Every backend, the reference and ``torch.ops.fastrnn`` take a call in this form (:data:`SCHEMAS`). ``given``,
``weights`` and ``spec`` are lists in which every place has a meaning; what a call does not have is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .registry import Cell

SCHEMAS = {
    "layer_forward": "(Tensor x, Tensor?[] given, Tensor[] hx, Tensor?[] weights, SymInt[] spec, float[] scalars)"
    " -> (Tensor output, Tensor[] states, Tensor[] saved)",
    "layer_backward": "(Tensor?[] grads, Tensor x, Tensor?[] given, Tensor[] hx, Tensor?[] weights, Tensor[] results,"
    " SymInt[] spec, float[] scalars, bool[] needs) -> (Tensor grad_x, Tensor[] grad_hx, Tensor[] grad_weights)",
}

# For TorchScript's tracer, which knows no list of optional tensors: what is absent is a tensor without elements.
SCHEMAS["layer_forward.dense"] = SCHEMAS["layer_forward"].replace("Tensor?[]", "Tensor[]")

W_IH, W_HH, B_IH, B_HH, W_HR, FIRST_PARAM = range(6)
"""Slots of a direction's weights; the cell's own parameters come last."""

MOST_DIRECTIONS = 16
"""Of a layer's call, in which each head is one."""

EVERYTHING, STATES = 1, 2
"""As ``save``: keep all that backward reads; or keep the states, h before a projection among them, and let backward
compute the gates of all steps again. The latter on backend cuda; elsewhere the same as 1. 0 keeps nothing."""

_VERSION = 2
# By how many weights a direction has in torch's order, besides the cell's own: their places, by slot.
_PLACES = {2: (0, 1, None, None, None), 3: (0, 1, None, None, 2), 4: (0, 1, 2, 3, None), 5: (0, 1, 2, 3, 4)}
_PLACES_WITHOUT_W_HH = {1: (0, None, None, None, None), 3: (0, None, 1, 2, None)}


class LayerSpec(NamedTuple):
    """``cell`` is the cell's number. So many directions as ``forwards`` run forwards in time, those that follow
    backwards. ``all_states`` asks for every state but h after each step, beside the output. ``first_step`` is what step
    0 is in the sequence that this may be a part of."""

    version: int
    cell: int
    save: int
    forwards: int
    all_states: int
    first_step: int


CELL, SAVE, FORWARDS, ALL_STATES, FIRST_STEP = range(1, 6)
"""Where these stand in the numbers of a spec."""


def pack(cell: int, save: int, forwards: int = 1, all_states: bool = False, first_step: int = 0) -> tuple[int, ...]:
    """A :class:`LayerSpec` as the operators take it."""
    return (_VERSION, cell, save, forwards, 1 if all_states else 0, first_step)


def unpack(spec: Sequence[int]) -> LayerSpec:
    """The way back.

    Raises:
        RuntimeError: the numbers are of another version.
    """
    if len(spec) != len(LayerSpec._fields) or spec[0] != _VERSION:
        raise RuntimeError(f"fastrnn: spec must hold 6 numbers and begin with version {_VERSION}, got {list(spec)}")
    return LayerSpec(*spec)


def slots_of(cell: Cell, weights: Sequence[Tensor], rows: int) -> list[Tensor | None]:
    """Flat weights of ``rows`` layers and directions, by slot.

    ``weights`` has torch's order: for each ``w_ih, w_hh`` (which a cell may lack), then ``b_ih, b_hh`` or neither, then
    ``w_hr`` if there is a projection; and then what the cell has besides. This is the one place where that order is
    read.
    """
    each, own = len(weights) // rows, len(cell.params)
    if rows == 1 and each == 4 and not own:  # most layers, and a single step notices every microsecond
        return [*weights, None]
    places = (_PLACES if cell.recurrent else _PLACES_WITHOUT_W_HH)[each - own]
    slots = []
    for first in range(0, each * rows, each):
        slots += [None if place is None else weights[first + place] for place in places]
        if own:
            slots += weights[first + each - own : first + each]
    return slots


class Call(NamedTuple):
    """A call of a layer or a cell, as the choice of its backend sees it.

    ``mode`` is the cell's; ``T B I H P`` are time, batch, input, hidden and projection size (0: none); ``grad`` says
    that a gradient may be asked for, ``transformed`` that ``torch.func`` or forward-mode AD is looking on,
    ``extended`` that ``torch.nn`` does not have the cell, or what is asked for (``_call.extras``), and ``step`` that it
    is a cell's. ``index`` is the device's among those of its type. ``foreign`` says that the kernels must not read one
    of its tensors (``_kernels.gate``), ``masked`` that h passes a mask on its way to the recurrent weights, ``zoned``
    that there is zoneout. Each head is a direction.
    """

    mode: str
    device: str
    dtype: torch.dtype
    T: int
    B: int
    I: int
    H: int
    P: int = 0
    layers: int = 1
    directions: int = 1
    packed: bool = False
    grad: bool = False
    transformed: bool = False
    extended: bool = False
    step: bool = False
    index: int = 0
    foreign: bool = False
    masked: bool = False
    zoned: bool = False
