"""Whom fastrnn is timed against: makers of the other side, or the reason why one cannot be had."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn._spec import slots_of
from fastrnn.bench.case import Case, Side, build
from fastrnn.bench.measure import Opponent, Refused
from fastrnn.reference import split_weights
from fastrnn.reference.scan import advance, input_gates

OPPONENTS = ("torch", "compiled-loop", "flashrnn", "torchrl")


def opponent(name: str, case: Case) -> Opponent | None:
    """The maker of the opponent's side for this case, None for torch.nn; raises Refused with the reason otherwise."""
    if name == "torch":
        return None
    if name == "torchrl":
        import torchrl_side

        if reason := torchrl_side.why_not(case):
            raise Refused(f"torchrl: {reason}")
        return torchrl_side.RolloutSide
    if case.resets:
        raise Refused(f"{name}: not written for resets")
    if name == "compiled-loop":
        if case.packed or case.directions == 2 or case.option:
            raise Refused("compiled-loop: written for one direction, padded input and no option")
        return lambda case, device, weights: Side(build(_compiled_loop(case), case, device, weights), case)
    if name == "flashrnn":
        from flashrnn_side import FlashSide, why_not

        if reason := why_not(case):
            raise Refused(f"flashrnn: {reason}")
        return FlashSide
    raise ValueError(f"opponent: expected one of {', '.join(OPPONENTS)}, got {name!r}")


def _compiled_loop(case: Case) -> type[nn.Module]:
    """What a PyTorch user would write: one GEMM for all inputs, then a Python loop over a torch.compile'd step."""
    torch.compiler.reset()  # or the shapes of earlier cases would use up its recompilations and leave this one eager
    cell = case.registered
    step = torch.compile(lambda weights, gates, states: advance(cell, weights, gates, states))

    class CompiledLoop(case.layer(fastrnn)):
        def forward(self, x: Tensor | PackedSequence, hx):
            finals = []
            states = hx if isinstance(hx, tuple) else (hx,)
            slots = slots_of(cell, self._weights(), self.num_layers)
            for layer, weights in enumerate(split_weights(slots, self.num_layers)):
                now = tuple(state[layer] for state in states)
                outputs = []
                for gates in input_gates(x, weights, cell).unbind(0):
                    now = step(weights, gates, now)
                    outputs.append(now[0])
                x = torch.stack(outputs)
                finals.append(now)
            stacked = tuple(map(torch.stack, zip(*finals, strict=True)))
            return x, stacked if len(stacked) > 1 else stacked[0]

    return CompiledLoop
