"""Kinds of tensors: other ways to write down the same values, and arguments that are no dense tensor at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

from .subclasses import SCALE, Disabled, Function, Int8, Logged, Plain, Stored


def same(t: Tensor) -> Tensor:
    return t


@dataclass(frozen=True)
class Kind:
    """``make`` writes a tensor down in this kind; ``meaning`` does to float64 what the kind does to values.

    ``recorded`` says that autograd follows ``make``; otherwise what it makes is the leaf. ``meaning`` None: the values
    mean nothing that could be computed.
    """

    make: Callable[[Tensor], Any]
    meaning: Callable[[Tensor], Tensor] | None = same
    recorded: bool = False


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else _sliced(t)


def _sliced(t: Tensor) -> Tensor:
    return torch.stack((t, torch.ones_like(t)), -1)[..., 0]


def _offset(t: Tensor) -> Tensor:
    return torch.cat((t.new_ones(1), t.flatten()))[1:].view(t.shape)


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape) if t.dim() else t


def _broadcast(t: Tensor) -> Tensor:
    return t[..., :1].expand(t.shape) if t.dim() else t


def _row_for_all(t: Tensor) -> Tensor:
    return t[:, :1].expand(t.shape) if t.dim() > 1 else t


def _channels_last(t: Tensor) -> Tensor:
    """Dense, but not in the order of its dimensions."""
    return t.permute(*range(1, t.dim()), 0).contiguous().permute(-1, *range(t.dim() - 1)) if t.dim() else t


def _negative(t: Tensor) -> Tensor:
    return torch._neg_view(-t) if t.dtype != torch.bool else t


def _imaginary(t: Tensor) -> Tensor:
    """The imaginary part of a conjugate: a strided view with the negative bit."""
    if t.dtype not in (torch.float32, torch.float64):
        return _negative(t)
    return torch.complex(torch.zeros_like(t), -t).conj().imag


def _conjugate(t: Tensor) -> Tensor:
    return t.conj().resolve_conj().conj()


def _inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def _batched(t: Tensor) -> Tensor:
    """What leaks from a finished vmap."""
    kept = []
    torch.func.vmap(lambda row: kept.append(row) or row)(torch.stack((t, t)))
    return kept[0]


def _tracked(t: Tensor) -> Tensor:
    """What leaks from a finished torch.func.grad."""
    kept = []
    torch.func.grad(lambda x: kept.append(x) or x.abs().sum())(t)
    return kept[0]


def _quantised(t: Tensor) -> Tensor:
    return torch.quantize_per_tensor(t.float(), SCALE, 0, torch.qint8)


def _cast(dtype: torch.dtype, meaning=None) -> Kind:
    return Kind(lambda t: t.detach().to(dtype), meaning)


def _mapped(f) -> Kind:
    return Kind(lambda t: f(t.detach()))


LAYOUTS = {
    "transposed": Kind(_transposed, recorded=True),
    "sliced": Kind(_sliced, recorded=True),
    "offset": Kind(_offset, recorded=True),
    "expanded": Kind(_expanded, _expanded, recorded=True),
    "broadcast": Kind(_broadcast, _broadcast, recorded=True),
    "row-for-all": Kind(_row_for_all, _row_for_all, recorded=True),
    "permuted": Kind(_channels_last, recorded=True),
    "computed": Kind(lambda t: t.clone(), recorded=True),
}
BITS = {
    "negative": Kind(_negative, recorded=True),
    "imaginary": Kind(_imaginary, recorded=True),
    "conjugate": Kind(_conjugate, recorded=True),
}
SUBCLASSES = {
    "plain-subclass": _mapped(lambda t: t.as_subclass(Plain)),
    "function-subclass": _mapped(lambda t: t.as_subclass(Function)),
    "disabled-subclass": _mapped(lambda t: t.as_subclass(Disabled)),
    "logged": _mapped(Logged),
    "stored": _mapped(Stored),
    "int8": _mapped(Int8.of),
    "Parameter": _mapped(lambda t: nn.Parameter(t, requires_grad=t.is_floating_point() or t.is_complex())),
    "Buffer": _mapped(nn.Buffer),
}
STRANGE = {
    "inference": _mapped(_inference),
    "batched": _mapped(_batched),
    "tracked": _mapped(_tracked),
    "coo": _mapped(lambda t: t.to_sparse()),
    "csr": _mapped(lambda t: t.to_sparse_csr()),
    "mkldnn": _mapped(lambda t: t.to_mkldnn()),
    "meta": _mapped(lambda t: t.to("meta")),
    "fake": _mapped(lambda t: FakeTensorMode().from_tensor(t)),
    "quantised": _mapped(_quantised),
    "functional": _mapped(torch._to_functional_tensor),
    "zero-tensor": Kind(lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype), lambda t: t * 0),
    "nested": _mapped(lambda t: torch.nested.nested_tensor(list(t.unbind()))),
    "jagged": _mapped(lambda t: torch.nested.nested_tensor(list(t.unbind()), layout=torch.jagged)),
}
TYPES = {
    "float64": _cast(torch.float64, same),
    "bfloat16": _cast(torch.bfloat16, same),
    "float16": _cast(torch.float16, same),
    "complex64": _cast(torch.complex64, same),
    "int32": _cast(torch.int32),
    "int64": _cast(torch.int64),
    "bool": _cast(torch.bool),
    "float8_e4m3fn": _cast(torch.float8_e4m3fn, lambda t: t.to(torch.float8_e4m3fn).to(t.dtype)),
}
SIZES = {
    "one-dimension-more": Kind(lambda t: t.unsqueeze(0), None, recorded=True),
    "one-dimension-less": Kind(lambda t: t[0] if t.dim() and t.size(0) else t.sum(), None, recorded=True),
    "scalar": Kind(lambda t: t.sum(), None, recorded=True),
    "no-rows": Kind(lambda t: t[:0], None, recorded=True),
    "no-columns": Kind(lambda t: t[..., :0], None, recorded=True),
    "longer": Kind(lambda t: torch.cat((t, t)), None, recorded=True),
    "wider": Kind(lambda t: torch.cat((t, t), -1), None, recorded=True),
    "other-batch": Kind(lambda t: torch.cat((t, t), max(-2, -t.dim())), None, recorded=True),
    "axes-exchanged": Kind(lambda t: t.mT if t.dim() > 1 else t[:, None], None, recorded=True),
    "one-row": Kind(lambda t: t[:, :1] if t.dim() > 1 else t[:1], None, recorded=True),
}
OBJECTS = {
    "numpy": Kind(lambda t: t.detach().numpy(), None),
    "list": Kind(lambda t: t.tolist(), None),
    "number": Kind(lambda t: 1.0, None),
    "None": Kind(lambda t: None, None),
    "string": Kind(lambda t: "h", None),
    "False": Kind(lambda t: False, None),
    "shape": Kind(lambda t: t.shape, None),
    "class": Kind(lambda t: Tensor, None),
}
DENSE = LAYOUTS | BITS | SUBCLASSES
KINDS = DENSE | STRANGE | TYPES | SIZES | OBJECTS


def dense(value: Tensor) -> Tensor | None:
    """The values as a plain tensor; None where there are none."""
    value = value.detach()
    if isinstance(value, (Logged, Stored)):
        return dense(value.inner)
    if isinstance(value, Int8):
        return value.dense()
    if value.is_meta or isinstance(value, FakeTensor):
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return dense(torch._C._functorch.get_unwrapped(value))
    if torch._is_functional_tensor(value):
        return dense(torch._from_functional_tensor(value))
    if value.is_nested:
        return torch.stack(value.unbind())
    if value.is_quantized:
        return value.dequantize()
    if value.layout != torch.strided:
        return value.to_dense()
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor).resolve_conj().resolve_neg().clone()
