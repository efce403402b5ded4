"""The truth: the emulator's oracle in float64, through whose operations every transform and any number of derivatives
pass."""

from __future__ import annotations

import torch
from emulator import oracle
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .kinds import KINDS, same
from .sides import PACKED, Side, base, kind_of, named


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

    def _stack(self, x, states, weights: list, lengths: list[int], resets):
        """x (T, B, I), states (layers * D, B, ...), the weights in torch's order -> the output and the final states."""
        case, finals, each = self.case, [], len(weights) // self.case.layers
        for index in range(case.layers):
            rows = slice(index * case.directions, (index + 1) * case.directions)
            of_layer = weights[index * each : (index + 1) * each], case.bias, case.P > 0
            steps, final = oracle.layer(self.cell.index, x, lengths, [s[rows] for s in states], *of_layer, resets)
            finals.append(final)
            x = steps[0]
        return x, [torch.cat(parts) for parts in zip(*finals)]

    def call(self, arguments):
        case, x, states = self.case, arguments["input"], [arguments[n] for n in "hc"[: self.cell.states]]
        if case.hx == "absent":
            states = [torch.zeros_like(s) for s in states]
        if case.hx in ("same twice", "swapped"):
            states = [states[0]] * len(states) if case.hx == "same twice" else states[::-1]
        weights = [v for name, v in arguments.items() if name.startswith(("weight", "bias"))]
        if case.step:
            x, states = x.unsqueeze(0), [s.unsqueeze(0) for s in states]
        is_packed, is_one, lengths = (
            case.form in PACKED,
            case.form == "unbatched",
            self.lengths.tolist(),
        )
        if is_packed:
            batch_sizes, order, _ = self.packing
            order = torch.arange(self.B) if order is None else order
            counts = batch_sizes.tolist()
            places = torch.arange(self.T).repeat_interleave(batch_sizes), torch.cat([order[:n] for n in counts])
            x = x.new_zeros(self.T, self.B, case.I).index_put(places, x)
        elif is_one:
            x, states, lengths = x.unsqueeze(1), [s.unsqueeze(1) for s in states], [self.T]
        elif case.batch_first:
            x = x.transpose(0, 1)
        zero = 0 * sum(t.sum() for t in (x, *states, *weights))  # the gradient by what a reset hides is no None
        if self.B == 0 and not is_one:  # the oracle goes from row to row
            output, hn = x.new_zeros(self.T, 0, case.directions * states[0].size(-1)), states
        else:
            output, hn = self._stack(x, states, weights, lengths, self.resets if case.form == "batched" else None)
        output, hn = output + zero, [h + zero for h in hn]
        if is_packed:
            output = PackedSequence(output[places], *self.packing)
        elif is_one:
            output, hn = output.squeeze(1), [h.squeeze(1) for h in hn]
        elif case.batch_first:
            output = output.transpose(0, 1)
        if case.step:
            hn = [h.squeeze(0) for h in hn]
            return named(hn[0] if len(hn) == 1 else tuple(hn))
        return named((output, hn[0] if len(hn) == 1 else tuple(hn)))
