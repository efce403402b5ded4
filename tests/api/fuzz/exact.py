"""The truth: the published equations in elementary operations of float64, which every transform and any number of
derivatives pass through. Lengths and resets are masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .kinds import KINDS, same
from .sides import Side, base, kind_of, named


def _cell(mode: str, x: Tensor, h: Tensor, c: Tensor | None, w: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """One step: x (B, I), h (B, P or H), c (B, H)."""
    by_input, by_state = x @ w["weight_ih"].T, h @ w["weight_hh"].T
    if "bias_ih" in w:
        by_input, by_state = by_input + w["bias_ih"], by_state + w["bias_hh"]
    if mode == "GRU":
        (r, z, n), (hr, hz, hn) = by_input.chunk(3, -1), by_state.chunk(3, -1)
        r, z = torch.sigmoid(r + hr), torch.sigmoid(z + hz)
        return (1 - z) * torch.tanh(n + r * hn) + z * h, None
    if mode == "LSTM":
        i, f, g, o = (by_input + by_state).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h @ w["weight_hr"].T if "weight_hr" in w else h), c
    total = by_input + by_state
    return (torch.tanh(total) if mode == "RNN_TANH" else torch.relu(total)), None


def _direction(mode, x, h, c, w, alive, resets, reverse):
    """x (T, B, I); alive, resets (T, B) bool. Output (T, B, ...) and the last states."""
    T, steps = x.size(0), {}
    for t in range(T)[:: -1 if reverse else 1]:
        edge = t + 1 if reverse else t
        if edge < T:
            begins = (resets[edge] & alive[edge])[:, None]
            h = torch.where(begins, 0, h)
            c = None if c is None else torch.where(begins, 0, c)
        after, kept = _cell(mode, x[t], h, c, w)
        now = alive[t][:, None]
        steps[t] = torch.where(now, after, 0)
        h = torch.where(now, after, h)
        c = None if c is None else torch.where(now, kept, c)
    return torch.stack([steps[t] for t in range(T)]), h, c


def _layers(mode, x, h, c, weights: dict[str, Tensor], layers: int, directions: int, alive, resets):
    """A stack: x (T, B, I), h and c (layers * D, B, ...), the weights by torch's names."""
    hs, cs = [], []
    for index in range(layers):
        parts = []
        for d in range(directions):
            end, row = f"_l{index}" + "_reverse" * d, index * directions + d
            w = {name.removesuffix(end): v for name, v in weights.items() if name.endswith(end)}
            part, h_n, c_n = _direction(mode, x, h[row], None if c is None else c[row], w, alive, resets, d == 1)
            parts.append(part)
            hs.append(h_n)
            cs.append(c_n)
        x = torch.cat(parts, -1)
    return x, torch.stack(hs), None if c is None else torch.stack(cs)


class Exact(Side):
    """The equations in float64; its arguments mean what the others' do, as plain tensors."""

    is_exact = True

    def __init__(self, case) -> None:
        super().__init__(case, nn)

    def _made(self, name, values):
        kind = kind_of(self.case, name)
        if kind is not None and kind.meaning is None:
            raise ValueError(f"{name} means nothing that could be computed")
        if kind is not None and (not kind.recorded or self._is_parameter(name)):
            values = kind.meaning(values)  # what the kind makes of them is the leaf
            kind = None
        leaf = values.clone().requires_grad_(True)
        return leaf, leaf if kind is None else kind.meaning(leaf)

    def _is_parameter(self, name: str) -> bool:
        return name.startswith(("weight", "bias")) and self.case.route in ("parameter", "data")

    def _sizes(self) -> None:
        super()._sizes()
        self.lengths, self.resets = (self._meant(n) for n in ("lengths", "resets"))

    def _meant(self, name: str):
        """The values of a size in the kind that the sides are given it in."""
        values, kind = getattr(self, name), kind_of(self.case, "reset_mask" if name == "resets" else name)
        if kind is None or self.case.extras not in (name, "both"):
            return values
        return values.bool().to(values.dtype) if kind is KINDS["bool"] else (kind.meaning or same)(values)

    def _weights(self) -> None:
        for name, parameter in self.module.named_parameters():
            self._argument(name, base(self.case, name, tuple(parameter.shape)))

    def call(self, arguments):
        case, x, states = self.case, arguments["input"], [arguments[n] for n in "hc"[: self.cell.states]]
        if case.hx == "absent":
            states = [torch.zeros_like(s) for s in states]
        if case.hx in ("same twice", "swapped"):
            states = [states[0]] * len(states) if case.hx == "same twice" else states[::-1]
        h, c = states[0], (states[1] if len(states) > 1 else None)
        weights = {name: v for name, v in arguments.items() if name.startswith(("weight", "bias"))}
        if case.step:
            h, c = _cell(case.cell, x, h, c, weights)
            return named(h if c is None else (h, c))
        is_packed = case.form in ("packed", "unsorted")
        if is_packed:
            batch_sizes, order, _ = self.packing
            order = torch.arange(self.B) if order is None else order
            counts = batch_sizes.tolist()
            places = torch.arange(self.T).repeat_interleave(batch_sizes), torch.cat([order[:n] for n in counts])
            x = x.new_zeros(self.T, self.B, case.I).index_put(places, x)
        elif case.form == "unbatched":
            x, h, c = x.unsqueeze(1), h.unsqueeze(1), (None if c is None else c.unsqueeze(1))
        elif case.batch_first:
            x = x.transpose(0, 1)
        lengths = self.lengths if case.form != "unbatched" else torch.tensor([x.size(0)])
        alive = torch.arange(x.size(0))[:, None] < lengths
        resets = self.resets.T if case.form == "batched" else torch.zeros_like(alive)
        output, h, c = _layers(case.cell, x, h, c, weights, case.layers, case.directions, alive, resets)
        if is_packed:
            output = PackedSequence(output[places], *self.packing)
        elif case.form == "unbatched":
            output, h, c = output.squeeze(1), h.squeeze(1), (None if c is None else c.squeeze(1))
        elif case.batch_first:
            output = output.transpose(0, 1)
        return named((output, h if c is None else (h, c)))
