"""Which tensors the kernels, and the hand-written passes of the reference, may be given.

They take memory as it is. A tensor whose values are not simply there (sparse, quantised, a lazy conjugate or negative,
a wrapper subclass, a functorch wrapper) or whose class overrides functions goes to operators of torch instead, which
know what to do with it. The bindings check again before they take a pointer (``csrc/bindings/gate.h``).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import _ext
from ._ops import is_dynamo_compiling, is_watched

_CLASSES = frozenset({Tensor, torch.nn.Parameter})
_BACKENDS = 16  # the lowest bits of a key set name devices


def _ordinary_keys() -> int:
    """What the key set of an ordinary tensor may have besides its device; autocast has a key for every device."""
    names = ["Dense", "ADInplaceOrView", "AutogradFunctionality"]
    names += [name for name in dir(torch._C.DispatchKey) if name.startswith("Autocast")]
    keys = [torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)).raw_repr() for name in names]
    return functools.reduce(int.__or__, keys) >> _BACKENDS


_ORDINARY = _ordinary_keys()


def has_ordinary_keys(tensors: tuple) -> bool:
    """``_C.are_plain`` where there is no extension."""
    return all(
        type(t) in _CLASSES and not (torch._C._dispatch_keys(t).raw_repr() >> _BACKENDS) & ~_ORDINARY for t in tensors
    )


_are_plain = has_ordinary_keys if _ext.load() is None else _ext.load().are_plain


def is_foreign(tensors: tuple) -> bool:
    """Whether one of ``tensors`` must not be read as it is.

    Where torch follows a call by its operators it unwraps tensors itself; a graph is made by the classes.

    Raises:
        TypeError: one is no tensor.
    """
    if is_dynamo_compiling():
        return any(type(t) not in _CLASSES for t in tensors)
    if _are_plain(tensors):
        return False
    for t in tensors:
        if not isinstance(t, Tensor):
            raise TypeError(f"fastrnn: expected input, states and weights to be tensors, got {type(t).__name__}")
    return not is_watched()
