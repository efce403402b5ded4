"""The compiled layer operations, by backend, and the same operations registered with torch.

Every backend offers the same pair of functions, with the arguments and results of
:func:`fastrnn.reference.layer_forward` and :func:`~fastrnn.reference.layer_backward`:

    forward(cell, x, batch_sizes, hx, weights, save) -> (output, final_states, saved)
    backward(cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs)
        -> (grad_x, grad_hx, grad_weights)

In eager mode they are called directly. Graphs (``torch.compile``, ``torch.export``) hold ``torch.ops.fastrnn.*``, which
run the kernels of the tensors' device; gradients that were not asked for are empty tensors there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _ext, reference
from .registry import CELLS

_SCHEMAS = {
    "layer_forward": "(int cell, Tensor x, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, bool save)"
    " -> (Tensor, Tensor[], Tensor[])",
    "layer_backward": "(int cell, Tensor grad_output, Tensor[] grad_hn, Tensor x, Tensor? batch_sizes, Tensor[] hx,"
    " Tensor[] weights, Tensor output, Tensor[] saved, bool[] needs) -> (Tensor, Tensor[], Tensor[])",
}
_CELLS = tuple(CELLS.values())


class LayerOps(NamedTuple):
    """The forward and backward of one backend."""

    forward: Callable
    backward: Callable


def missing(backend: str) -> str | None:
    """Why this backend's operations cannot be called, or None if they can."""
    extension = _ext.load()
    if extension is None:
        return f"the compiled extension is missing: {_ext.reason}"
    if not hasattr(extension, backend):
        return f"the extension was built without {backend.upper()} kernels: {_ext.why_no_cuda()}"
    if backend == "cuda" and torch.cuda.is_available():
        return _ext.why_not_device(torch.cuda.get_device_capability(), _ext.build.cuda_archs)
    return None


def layer_ops(backend: str) -> LayerOps:
    """The operations of ``backend``: ``reference``, ``cpu`` or ``cuda``."""
    if backend == "reference":
        return LayerOps(reference.layer_forward, reference.layer_backward)
    module = getattr(_ext.load(), backend)
    return LayerOps(module.layer_forward, module.layer_backward)


def describe_kernels(like: Tensor, mode: str, B: int, H: int, R: int, D: int) -> str:
    """Which CUDA kernels serve a layer of this size in the dtype and on the device of ``like``, a line a pass."""
    return _ext.load().cuda.describe_plan(like, CELLS[mode].index, B, H, R, D)


def _forward(backend: str) -> Callable:
    def forward(cell, x, batch_sizes, hx, weights, save):
        return layer_ops(backend).forward(cell, x, batch_sizes, hx, weights, save)

    return forward


def _backward(backend: str) -> Callable:
    def backward(cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs):
        grad_x, grad_hx, grad_weights = layer_ops(backend).backward(
            cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs
        )
        return (
            grad_x if needs[0] else x.new_empty(0),
            grad_hx if needs[1] else [x.new_empty(0) for _ in hx],
            grad_weights if needs[2] else [x.new_empty(0) for _ in weights],
        )

    return backward


def _saved_shapes(cell: int, x: Tensor, hx: Sequence[Tensor]) -> list[tuple[tuple, torch.dtype]]:
    """Shapes and types of what a compiled forward saves: gates, then c, then h before the projection."""
    D, R, H = hx[0].size(0), hx[0].size(2), hx[-1].size(2)
    rows = x.size(0) if x.dim() == 2 else x.size(0) * x.size(1)
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = _CELLS[cell].saved
    saved = [((D, rows, values, H), x.dtype)] if values else []
    if _CELLS[cell].states > 1:
        saved.append(((D, rows, H), accumulate))
    if R != H:
        saved.append(((D, rows, H), x.dtype))
    return saved


def _fake_forward(cell, x, batch_sizes, hx, weights, save):
    output = x.new_empty(*x.shape[:-1], hx[0].size(0) * hx[0].size(2))
    saved = [x.new_empty(shape, dtype=dtype) for shape, dtype in _saved_shapes(cell, x, hx)] if save else []
    return output, [h.new_empty(h.shape) for h in hx], saved


def _fake_backward(cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs):
    return (
        x.new_empty(x.shape if needs[0] else 0),
        [h.new_empty(h.shape if needs[1] else 0) for h in hx],
        [w.new_empty(w.shape if needs[2] else 0) for w in weights],
    )


def _register() -> torch.library.Library:
    library = torch.library.Library("fastrnn", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
    for backend in ("cpu", "cuda"):
        if _ext.reason is None and missing(backend) is None:
            library.impl("layer_forward", _forward(backend), backend.upper())
            library.impl("layer_backward", _backward(backend), backend.upper())
    torch.library.register_fake("fastrnn::layer_forward", _fake_forward, lib=library)
    torch.library.register_fake("fastrnn::layer_backward", _fake_backward, lib=library)
    return library


def _opt_in(extension, tier: str | None) -> None:
    """Lets the CUDA kernels that run a whole sequence serve calls; see override_tier in csrc/bindings/cuda_tier.h."""
    if tier and hasattr(extension, "cuda"):
        extension.cuda.override_tier(tier)


_opt_in(_ext.load(), os.environ.get("FASTRNN_CUDA_TIER"))
LIBRARY = _register()  # the registrations live as long as this object
