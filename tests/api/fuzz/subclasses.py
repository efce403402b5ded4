"""Subclasses of Tensor as libraries write them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

SCALE = 1 / 64
"""Every value of the fuzzer is a multiple of this, so that int8 times it is exact."""


class Plain(Tensor):
    """With torch's own ``__torch_function__``."""


class Function(Tensor):
    """With a ``__torch_function__`` that looks at the calls and passes them on."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


class Disabled(Tensor):
    """Without ``__torch_function__``: results are plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Holder(Tensor):
    """Whose results are those of ``inner``, held again."""

    def __init__(self, inner: Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, _Holder) else t, (args, kwargs or {}))
        return tree_map(lambda t: cls(t) if isinstance(t, Tensor) else t, func(*args, **kwargs))


class Logged(_Holder):
    """Without storage."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )


class Stored(_Holder):
    """With a storage of its own that holds other values than the ones it stands for."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        return Tensor._make_subclass(cls, torch.full_like(inner.detach(), 0.75))


class Int8(Tensor):
    """As int8 weight-only quantization makes them: whatever is done with it is done with the dequantised values."""

    @staticmethod
    def __new__(cls, q: Tensor, dtype: torch.dtype):
        return Tensor._make_wrapper_subclass(cls, q.shape, dtype=dtype, device=q.device)

    def __init__(self, q: Tensor, dtype: torch.dtype):
        self.q = q

    @classmethod
    def of(cls, t: Tensor) -> Int8:
        return cls((t.detach() / SCALE).round().to(torch.int8), t.dtype)

    def dense(self) -> Tensor:
        return self.q.to(self.dtype) * SCALE

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].q, args[0].dtype)
        args, kwargs = tree_map(lambda t: t.dense() if isinstance(t, cls) else t, (args, kwargs or {}))
        return func(*args, **kwargs)
