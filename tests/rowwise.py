"""A layer as a plain loop over every batch row by itself: the truth for lengths, resets and directions.

Shares nothing with the kernels nor with ``fastrnn.reference``; gradients are autograd's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastrnn.registry import Cell


@dataclass
class Call:
    """A layer call: tensors of one type, and the timing. ``directions`` is "forward", "reverse" or "both"."""

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


def step(cell: Cell, x: Tensor, h: Tensor, c: Tensor, w: list[Tensor]) -> tuple[Tensor, Tensor]:
    """h and c after one step of one row."""
    b_ih, b_hh = (w[2], w[3]) if len(w) >= 4 else (None, None)
    a, r = linear(x, w[0], b_ih).chunk(cell.gates), linear(h, w[1], b_hh).chunk(cell.gates)
    if cell.mode == "GRU":
        reset, update = torch.sigmoid(a[0] + r[0]), torch.sigmoid(a[1] + r[1])
        return (1 - update) * torch.tanh(a[2] + reset * r[2]) + update * h, c
    if cell.mode == "LSTM":
        i, f, o = (torch.sigmoid(a[k] + r[k]) for k in (0, 1, 3))
        c = f * c + i * torch.tanh(a[2] + r[2])
        h = o * torch.tanh(c)
        return (linear(h, w[-1]) if len(w) % 2 else h), c
    return (torch.tanh if cell.mode == "RNN_TANH" else torch.relu)(a[0] + r[0]), c


def rowwise(call: Call) -> list[Tensor]:
    """Output, final states and, where asked for, c of every step."""
    T, B, _ = call.x.shape
    ways = {"forward": [False], "reverse": [True], "both": [False, True]}[call.directions]
    each = len(call.weights) // len(ways)
    rows: list[list[Tensor]] = [[], [], [], []]  # output, c of every step, h_n, c_n: for every direction and row
    for d, backwards in enumerate(ways):
        w = call.weights[d * each : (d + 1) * each]
        for b in range(B):
            h, c = call.hx[0][d, b], call.hx[-1][d, b]
            n = T if call.lengths is None else int(call.lengths[b])
            hs, cs = [torch.zeros_like(h)] * T, [torch.zeros_like(c)] * T
            for t in reversed(range(n)) if backwards else range(n):
                edge = t + 1 if backwards else t
                if call.resets is not None and edge < n and call.resets[b, edge]:
                    h, c = torch.zeros_like(h), torch.zeros_like(c)
                h, c = step(call.cell, call.x[t, b], h, c, w)
                hs[t], cs[t] = h, c
            for kind, result in zip(rows, (torch.stack(hs), torch.stack(cs), h, c)):
                kind.append(result)

    def sequence(kind: list[Tensor]) -> Tensor:
        return torch.cat([torch.stack(kind[d * B : (d + 1) * B], 1) for d in range(len(ways))], -1)

    def states(kind: list[Tensor]) -> Tensor:
        return torch.stack(kind).view(len(ways), B, -1)

    results = [sequence(rows[0]), states(rows[2])]
    if call.cell.states == 2:
        results.append(states(rows[3]))
    return results + [sequence(rows[1])] * call.cells


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
