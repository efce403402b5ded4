"""Who served a case: the backend, and on CUDA the kernel of each pass."""

from __future__ import annotations

from typing import NamedTuple

from fastrnn import Explanation

# What describe_plan in csrc/bindings/cuda_tier.cpp writes in front of a kernel, and between kernels.
ONE_LAUNCH, LAUNCH_A_STEP, ALTERNATIVE = "one launch, ", "a launch a step, ", "; possible: "


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
    kernels = dict(line.split(": ", 1) for line in (explanation.kernels or "").splitlines())
    forward, backward = (_in_short(kernels.get(name, "")) for name in ("forward", "backward"))
    return Served(explanation.backend, forward, backward if training else "")


def tier_of(kernel: str) -> str:
    """cta, cluster, grid or step; "" for no kernel."""
    return kernel.partition(" ")[0]


def _in_short(kernel: str) -> str:
    chosen = kernel.split(ALTERNATIVE)[0]
    if chosen.startswith(LAUNCH_A_STEP):
        return f"step ({chosen.removeprefix(LAUNCH_A_STEP)})"
    return chosen.removeprefix(ONE_LAUNCH)
