"""A stack of recurrent layers as a loop of a step over rows and time, in plain torch: the truth for load_cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def layer_loop(
    step: Callable, x: Tensor, hx: Sequence[Tensor], weights: dict[str, Tensor], end: str, timing: dict, initial
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """One direction: the states of every row after every step, and the last ones, (B, H) each.

    ``step(gates_x, gates_h, states, params)`` is of one row; ``end`` is what the names of its weights end with.
    """
    lengths, resets, backwards = timing.get("lengths"), timing.get("reset_mask"), end.endswith("_reverse")
    T, B, _ = x.shape
    own = {name.removesuffix(end): w for name, w in weights.items() if name.endswith(end)}
    matrices = [own.pop("weight_ih"), own.pop("weight_hh")]
    biases = [own.pop("bias_ih", None), own.pop("bias_hh", None)]
    w_hr = own.pop("weight_hr", None)
    steps, last = [[None] * B for _ in range(T)], []
    for b in range(B):
        length = T if lengths is None else int(lengths[b])
        state = [h[b] for h in hx]
        for t in reversed(range(length)) if backwards else range(length):
            edge = t + 1 if backwards else t  # what enters step t has crossed the edge before it
            if resets is not None and edge < length and resets[b, edge]:
                state = [torch.full_like(s, value) for s, value in zip(state, initial)]
            gates = [
                w @ v if bias is None else w @ v + bias for w, v, bias in zip(matrices, (x[t, b], state[0]), biases)
            ]
            state = list(step(*gates, state, own))
            if w_hr is not None:
                state[0] = w_hr @ state[0]
            steps[t][b] = state
        for t in range(length, T):
            steps[t][b] = [torch.zeros_like(h[b]) for h in hx]
        last.append(state)
    return steps, [torch.stack(rows) for rows in zip(*last)]


def stack_loop(module, step: Callable, x: Tensor, hx: Sequence[Tensor], **timing) -> list[Tensor]:
    """Output and final states of a layer of ``fastrnn.Layer``, from its parameters; x is (T, B, I)."""
    weights, ends = dict(module.named_parameters()), ["", "_reverse"][: 1 + module.bidirectional]
    finals = []
    for layer in range(module.num_layers):
        sides = []
        for d, end in enumerate(ends):
            states = [h[layer * len(ends) + d] for h in hx]
            steps, last = layer_loop(step, x, states, weights, f"_l{layer}{end}", timing, module.cell.initial)
            sides.append(torch.stack([torch.stack([state[0] for state in rows]) for rows in steps]))
            finals.append(last)
        x = torch.cat(sides, -1)
    return [x, *(torch.stack(states) for states in zip(*finals))]
