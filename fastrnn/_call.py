"""What the choice of a backend depends on."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Call(NamedTuple):
    """A call of a layer or a cell, as the choice of its backend sees it.

    ``mode`` is the cell's; ``T B I H P`` are time, batch, input, hidden and projection size (0: none); ``grad`` says
    that a gradient may be asked for, ``transformed`` that ``torch.func`` or forward-mode AD is looking on,
    ``extended`` that something is asked for which ``torch.nn`` does not have (``_extras``), and ``step`` that it is a
    cell's. ``index`` is the device's among those of its type. ``foreign`` says that the kernels must not read one of
    its tensors (``_gate``).
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
