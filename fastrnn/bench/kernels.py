"""Who served a case: the backend, and on CUDA the kernel of each pass."""

from __future__ import annotations

from typing import NamedTuple

from fastrnn import Explanation


class Served(NamedTuple):
    """The backend, and for backend cuda the kernels: `cluster (…)`, `grid (…)`, `cta (…)` or `step (…)`.

    The first word of a kernel is its tier. Without gradients there is no backward kernel.
    """

    backend: str = ""
    forward_kernel: str = ""
    backward_kernel: str = ""

    def __str__(self) -> str:
        tiers = [tier_of(kernel) for kernel in (self.forward_kernel, self.backward_kernel) if kernel]
        return " ".join((self.backend, " + ".join(tiers))).rstrip()


NOBODY = Served()


def served_by(explanation: Explanation, training: bool) -> Served:
    """What `fastrnn.explain` found, without the kernels that could have served and did not."""
    plan = explanation.kernels
    if plan is None:
        return Served(explanation.backend)
    return Served(explanation.backend, str(plan.forward.kernel), str(plan.backward.kernel) if training else "")


def tier_of(kernel: str) -> str:
    """cta, cluster, grid or step; "" for no kernel."""
    return kernel.partition(" ")[0]
