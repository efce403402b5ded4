"""Matrix products: torch's own, or oneDNN's where those are slow.

torch multiplies float32 matrices on x86 CPUs with MKL, which was measured at a third of a core's peak on one of AMD's.
The oneDNN inside the same torch reaches 80 to 90 % there, and keeps a weight that is used in every step in a layout of
its own.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .scratch import Scratch

# Below these a call of oneDNN takes longer than the product: rows, and multiplications of all calls together.
_ROWS, _WORK = 8, 1 << 20


@functools.cache
def _mkl_is_slow() -> bool:
    """Whether this torch multiplies with MKL on an AMD processor, and has oneDNN too."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    info = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (info.read_text() if info.exists() else platform.processor())


def outruns_torch(device: str, dtype: torch.dtype, rows: int) -> bool:
    """Whether products with that many rows take oneDNN where torch takes MKL, and are faster for it."""
    is_candidate = device == "cpu" and dtype == torch.float32 and rows >= _ROWS
    return is_candidate and _mkl_is_slow() and torch.backends.mkldnn.enabled


def _is_for_onednn(like: Tensor, rows: int, work: int) -> bool:
    return work >= _WORK and outruns_torch(like.device.type, like.dtype, rows)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``a @ b + bias`` of (M, K) and (K, N), with ``bias`` (N,)."""
    if _is_for_onednn(a, min(a.size(0), b.size(1)), a.numel() * b.size(1)):
        result = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
        return result if out is None else out.copy_(result)
    return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)


def products_across(a: Tensor, others: Sequence[Tensor], scratch: Scratch) -> list[Tensor]:
    """``a.t() @ b`` for every b of ``others``; oneDNN would turn ``a`` anew for each."""
    across, narrowest = a.t(), min(b.size(1) for b in others)
    if len(others) > 1 and _is_for_onednn(a, narrowest, a.numel() * narrowest):
        across = scratch.empty(*across.shape).copy_(across)
    return [product(across, b) for b in others]


class Factor:
    """The right-hand side (K, N) of the products of a time loop."""

    def __init__(self, matrix: Tensor, bias: Tensor | None = None) -> None:
        self.matrix, self.bias = matrix, bias

    def into(self, buffer: Tensor, a: Tensor) -> Tensor:
        """``a @ matrix + bias`` in ``buffer`` or in other memory."""
        if self.bias is None:
            return torch.mm(a, self.matrix, out=buffer)
        return torch.addmm(self.bias, a, self.matrix, out=buffer)

    def times(self, a: Tensor, addend: Tensor | None) -> Tensor:
        """``a @ matrix``, plus ``addend`` if there is one."""
        return torch.mm(a, self.matrix) if addend is None else torch.addmm(addend, a, self.matrix)

    def add_to(self, out: Tensor, a: Tensor) -> Tensor:
        """Adds ``a @ matrix`` to ``out``."""
        return out.addmm_(a, self.matrix)

    def plus(self, addend: Tensor, a: Tensor, out: Tensor) -> Tensor:
        """``addend + a @ matrix`` in ``out``."""
        return torch.addmm(addend, a, self.matrix, out=out)


class _OneDnnFactor(Factor):
    """The same in oneDNN's layout for products with about ``rows`` rows."""

    def __init__(self, matrix: Tensor, bias: Tensor | None, rows: int) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(matrix.t(), rows), bias)

    def into(self, buffer: Tensor, a: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(a, self.matrix, self.bias, "none", [], "")

    def times(self, a: Tensor, addend: Tensor | None) -> Tensor:
        result = torch.ops.mkldnn._linear_pointwise(a, self.matrix, None, "none", [], "")
        return result if addend is None else result.add_(addend)

    def add_to(self, out: Tensor, a: Tensor) -> Tensor:
        return out.add_(self.times(a, None))

    def plus(self, addend: Tensor, a: Tensor, out: Tensor) -> Tensor:
        return torch.add(addend, self.times(a, None), out=out)


def factor(matrix: Tensor, counts: Sequence[int], bias: Tensor | None = None) -> Factor:
    """``matrix`` for a time loop whose step t multiplies it with ``counts[t]`` rows."""
    rows = sum(counts) // len(counts)
    if len(counts) > 1 and _is_for_onednn(matrix, rows, sum(counts) * matrix.numel()):
        return _OneDnnFactor(matrix, bias, max(counts))
    return Factor(matrix, bias)
