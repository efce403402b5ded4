"""Calls of frozen stacks (``csrc/bindings/frozen.cpp``): directly, or as ``torch.ops.fastrnn.frozen`` where torch
follows a call operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import ext
from .ops import LIBRARY, is_recorded, is_watched

_cpu = getattr(ext.load(), "cpu", None)
call_plain: Callable[..., tuple | None] = getattr(_cpu, "call_frozen", None)
step_plain: Callable[..., Tensor | None] = getattr(_cpu, "step_frozen", None)
"""A layer's call, and its next steps, where torch does not watch; None if anything in it is unusual or wrong."""

LIBRARY.define(
    "frozen(Tensor packed, Tensor x, Tensor[] hx, Tensor? lengths, bool batch_first, int directions) -> Tensor[]"
)


TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Of matrices, as ``csrc/cpu/frozen.h`` numbers them."""


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and what 1 stands for in each row."""
    scale = weight.abs().amax(1) / 127 if weight.size(1) else weight.new_zeros(weight.size(0))
    scale = torch.where(scale > 0, scale, 1.0)
    return torch.round(weight / scale[:, None]).clamp(-127, 127).to(torch.int8), scale


def why_not(own: Tensor, given: Tensor) -> str:
    """Why a frozen layer does not take ``given`` in the place of its weight ``own``; nothing if it does."""
    if (own.dtype == torch.int8) != (given.dtype == torch.int8):
        return f"is {own.dtype}, got {given.dtype}: load it into fastrnn.unfreeze(model), and freeze that"
    if given.dtype == torch.int8 and bool((given == -128).any()):
        return "holds int8 weights, which must be within -127 .. 127, got -128"
    return ""


def forward(
    packed: Tensor,
    x: Tensor,
    hx: list[Tensor] | None,
    initial: Callable[[int | None], list[Tensor]],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    batch_first: bool,
    directions: int,
) -> tuple[Tensor, list[Tensor]]:
    """The output and the final states; ``initial`` makes the states of a batch where there are none."""
    if lengths is not None and batch_sizes is None and x.dim() == 2:  # the kernels take those of a batch
        batch = 0 if batch_first else 1
        hx = None if hx is None else [h.unsqueeze(1) for h in hx]
        output, final = forward(packed, x.unsqueeze(batch), hx, initial, lengths, None, batch_first, directions)
        return output.squeeze(batch), [h.squeeze(1) for h in final]
    if batch_sizes is None and is_watched():
        batch = x.size(0 if batch_first else 1) if x.dim() == 3 else None
        output, *final = torch.ops.fastrnn.frozen(
            packed, x, initial(batch) if hx is None else hx, lengths, batch_first, directions
        )
        return output, final
    _refuse_recording()
    return _cpu.frozen_forward(packed, x, hx, lengths, batch_sizes, batch_first)


def _refuse_recording() -> None:
    """Refuses a call that is no operator of torch.

    Raises:
        RuntimeError: it would become part of a graph, which would hold its result as a constant.
    """
    if is_recorded():
        raise RuntimeError(
            "fastrnn: step, stream and calls with a PackedSequence of a frozen layer cannot be traced or exported: "
            "call the layer with padded input and lengths=, or fastrnn.unfreeze(model)"
        )


def check_written(
    name: str, states: Sequence[Tensor], out: Tensor | None, size: Sequence[int], dtype: torch.dtype
) -> None:
    """Refuses what :func:`advance` refuses of the tensors that a step writes in place.

    Raises:
        TypeError: ``out`` is no tensor.
        RuntimeError: ``out`` is not as the output is, or two of them share memory.
    """
    if out is not None and not isinstance(out, Tensor):
        raise TypeError(f"{name}: out must be a tensor, got {type(out).__name__}")
    if out is not None and (out.shape != size or out.dtype != dtype or not out.is_contiguous() or not out.is_cpu):
        raise RuntimeError(
            f"{name}: out must be contiguous {dtype} of shape {tuple(size)} on the CPU, got {out.dtype} of shape "
            f"{tuple(out.shape)} on {out.device}"
        )
    written = [*states] if out is None else [*states, out]
    for t in written:
        if not t.is_contiguous() or t.requires_grad:
            raise RuntimeError(
                f"{name}: states and out are written in place and must be contiguous tensors that require no gradient"
            )
    if is_watched():
        return  # there may be no memory to look at
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in written)
    if any(end > begin for (_, end), (begin, _) in zip(spans, spans[1:])):
        raise RuntimeError(f"{name}: states and out are written in place and must not share memory")


def advance(packed: Tensor, x: Tensor, states: list[Tensor], out: Tensor | None, batch_first: bool) -> Tensor:
    """The output of the next steps; the states move on in place."""
    if is_watched():
        _refuse_recording()
    return _cpu.frozen_advance(packed, x, states, out, batch_first)


def _run(packed, x, hx, lengths, batch_first, directions):
    output, states = _cpu.frozen_forward(packed, x, hx, lengths, None, batch_first)
    return [output, *states]


def _fake(packed, x, hx, lengths, batch_first, directions):
    output = x.new_empty(*x.shape[:-1], directions * hx[0].size(-1))
    return [output, *(h.new_empty(h.shape) for h in hx)]


if _cpu is not None:
    LIBRARY.impl("frozen", _run, "CPU")
torch.library.register_fake("fastrnn::frozen", _fake, lib=LIBRARY)
