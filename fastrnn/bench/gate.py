"""The error budget: results count as right if they are about as close to float64 as torch's own.

The error of a tensor is its largest deviation from the float64 result, divided by the largest magnitude of that result.
Ours may be ``FACTOR`` times torch's error in the same dtype plus a floor of ``FLOOR`` units in the last place. torch's
error is its largest over the outputs and states, or over the gradients, because in a single small tensor it can be next
to nothing by luck. A tensor of few elements can be near 0 because what it sums cancels out, so it is measured against
the largest magnitude of its kind.

`measure`, `check`, `prove` and the tests judge by this module alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 2.0
FEW = 8
TF32_EPS = 2.0**-10  # ten bits of mantissa
# A chain of float32 or float64 roundings through a hundred steps is off by several units in a gradient, whatever its
# order; 16-bit results come from float32 sums. In float64 torch's result is the truth itself, so that the floor is the
# whole budget: sums of thousands in another order were 30 off.
FLOOR = {torch.float64: 128, torch.float32: 8, torch.bfloat16: 1, torch.float16: 1}
TF32_FLOOR = 2


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


def largest(exact: Tensor) -> float:
    """The largest magnitude; 0 of no element."""
    return exact.detach().abs().max().item() if exact.numel() else 0.0


def deviation(actual: Tensor, exact: Tensor, scale: float = 0.0) -> float:
    """Largest |actual - exact| over ``scale``, by default the largest |exact|; infinite for another shape."""
    if actual.shape != exact.shape:
        return math.inf
    if exact.numel() == 0:
        return 0.0
    exact = exact.detach().double()
    difference = (actual.detach().to(exact) - exact).abs().max().item()
    return difference / (scale or largest(exact) or 1.0)


def errors(
    names: Sequence[str],
    ours: Sequence[Tensor],
    torchs: Sequence[Tensor],
    exact: Sequence[Tensor],
    precision: str = "",
    slack: int = 1,
) -> list[Error]:
    """The error of every result, the worst share of its budget first.

    Names that begin with ``grad`` are of one kind, all others of another. With ``precision`` "tf32" float32 counts as
    that. ``slack`` multiplies the floor of 16-bit types, for torch's results that were computed in float32. A result of
    another dtype or shape than torch's has an infinite error.
    """
    rows = list(zip(names, ours, torchs, exact, strict=True))
    scales, budgets = {False: 0.0, True: 0.0}, {False: 0.0, True: 0.0}
    for name, _, _, truth in rows:
        kind = name.startswith("grad")
        scales[kind] = max(scales[kind], largest(truth))
    found = []
    for name, our, their, truth in rows:
        kind, is_tf32 = name.startswith("grad"), precision == "tf32" and their.dtype == torch.float32
        unit = TF32_EPS if is_tf32 else torch.finfo(their.dtype).eps
        scale = scales[kind] if truth.numel() < FEW else 0.0
        own = deviation(their, truth, scale)
        measured = deviation(our, truth, scale) if our.dtype == their.dtype else math.inf
        floor = TF32_FLOOR if is_tf32 else FLOOR[their.dtype] * (slack if their.dtype.itemsize == 2 else 1)
        budgets[kind] = max(budgets[kind], FACTOR * own / unit + floor)
        found.append((name, kind, unit, measured, own))
    judged = [Error(name, measured, own, budgets[kind] * unit) for name, kind, unit, measured, own in found]
    return sorted(judged, key=lambda error: -error.severity)
