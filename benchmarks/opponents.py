"""Whom fastrnn is timed against: makers of the other side, or the reason why one cannot be had."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn.bench.case import Case, Side, build
from fastrnn.bench.measure import Opponent, Refused

OPPONENTS = ("torch", "compiled-loop", "flashrnn")


def opponent(name: str, case: Case) -> Opponent | None:
    """The maker of the opponent's side for this case, None for torch.nn; raises Refused with the reason otherwise."""
    if name == "torch":
        return None
    if case.resets:
        raise Refused(f"{name}: not written for resets")
    if name == "compiled-loop":
        if case.packed or case.directions == 2:
            raise Refused("compiled-loop: written for one direction and padded input only")
        return lambda case, device, weights: Side(build(_compiled_loop(case.cell), case, device, weights), case)
    if name == "flashrnn":
        from flashrnn_side import FlashSide, why_not

        if reason := why_not(case):
            raise Refused(f"flashrnn: {reason}")
        return FlashSide
    raise ValueError(f"opponent: expected one of {', '.join(OPPONENTS)}, got {name!r}")


def _lstm_step(x: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(x: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor) -> tuple[Tensor]:
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = F.linear(h, w_hh, b_hh).chunk(3, -1)
    n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
    return (n + (x_z + h_z).sigmoid() * (h - n),)


def _rnn_step(x: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor) -> tuple[Tensor]:
    return ((x + F.linear(h, w_hh, b_hh)).tanh(),)


_STEPS = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}


def _compiled_loop(cell: str) -> type[nn.Module]:
    """What a PyTorch user would write: one GEMM for all inputs, then a Python loop over a torch.compile'd step."""
    torch.compiler.reset()  # or the shapes of earlier cases would use up its recompilations and leave this one eager
    step = torch.compile(_STEPS[cell])

    class CompiledLoop(getattr(nn, cell)):
        def forward(self, x: Tensor | PackedSequence, hx):
            finals = []
            states = hx if isinstance(hx, tuple) else (hx,)
            for layer in range(self.num_layers):
                w_ih, w_hh, b_ih, b_hh = self.all_weights[layer]
                now = tuple(state[layer] for state in states)
                outputs = []
                for gates in F.linear(x, w_ih, b_ih).unbind(0):
                    now = step(gates, *now, w_hh, b_hh)
                    outputs.append(now[0])
                x = torch.stack(outputs)
                finals.append(now)
            stacked = tuple(map(torch.stack, zip(*finals, strict=True)))
            return x, stacked if cell == "LSTM" else stacked[0]

    return CompiledLoop
