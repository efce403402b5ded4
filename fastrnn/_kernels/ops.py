"""The compiled layer operations, by backend, and the same operations registered with torch.

Every backend offers the same pair of functions, with the arguments and results of
:func:`fastrnn.reference.layer_forward` and :func:`~fastrnn.reference.layer_backward`:

    layer_forward(x, given, hx, weights, spec, scalars) -> (output, states, saved)
    layer_backward(grads, x, given, hx, weights, results, spec, scalars, needs) -> (grad_x, grad_hx, grad_weights)

In eager mode they are called directly. Whatever follows the operators of a call (:func:`is_watched`) is shown
``torch.ops.fastrnn.*`` instead; ``_backends.graph`` says what those run. There, gradients that were not asked for are
empty.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _is_tracing, _len_torch_dispatch_stack
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch._guards import TracingContext
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from .. import reference
from .._spec import SCHEMAS, Call
from ..registry import ALL_CELLS
from . import ext

_RECORDERS = [getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")]


def has_extension() -> bool:
    """Whether the compiled extension is there, with whatever kernels."""
    return ext.load() is not None


def missing(backend: str, index: int | None = None) -> str | None:
    """Why this backend's operations cannot be called, on the GPU ``index`` or the current one; None if they can."""
    extension = ext.load()
    if extension is None:
        return f"the compiled extension is missing: {ext.reason}"
    if not hasattr(extension, backend):
        return f"the extension was built without {backend.upper()} kernels: {ext.why_no_cuda()}"
    if backend == "cuda" and (index or 0) < torch.cuda.device_count():
        return ext.why_not_device(torch.cuda.get_device_capability(index), ext.build.cuda_archs)
    return None


missing._dynamo_marked_constant = True  # found while dynamo traces, and no part of the graph


def layer_ops(backend: str) -> ModuleType:
    """What has the operations of ``backend``: ``reference``, ``cpu`` or ``cuda``."""
    return reference if backend == "reference" else getattr(ext.load(), backend)


def is_compiling() -> bool:
    """Whether this thread makes a graph, by ``torch.compile`` or ``torch.export``.

    ``torch.compiler.is_compiling()`` says whether any thread of the process does.
    """
    return is_dynamo_compiling() or (torch.compiler._is_compiling_flag and TracingContext.try_get() is not None)


def is_exporting() -> bool:
    """Whether this thread exports a program. A program keeps no checkpointing, and chunks would tie its length."""
    return torch.compiler.is_exporting() and is_compiling()


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` records this call."""
    return _get_tracing_state() is not None  # which torch.compile knows


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
    if is_dynamo_compiling() or _len_torch_dispatch_stack() > 0 or _is_tracing():
        return True
    return torch.compiler._is_compiling_flag and is_compiling()


def is_recorded() -> bool:
    """Whether this call becomes part of a graph, or there may be no values at all, outside ``torch.compile``: that
    leaves its graph where it finds no operator."""
    if is_dynamo_compiling():
        return False
    return is_traced() or (_len_torch_dispatch_stack() > 0 and any(map(torch._C._get_dispatch_mode, _RECORDERS)))


def autocast(weights: Sequence[Tensor], dtype: torch.dtype, device: str) -> list[Tensor]:
    """The weights in ``dtype``: the copies that torch's autocast keeps until its block ends, where it may keep some."""
    if is_watched() or not has_extension():
        return [w.to(dtype) for w in weights]
    return ext.load().autocast(list(weights), dtype, device)


class Kernel(NamedTuple):
    """A CUDA kernel of a pass over a layer. ``tier`` is ``cta``, ``cluster`` or ``grid``, one launch for the sequence,
    or ``step``; ``detail`` says the rest."""

    tier: str
    detail: str

    def __str__(self) -> str:
        return f"{self.tier} ({self.detail})"


class Pass(NamedTuple):
    """What serves a pass over a layer, and what else could."""

    kernel: Kernel
    possible: list[Kernel]

    def __str__(self) -> str:
        how = "a launch a step" if self.kernel.tier == "step" else "one launch"
        return "; possible: ".join(map(str, (f"{how}, {self.kernel}", *self.possible)))


class Plan(NamedTuple):
    """The CUDA kernels that serve a call, and how several layers follow each other."""

    forward: Pass
    backward: Pass
    layers: str = ""

    def __str__(self) -> str:
        lines = [f"forward: {self.forward}", f"backward: {self.backward}"]
        return "\n".join(lines + ([f"layers: {self.layers}"] if self.layers else []))


def _pass(plan: dict, recurrent: bool) -> Pass:
    step, kernels = plan["step"], []
    for team in plan["resident"]:
        rows = team["tiles"] * team["rows"]
        size = f"{team['teams']} x {team['members']} blocks a direction, {team['units']} units each, {rows} rows"
        kernels.append(Kernel(team["tier"], f"{team['regime']}; {size}"))
    if plan["chosen"] >= 0:
        chosen = kernels.pop(plan["chosen"])
        return Pass(chosen, kernels)
    detail = "fused with tensor cores" if step["tensor_cores"] else "fused"
    if not step["fused"]:
        detail = "a library product and the cell update" if recurrent else "the cell update alone"
    return Pass(Kernel("step", detail), kernels)


def _sizes(call: Call) -> tuple[int, ...]:
    """Cell, B, H, R and directions."""
    return ALL_CELLS[call.mode].index, call.B, call.H, call.P or call.H, call.directions


def _asked(call: Call, layers: int) -> tuple[int, int, bool, bool, bool]:
    """Layers, T, whether there will be gradients, and what rules kernels out."""
    return layers, call.T, call.grad, call.masked, call.zoned


def plan_kernels(like: Tensor, call: Call, layers: int) -> Plan:
    """Which CUDA kernels serve a call in the dtype and on the device of ``like``; and how its ``layers`` follow each
    other, if there are several."""
    found = ext.load().cuda.plan_stack(like, *_sizes(call), *_asked(call, layers))
    lanes, chunks, why_not = found["layers"]
    text = (
        f"{lanes} at the same time, in {chunks} chunks of time" if chunks else f"one after another, because {why_not}"
    )
    recurrent = ALL_CELLS[call.mode].recurrent
    return Plan(_pass(found["forward"], recurrent), _pass(found["backward"], recurrent), text if layers > 1 else "")


def wavefront(like: Tensor, call: Call) -> tuple[int, int]:
    """How many layers of a call run at the same time on backend cuda, and in how many chunks of time; 0 chunks: one
    layer after another."""
    lanes, chunks, _ = ext.load().cuda.wavefront(like, *_sizes(call), *_asked(call, call.layers))
    return lanes, chunks


infer: Callable[..., list[Tensor] | None] | None = getattr(getattr(ext.load(), "cpu", None), "infer", None)
"""``fastrnn._C.cpu.infer``, where there are CPU kernels."""


_cuda = getattr(ext.load(), "cuda", None)
PLANNED = "{}.{}".format(*divmod(_cuda.measured_capability, 10)) if _cuda else ""
"""The compute capability whose GPUs have measured the plan of the CUDA kernels."""


def override_tier(tier: str) -> None:
    """Which CUDA kernels serve calls from now on: ``override_tier`` in csrc/bindings/cuda_tier.h."""
    if _cuda:
        _cuda.override_tier(tier)


def keep_tiers(index: int, kinds: list[tuple[int, torch.dtype, bool, bool, list]]) -> None:
    """At which (T, B, H) resident kernels were measured ahead of a launch a step on ``cuda:index``, by number of the
    cell, dtype, tf32 and training. Replaces what was kept of that device."""
    if _cuda:
        _cuda.keep_tiers(
            index, [(cell, torch.empty(0, dtype=dtype, device="cpu"), *rest) for cell, dtype, *rest in kinds]
        )


TIER = os.environ.get("FASTRNN_CUDA_TIER")
"""As it is when fastrnn is imported, and in force from then on."""
if TIER:
    override_tier(TIER)
LIBRARY = torch.library.Library("fastrnn", "DEF")  # what is registered lives as long as this object
for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema)
