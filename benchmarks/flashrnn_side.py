"""FlashRNN (its PyPI wheel) as an opponent: one LSTM layer in one direction.

Its call starts from the input's gate pre-activations, so those are made before the clock starts: FlashRNN is timed
without its input GEMM, fastrnn with its own. In training its gradients are for those pre-activations, the initial
states, the recurrent weights and the bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrnn.bench.case import Case, Inputs, Side

BACKEND = "cuda_fused"


def why_not(case: Case) -> str | None:
    """Why FlashRNN cannot run this case here, None if it can."""
    if case.cell != "LSTM" or case.layers > 1 or case.directions > 1 or case.packed:
        return "compared on one padded LSTM layer in one direction; its fused kernel has no GRU"
    if case.dtype not in ("bfloat16", "float16", "float32"):
        return f"it has no kernel for {case.dtype}"
    try:
        import flashrnn  # noqa: F401
    except Exception as failure:  # its import looks for CUDA and may fail in many ways
        return f"not importable here ({type(failure).__name__}: {failure})".splitlines()[0]
    return None


class FlashLayer(nn.Module):
    """The recurrent part of nn.LSTM's layer 0 as FlashRNN takes it: one head of width H, gates in torch's order."""

    def __init__(self, weights: dict[str, Tensor], dtype: str):
        super().__init__()
        hidden = weights["weight_hh_l0"].shape[1]
        self.dtype = dtype
        self.register_buffer("input_weight", weights["weight_ih_l0"])
        self.recurrent = nn.Parameter(weights["weight_hh_l0"].reshape(4, 1, hidden, hidden).clone())
        bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
        self.bias = nn.Parameter(bias.reshape(4, 1, hidden).clone())

    def gates(self, x: Tensor) -> Tensor:
        """(T, B, I) to the (B, T, 4, 1, H) pre-activations that FlashRNN wants."""
        product = x.detach() @ self.input_weight.T
        steps, batch, width = product.shape
        return product.transpose(0, 1).reshape(batch, steps, 4, 1, width // 4)

    def forward(self, gates: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Output (T, B, H) and final (h, c) of (1, B, H), as views of what FlashRNN returns."""
        from flashrnn import flashrnn

        initial = torch.stack(hx).transpose(1, 2).unsqueeze(3)  # (2, B, 1, 1, H)
        states, last = flashrnn(
            gates, self.recurrent, self.bias, states=initial, function="lstm", backend=BACKEND, dtype=self.dtype
        )
        final = last[:, :, 0].transpose(1, 2)
        return states[0, :, :, 0].transpose(0, 1), (final[0], final[1])


class FlashSide(Side):
    """A side whose inputs are gate pre-activations, made once for every set of inputs."""

    def __init__(self, case: Case, device: torch.device, weights: dict[str, Tensor]):
        layer = FlashLayer(weights, case.dtype).to(device)
        super().__init__(layer.train(case.mode == "training"), case)
        self._made: dict[int, Inputs] = {}

    def prepare(self, inputs: Inputs) -> None:
        """Make the pre-activations; keyed by the first leaf, which lives as long as the inputs do."""
        gates = self.module.gates(inputs.x).requires_grad_()
        self._made[id(inputs.leaves[0])] = Inputs(gates, inputs.hx, (gates, *inputs.leaves[1:]))

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return super().__call__(self._made[id(inputs.leaves[0])])
