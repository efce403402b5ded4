"""What is checked and what is timed: shapes for every kernel that the plan can choose, and every variant of a call.

All that is timed is checked too. What is checked alone is small, and odd where it can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._bench.case import Case
from .._proof import DIRECTIONS, EXTENDED, LAYERS, PACKED, PLAIN, PROJECTED, STEP, Kind
from ..registry import CELLS


@dataclass(frozen=True)
class Shape(Case):
    """A case of any cell of the registry, as a layer or as one step, with what torch.nn does not have.

    `asked` is "" or "lengths", "all_states" or "save": what fastrnn's layer is asked for, to give what torch.nn gives
    in its way.
    """

    nonlinearity: str = ""
    P: int = 0
    step: bool = False
    asked: str = ""

    @property
    def shape(self) -> str:
        """The label of a case, with what is more."""
        label = super().shape + (f" P={self.P}" if self.P else "")
        return " ".join(part for part in (label, "one step" if self.step else "", self.asked) if part)

    def layer(self, space) -> type[nn.Module]:
        """Its class in `space`; called with an input and states, it gives the output and the states."""
        if self.step:
            made = getattr(space, f"{self.cell}Cell")
            return type(made.__name__, (_Step, made), {})
        made = getattr(space, self.cell)
        return type(made.__name__, (_ASKING[self.asked], made), {}) if self.asked and space is not nn else made

    @property
    def options(self) -> dict:
        """What the class is made with besides I and H."""
        options = {} if self.step else super().options
        if self.nonlinearity:
            options["nonlinearity"] = self.nonlinearity
        return options | ({"proj_size": self.P} if self.P else {})

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """A cell's input has no T."""
        return (self.B, self.I) if self.step else super().input_sizes

    @property
    def state_sizes(self) -> list[tuple[int, ...]]:
        """A cell's states are rows; h is as wide as its projection."""
        if self.step:
            return [sizes[1:] for sizes in super().state_sizes]
        first, *rest = super().state_sizes
        return [(*first[:2], self.P or self.H), *rest]

    def weights(self, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """For relu, weights of one sign for each unit: no sum comes near 0, where a rounding more or less would make
        the whole of a gradient, in any implementation. Half of the units are on, and h does not grow."""
        if self.nonlinearity != "relu":
            return drawn
        damping = min(1.0, 2 / self.H**0.5)
        signs = 1 - 2 * (torch.arange(self.H) % 2)
        return {
            name: weight.abs() * (damping if "weight_hh" in name else 1) * signs.view(-1, *[1] * (weight.dim() - 1))
            for name, weight in drawn.items()
        }

    def values(self, drawn: Tensor) -> Tensor:
        """For relu, values above 0, and small: gradients are sums of many, and float16 ends at 65504."""
        return drawn.abs() / 8 if self.nonlinearity == "relu" else drawn


class _Step:
    def forward(self, x: Tensor, hx):
        state = super().forward(x, hx)
        return (state[0] if isinstance(state, tuple) else state), state


class _Lengths:
    """`lengths` in place of packing."""

    def forward(self, x: PackedSequence, hx):
        padded, lengths = pad_packed_sequence(x)
        output, state = super().forward(padded, hx, lengths=lengths.to(padded.device))
        packed = pack_padded_sequence(output, lengths, enforce_sorted=False)
        return packed, state


class _AllStates:
    """The output and the last c as `all_states` has them, of one layer in one direction."""

    def forward(self, x: Tensor, hx):
        _, final, (states,) = super().forward(x, hx, all_states=True)
        if isinstance(final, tuple):
            return states[0], (final[0], states[1][-1:])
        return states, final


class _SavedStates:
    """Gates computed again in backward, as they are by themselves where they would take much of the memory."""

    def forward(self, x: Tensor, hx):
        return super().forward(x, hx, save="states")


_ASKING = {"lengths": _Lengths, "all_states": _AllStates, "save": _SavedStates}


class Item(NamedTuple):
    """A shape of a variant of a kind of call; `timed` for long, or else as long as it takes to check it."""

    kind: Kind
    variant: str
    shape: Shape
    timed: bool


# (T, B, I, H) and what is more, by variant.
_CHECKED = (
    (PLAIN, (7, 3, 5, 6), {}),
    (PLAIN, (12, 33, 24, 136), {}),
    (DIRECTIONS, (9, 12, 31, 72), {"directions": 2}),
    (PACKED, (11, 9, 24, 40), {"directions": 2, "packed": True}),
    (LAYERS, (9, 5, 24, 40), {"layers": 3}),
    (PROJECTED, (9, 9, 24, 40), {"directions": 2, "P": 17}),
    (STEP, (1, 3, 5, 6), {"step": True}),
    (EXTENDED, (9, 12, 31, 72), {"resets": 0.2}),
    (EXTENDED, (11, 9, 24, 40), {"directions": 2, "packed": True, "asked": "lengths"}),
)
_CHECKED_MORE = (
    (PLAIN, (3, 256, 40, 1024), {}),  # a library product a step
    (PLAIN, (2, 20, 64, 1152), {}),  # too large for a cluster
    (PLAIN, (5, 9, 31, 72), {"directions": 2, "asked": "save"}),
    (LAYERS, (256, 4, 24, 64), {"layers": 3}),  # long enough for chunks of time
    (EXTENDED, (9, 12, 31, 72), {"asked": "all_states"}),
)
# (T, B, H); I is H.
_TIMED = ((1, 1, 256), (64, 32, 128), (64, 64, 512))
_TIMED_MORE = ((1, 64, 1024), (32, 1, 512), (256, 16, 256), (32, 128, 1024))
_TIMED_STEP, _TIMED_STEP_MORE = ((1, 64, 512),), ((1, 1, 256), (1, 256, 1024))
_TIMED_VARIANT = (64, 32, 256)
_TIMED_AS = {LAYERS: {"layers": 2}, DIRECTIONS: {"directions": 2}, PACKED: {"packed": True}, PROJECTED: {"P": 64}}


def _shapes(quick: bool) -> Iterator[tuple[str, tuple[int, int, int, int], dict, bool]]:
    for variant, sizes, more in _CHECKED + (() if quick else _CHECKED_MORE):
        yield variant, sizes, more, False
    for T, B, H in _TIMED + (() if quick else _TIMED_MORE):
        yield PLAIN, (T, B, H, H), {}, True
    for T, B, H in _TIMED_STEP + (() if quick else _TIMED_STEP_MORE):
        yield STEP, (T, B, H, H), {"step": True}, True
    T, B, H = _TIMED_VARIANT
    for variant, more in _TIMED_AS.items():
        yield variant, (T, B, H, H), more, True


def items(mode: str, dtype: str, precisions: tuple[str, ...], quick: bool) -> Iterator[Item]:
    """All that is measured of a cell in a dtype, kind by kind."""
    cell = CELLS[mode]
    for precision in precisions:
        for grad in (False, True):
            pass_ = {"dtype": dtype, "mode": "training" if grad else "forward"}
            for variant, sizes, more, timed in _shapes(quick):
                if variant == PROJECTED and mode != "LSTM":
                    continue
                shape = Shape(cell.layer, *sizes, nonlinearity=cell.nonlinearity or "", **pass_, **more)
                yield Item(Kind(mode, dtype, precision, grad), variant, shape, timed)
