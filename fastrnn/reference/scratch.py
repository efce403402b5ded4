"""Memory that a backward pass on a CPU leaves to the next one.

The allocator gives large pieces back to the system, and entering a page anew takes longer than computing what is in it.
"""

from __future__ import annotations

import functools
import math
import os

import torch
from torch import Tensor

_LINE = 16  # elements: every tensor begins on a cache line of its own


@functools.cache
def _limit() -> int:
    """``FASTRNN_CPU_CACHE_MB`` in bytes, or 256 MiB; as for the CPU kernels."""
    text = os.environ.get("FASTRNN_CPU_CACHE_MB") or "256"
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise ValueError(f"FASTRNN_CPU_CACHE_MB: expected a whole number of MiB, got {text!r}")
    return int(text) << 20


_kept: dict[torch.dtype, Tensor] = {}


class Scratch:
    """Tensors like ``like`` for use within a ``with`` block: what they hold is overwritten some time after it.

    An open block has its memory to itself, whichever thread opens another meanwhile.
    """

    def __init__(self, like: Tensor) -> None:
        self._like, self._asked = like, 0
        self._memory: Tensor | None = None
        self._keeps = like.device.type == "cpu" and type(like) is Tensor

    def __enter__(self) -> Scratch:
        if self._keeps:
            self._most = _limit() // self._like.element_size()
            self._memory = _kept.pop(self._like.dtype, None)
        return self

    def empty(self, *sizes: int) -> Tensor:
        """An uninitialised tensor."""
        first, count = self._asked, math.prod(sizes)
        self._asked += -(-count // _LINE) * _LINE
        if self._memory is None or first + count > self._memory.numel():
            return self._like.new_empty(sizes)
        return self._memory[first : first + count].view(sizes)

    def __exit__(self, *_: object) -> None:
        if not self._keeps:
            return
        count, memory = min(self._asked, self._most), self._memory
        if memory is None or memory.numel() < count:
            with torch.inference_mode(False):  # or blocks outside that mode could not write to it
                memory = self._like.new_empty(count)  # costs nothing until it is entered
        _kept[self._like.dtype] = memory
