"""The compiled layer operations, by backend, and the same operations registered with torch.

Every backend offers the same pair of functions, with the arguments and results of
:func:`fastrnn.reference.layer_forward` and :func:`~fastrnn.reference.layer_backward`:

    forward(cell, x, batch_sizes, hx, weights, save, lengths=None, resets=None, reverse=False, cells=False)
        -> (output, final_states, saved)
    backward(cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs,
             lengths=None, resets=None, reverse=False)
        -> (grad_x, grad_hx, grad_weights)

``save`` is 0 for nothing, 1 for all that backward needs, or STATES.

In eager mode they are called directly. Whatever follows the operators of a call (:func:`is_watched`) is shown
``torch.ops.fastrnn.*`` instead; ``_graph`` says what those run. There, gradients that were not asked for are empty.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch._guards import TracingContext
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from . import _ext, reference
from .registry import CELLS

STATES = 2
"""As ``save``: keep c, and h before a projection, and let backward compute the gates of all steps again. Backend cuda;
elsewhere the same as 1."""

_SCHEMAS = {
    "layer_forward": "(int cell, Tensor x, Tensor? batch_sizes, Tensor[] hx, Tensor[] weights, int save,"
    " Tensor? lengths=None, Tensor? resets=None, bool reverse=False, bool cells=False)"
    " -> (Tensor, Tensor[], Tensor[])",
    "layer_backward": "(int cell, Tensor grad_output, Tensor[] grad_hn, Tensor x, Tensor? batch_sizes, Tensor[] hx,"
    " Tensor[] weights, Tensor output, Tensor[] saved, bool[] needs, Tensor? lengths=None, Tensor? resets=None,"
    " bool reverse=False) -> (Tensor, Tensor[], Tensor[])",
}


class LayerOps(NamedTuple):
    """The forward and backward of one backend."""

    forward: Callable
    backward: Callable


def has_extension() -> bool:
    """Whether the compiled extension is there, with whatever kernels."""
    return _ext.load() is not None


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


def has_cpu_tiles() -> bool:
    """Whether the CPU kernels in use multiply bfloat16 on the CPU's matrix unit (AMX)."""
    return has_extension() and _ext.load().cpu.isa() == "amx_bf16"


@functools.cache
def outruns_onednn() -> bool:
    """Whether LSTMs were measured level with oneDNN's or ahead on a CPU like this one."""
    return has_extension() and _ext.load().cpu.outruns_onednn()


def layer_ops(backend: str) -> LayerOps:
    """The operations of ``backend``: ``reference``, ``cpu`` or ``cuda``."""
    if backend == "reference":
        return LayerOps(reference.layer_forward, reference.layer_backward)
    return _compiled_ops(getattr(_ext.load(), backend))


@functools.cache
def _compiled_ops(module) -> LayerOps:
    return LayerOps(module.layer_forward, module.layer_backward)


def is_compiling() -> bool:
    """Whether this thread makes a graph, by ``torch.compile`` or ``torch.export``.

    ``torch.compiler.is_compiling()`` says whether any thread of the process does.
    """
    return is_dynamo_compiling() or (torch.compiler._is_compiling_flag and TracingContext.try_get() is not None)


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` records this call."""
    return _get_tracing_state() is not None


def is_transformed(foreign: bool = True) -> bool:
    """Whether a ``torch.func`` transform or forward-mode AD is active for a call whose tensors may be ``foreign``.

    ``vmap`` leaves a call on ordinary tensors as it is: one that a batched backward makes again (checkpointing).
    """
    if is_dynamo_compiling():
        return torch._C._are_functorch_transforms_active()
    if forward_ad._current_level >= 0:
        return True
    stack = None if peek_interpreter_stack() is None else get_interpreter_stack()
    return stack is not None and (foreign or any(part.key() != TransformType.Vmap for part in stack))


def is_watched() -> bool:
    """Whether torch follows this call operator by operator: ``torch.compile``, ``torch.export``, a
    ``TorchDispatchMode`` (FlopCounterMode, FakeTensorMode) or a tracer. They must be shown ``torch.ops.fastrnn.*``."""
    if is_dynamo_compiling() or _len_torch_dispatch_stack() > 0 or _get_tracing_state() is not None:
        return True
    return torch.compiler._is_compiling_flag and is_compiling()


def autocast(weights: Sequence[Tensor], dtype: torch.dtype, device: str) -> list[Tensor]:
    """The weights in ``dtype``: the copies that torch's autocast keeps until its block ends, where it may keep some."""
    if is_watched() or not has_extension():
        return [w.to(dtype) for w in weights]
    return _ext.load().autocast(list(weights), dtype, device)


def describe_kernels(
    like: Tensor, mode: str, B: int, H: int, R: int, D: int, layers: int = 1, T: int = 1, grad: bool = True
) -> str:
    """Which CUDA kernels serve a layer of this size in the dtype and on the device of ``like``, a line a pass; and how
    the layers follow each other, if there are several."""
    return _ext.load().cuda.describe_plan(like, CELLS[mode].index, B, H, R, D, layers, T, grad)


def wavefront(
    like: Tensor, mode: str, B: int, H: int, R: int, D: int, layers: int, T: int, grad: bool
) -> tuple[int, int]:
    """How many of these layers run at the same time on backend cuda, and in how many chunks of time; 0 chunks: one
    layer after another."""
    lanes, chunks, _ = _ext.load().cuda.wavefront(like, CELLS[mode].index, B, H, R, D, layers, T, grad)
    return lanes, chunks


def _define() -> torch.library.Library:
    library = torch.library.Library("fastrnn", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
    return library


def _opt_in(extension, tier: str | None, chunks: str | None = None) -> None:
    """Lets the CUDA kernels that run a whole sequence serve calls, and prescribes the chunks of time in which several
    layers run at the same time; see override_tier and override_wavefront in csrc/bindings/cuda_tier.h."""
    if chunks and not chunks.isdecimal():
        raise ValueError(f"FASTRNN_CUDA_WAVEFRONT: expected a number of chunks, or 0 for none, got {chunks!r}")
    if tier and hasattr(extension, "cuda"):
        extension.cuda.override_tier(tier)
    if chunks and hasattr(extension, "cuda"):
        extension.cuda.override_wavefront(int(chunks))


TIER, WAVEFRONT = os.environ.get("FASTRNN_CUDA_TIER"), os.environ.get("FASTRNN_CUDA_WAVEFRONT")
"""As they are when fastrnn is imported, and in force from then on."""
_opt_in(_ext.load(), TIER, WAVEFRONT)
LIBRARY = _define()  # what is registered lives as long as this object
