"""Memory of a training step: peak allocation on CUDA, bytes kept for backward on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .case import Inputs, Side

KIND = {"cuda": "peak", "cpu": "saved"}


def training_bytes(side: Side, inputs: Inputs, device: torch.device) -> int:
    """Bytes of one training step, in the sense of KIND[device.type]."""
    return _peak_bytes(side, inputs, device) if device.type == "cuda" else saved_bytes(side, inputs)


def _peak_bytes(side: Side, inputs: Inputs, device: torch.device) -> int:
    """Most memory in use at once during the step, beyond what was in use before it."""
    side(inputs)  # workspaces that a first call makes and keeps are no part of a step
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    side(inputs)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def saved_bytes(side: Side, inputs: Inputs) -> int:
    """Bytes that autograd keeps for backward, each storage once, without the weights and the inputs.

    Only tensors saved through autograd (save_for_backward) are seen; a tensor put on `ctx` by hand would not be.
    """
    given = {_address(tensor) for tensor in (*inputs.leaves, *side.weights)}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # keeps every address taken until the count is done

    def pack(tensor: Tensor) -> Tensor:
        if _address(tensor) not in given:
            kept[_address(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor.detach())
        return tensor.detach()  # the tensor itself would keep its own graph alive in a cycle

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        side(inputs)
    return sum(kept.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
