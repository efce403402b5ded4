"""torchrl's LSTMModule and GRUModule as opponents: Triton kernels on a GPU, padded episodes on torch.nn elsewhere.

They take a TensorDict with the batch first, and a state for every step, of which those where an episode begins are
read. It is made before the clock starts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrnn.bench.case import Case, Inputs, Side, build


def why_not(case: Case) -> str | None:
    """Why torchrl cannot run this case here, None if it can."""
    if case.cell not in ("LSTM", "GRU") or case.directions > 1 or case.packed or case.P or case.option:
        return "compared on LSTM and GRU in one direction on padded input; its kernels have no projection and no option"
    if case.dtype != "float32":
        return f"its kernels keep float32, not {case.dtype}"
    try:
        import torchrl.modules  # noqa: F401
    except Exception as failure:  # its extension may have been built for another torch
        return f"not importable here ({type(failure).__name__}: {failure})".splitlines()[0]
    return None


class RolloutLayer(nn.Module):
    """torchrl's module with these weights, called with a TensorDict."""

    def __init__(self, case: Case, device: torch.device, weights: dict[str, Tensor]):
        from torchrl import modules

        super().__init__()
        layer = build(getattr(nn, case.cell), case, device, weights)
        layer.batch_first = True
        self.states = ("state_h", "state_c") if case.cell == "LSTM" else ("state_h",)
        on_gpu = device.type == "cuda"
        precision = torch.backends.cuda.matmul.fp32_precision if on_gpu else "auto"
        if on_gpu:  # torchrl asks by the older of torch's two settings, which has to agree with the other
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        self.rollout = getattr(modules, f"{case.cell}Module")(
            **{case.cell.lower(): layer},
            in_keys=["x", *self.states],
            out_keys=["output", *(("next", name) for name in self.states)],
            recurrent_backend="triton" if on_gpu else "pad",
            recurrent_matmul_precision=precision,
            default_recurrent_mode=True,
        )

    def forward(self, given, _) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """Output (T, B, H) and final states, as views of what torchrl writes."""
        found = self.rollout(given.copy())
        last = tuple(found["next", name][:, -1].transpose(0, 1) for name in self.states)
        return found["output"].transpose(0, 1), last if len(last) > 1 else last[0]


class RolloutSide(Side):
    """A side whose inputs are TensorDicts, made once for every set of inputs."""

    def __init__(self, case: Case, device: torch.device, weights: dict[str, Tensor]):
        super().__init__(RolloutLayer(case, device, weights).train(case.mode == "training"), case)
        self._made: dict[int, Inputs] = {}

    def prepare(self, inputs: Inputs) -> None:
        """Make the TensorDict; keyed by the first leaf, which lives as long as the inputs do."""
        from tensordict import TensorDict

        x = inputs.x.detach().transpose(0, 1).contiguous().requires_grad_()
        begins = inputs.asked.get("reset_mask", torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device))
        leaves, given = [x], {"x": x, "is_init": begins.unsqueeze(2).clone()}
        for name, state in zip(self.module.states, inputs.hx if isinstance(inputs.hx, tuple) else (inputs.hx,)):
            every = state.new_zeros(*x.shape[:2], state.size(0), state.size(2))
            every[:, 0] = state.detach().transpose(0, 1).masked_fill(begins[:, 0, None, None], 0)
            leaves.append(every.requires_grad_())
            given[name] = every
        given["is_init"][:, 0] = True
        self._made[id(inputs.leaves[0])] = Inputs(TensorDict(given, x.shape[:2]), None, tuple(leaves))

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return super().__call__(self._made[id(inputs.leaves[0])])
