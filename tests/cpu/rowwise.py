"""A layer call of the CPU kernels, and the truth for it: the formulas, row by row, with autograd's gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from emulator import oracle
from torch import Tensor

from fastrnn.registry import Cell


@dataclass
class Call:
    """A layer call: tensors of one type, and the schedule. ``directions`` is "forward", "reverse" or "both"."""

    cell: Cell
    x: Tensor
    hx: list[Tensor]
    weights: list[Tensor]
    lengths: Tensor | None = None
    resets: Tensor | None = None
    directions: str = "forward"
    cells: bool = False

    def to(self, dtype: torch.dtype) -> Call:
        hx, weights = ([t.detach().to(dtype) for t in tensors] for tensors in (self.hx, self.weights))
        return replace(self, x=self.x.detach().to(dtype), hx=hx, weights=weights)

    def exists(self) -> Tensor:
        """(T, B) bool."""
        T, B = self.x.shape[:2]
        lengths = torch.full((B,), T) if self.lengths is None else self.lengths
        return torch.arange(T)[:, None] < lengths


def rowwise(call: Call) -> list[Tensor]:
    """Output, final states and, where asked for, c of every step."""
    T, B, _ = call.x.shape
    each = len(call.weights) // len(call.hx[0])
    lengths = [T] * B if call.lengths is None else call.lengths.tolist()
    steps, final = oracle.layer(
        call.cell.index, call.x, lengths, call.hx, call.weights, biased=each >= 4, projected=each % 2 == 1,
        resets=call.resets, forwards=int(call.directions != "reverse"),
    )  # fmt: skip
    return [steps[0], *final, *([steps[1]] if call.cells else [])]


def named(outputs: list[Tensor], grads: list[Tensor]) -> dict[str, Tensor]:
    """As support.check_all() takes them."""
    result = {f"output {i}": t.detach() for i, t in enumerate(outputs)}
    return result | {f"gradient {i}": t for i, t in enumerate(grads)}


def evaluate(call: Call, incoming: list[Tensor]) -> dict[str, Tensor]:
    """Outputs and the gradients of x, hx and weights, where ``incoming`` are those of the outputs."""
    leaves = [t.detach().requires_grad_() for t in (call.x, *call.hx, *call.weights)]
    states = 1 + len(call.hx)
    outputs = rowwise(replace(call, x=leaves[0], hx=leaves[1:states], weights=leaves[states:]))
    # Without a single step the output depends on nothing.
    used = [(output, grad.to(output)) for output, grad in zip(outputs, incoming) if output.requires_grad]
    reached, grads = zip(*used)
    return named(outputs, torch.autograd.grad(reached, leaves, grads, allow_unused=True, materialize_grads=True))
