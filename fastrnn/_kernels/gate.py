"""Which tensors the kernels, and the hand-written passes of the reference, may be given.

They take memory as it is. A tensor whose values are not simply there (sparse, quantised, a lazy conjugate or negative,
a wrapper subclass, a functorch wrapper) or whose class overrides functions goes to operators of torch instead, which
know what to do with it. The bindings check again before they take a pointer (``csrc/bindings/gate.h``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from . import ext
from .ops import is_dynamo_compiling, is_watched

_CLASSES = frozenset({Tensor, torch.nn.Parameter})
_BACKENDS = 16  # the lowest bits of a key set name devices


def _ordinary_keys() -> int:
    """What the key set of an ordinary tensor may have besides its device; autocast has a key for every device."""
    names = ["Dense", "ADInplaceOrView", "AutogradFunctionality"]
    names += [name for name in dir(torch._C.DispatchKey) if name.startswith("Autocast")]
    keys = [torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)).raw_repr() for name in names]
    return functools.reduce(int.__or__, keys) >> _BACKENDS


_ORDINARY = _ordinary_keys()


def has_ordinary_keys(tensors: tuple, optional: bool = False) -> bool:
    """``_C.are_plain`` where there is no extension."""
    return all(
        (optional and t is None)
        or (type(t) in _CLASSES and not (torch._C._dispatch_keys(t).raw_repr() >> _BACKENDS) & ~_ORDINARY)
        for t in tensors
    )


_are_plain = has_ordinary_keys if ext.load() is None else ext.load().are_plain


def is_foreign(tensors: tuple, optional: bool = False) -> bool:
    """Whether one of ``tensors`` must not be read as it is; some may be None where ``optional``.

    Where torch follows a call by its operators it unwraps tensors itself, but finds no kernel for sparse ones; a graph
    is made by the classes.

    Raises:
        TypeError: one is no tensor.
    """
    if is_dynamo_compiling():
        return any(type(t) not in _CLASSES and not (optional and t is None) for t in tensors)
    if _are_plain(tensors, optional):
        return False
    for t in tensors:
        if not isinstance(t, Tensor) and not (optional and t is None):
            raise TypeError(f"fastrnn: expected input, states and weights to be tensors, got {type(t).__name__}")
    return not is_watched() or any(t is not None and t.layout not in (torch.strided, torch.jagged) for t in tensors)


def with_strides(tensor: Tensor) -> Tensor:
    """The tensor, dense where it is sparse."""
    if tensor.layout in (torch.strided, torch.jagged):
        return tensor
    if tensor.is_mkldnn:
        return tensor.to_dense()
    # Its gradient is dense as torch.nn's is, which that of to_dense is not.
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device).add(tensor)


def ordinary(tensor: Tensor | None) -> Tensor | None:
    """The tensor, copied where it was made in inference mode: autograd does not save such tensors."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def for_scan(input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, list, list]:
    """The tensors of a foreign call as :func:`fastrnn.reference.scan` takes them.

    It takes slices of the states. It widens 16-bit weights, and autograd cannot narrow the gradient of a sparse one.
    Views with the negative bit have no tangent as torch makes them in forward mode.

    Raises:
        RuntimeError: fake tensors stand beside others, of which torch's operators say what no call raises; or an
            ordinary tensor has no memory, which they would read.
    """
    if not all(_are_plain((t,)) for t in (input, *hx, *weights) if has_ordinary_keys((t,))):
        raise RuntimeError(
            "fastrnn: expected tensors with memory, got one whose .data was set to a wrapper without any"
        )
    fake = [is_fake(t) for t in (input, *hx, *weights)]
    if any(fake) and not all(fake):
        raise RuntimeError("fastrnn: expected input, states and weights to be all fake tensors or none, got both")
    if weights[0].dtype in (torch.bfloat16, torch.float16):
        weights = [with_strides(w) if w.dim() == 2 else w for w in weights]
    input, *tensors = (t.resolve_neg() if t.is_neg() else t for t in (input, *map(with_strides, hx), *weights))
    if torch.is_grad_enabled():
        input, *tensors = map(ordinary, (input, *tensors))
    return input, tensors[: len(hx)], tensors[len(hx) :]
