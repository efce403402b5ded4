"""The correctness gate: no case is timed before its results agree with float64.

The error of a tensor is its largest deviation from the float64 result, divided by the largest magnitude of that
result. Ours may be twice torch's own error in the same dtype, plus a small floor, because torch's error can be next to
nothing by luck, above all in small tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .case import Case, Inputs, Side, build, to_float64
from .resets import torch_class

FACTOR = 2.0
TF32_EPS = 2.0**-10
# In units in the last place. A chain of float32 or float64 roundings through a hundred steps is off by several in a
# gradient, whatever its order; 16-bit results come from float32 sums and are rounded once or twice. In float64 torch's
# result is the truth itself, so that the floor is the whole budget: sums of thousands in another order were 30 off.
FLOOR_ULPS = {"float64": 128.0, "float32": 8.0, "tf32": 2.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass(frozen=True)
class Error:
    """How far one tensor is from float64: ours, torch's in the same dtype, and what ours may be."""

    tensor: str
    ours: float
    torch: float
    budget: float

    @property
    def ok(self) -> bool:
        """False for a NaN too: every comparison with one is false."""
        return self.ours <= self.budget

    @property
    def severity(self) -> float:
        """Share of the budget used; infinite where there is no number to compare."""
        return self.ours / self.budget if math.isfinite(self.ours) else math.inf

    def __str__(self) -> str:
        return f"{self.tensor}: error {self.ours:.2e}, allowed {self.budget:.2e} (torch's own {self.torch:.2e})"


def deviation(actual: Tensor, exact: Tensor) -> float:
    """Largest |actual - exact| over largest |exact|; infinite for another shape."""
    if actual.shape != exact.shape:
        return math.inf
    if exact.numel() == 0:
        return 0.0
    scale = exact.abs().max().item() or 1.0
    return (actual.detach().double() - exact).abs().max().item() / scale


def floor(case: Case, precision: str) -> float:
    """The error that is always allowed; tf32 products have ten bits of mantissa."""
    if precision == "tf32":
        return FLOOR_ULPS["tf32"] * TF32_EPS
    return FLOOR_ULPS[case.dtype] * torch.finfo(case.torch_dtype).eps


def exact_results(case: Case, weights: dict[str, Tensor], inputs: Inputs, device) -> tuple[Tensor, ...]:
    """What torch.nn gives in float64 for the very same (already rounded) weights and inputs."""
    module = build(torch_class(case), case, device, weights, torch.float64)
    return tuple(result.detach() for result in Side(module, case)(to_float64(inputs)))


def errors(
    names: Sequence[str], ours: Sequence[Tensor], torchs: Sequence[Tensor], exact: Sequence[Tensor], least: float
) -> list[Error]:
    """The error of every result, the worst share of its budget first; `least` is the floor."""
    found = []
    for name, our, their, truth in zip(names, ours, torchs, exact, strict=True):
        own = deviation(their, truth)
        measured = deviation(our, truth) if our.dtype == their.dtype else math.inf
        found.append(Error(name, measured, own, FACTOR * own + least))
    return sorted(found, key=lambda error: -error.severity)
