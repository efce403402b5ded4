"""What a proof checks and times: shapes for every kernel that the plan can choose, and every variant of a call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..bench.case import Case
from ..registry import CELLS
from . import proof

# Variant, (T, B, I, H), what is more; what is only checked is small, and odd where it can be.
_CHECKED = (
    ("plain", (7, 3, 5, 6), {}),
    ("plain", (12, 33, 24, 136), {}),
    ("directions", (9, 12, 31, 72), {"directions": 2}),
    ("packed", (11, 9, 24, 40), {"directions": 2, "packed": True}),
    ("layers", (9, 5, 24, 40), {"layers": 3}),
    ("projected", (9, 9, 24, 40), {"directions": 2, "P": 17}),
    ("step", (1, 3, 5, 6), {"asked": "step"}),
    ("extended", (9, 12, 31, 72), {"resets": 0.2}),
    ("extended", (11, 9, 24, 40), {"directions": 2, "packed": True, "asked": "lengths"}),
)
_CHECKED_MORE = (
    ("plain", (3, 256, 40, 1024), {}),  # a library product a step
    ("plain", (2, 20, 64, 1152), {}),  # too large for a cluster
    ("plain", (5, 9, 31, 72), {"directions": 2, "asked": "save"}),
    ("layers", (256, 4, 24, 64), {"layers": 3}),  # long enough for chunks of time
    ("extended", (9, 12, 31, 72), {"asked": "all_states"}),
)
_TIMED = (
    ("plain", (1, 1, 256, 256), {}),
    ("plain", (64, 32, 128, 128), {}),
    ("plain", (64, 64, 512, 512), {}),
    ("step", (1, 64, 512, 512), {"asked": "step"}),
    ("layers", (64, 32, 256, 256), {"layers": 2}),
    ("directions", (64, 32, 256, 256), {"directions": 2}),
    ("packed", (64, 32, 256, 256), {"packed": True}),
    ("projected", (64, 32, 256, 256), {"P": 64}),
)
_TIMED_MORE = (
    ("plain", (1, 64, 1024, 1024), {}),
    ("plain", (32, 1, 512, 512), {}),
    ("plain", (256, 16, 256, 256), {}),
    ("plain", (32, 128, 1024, 1024), {}),
    ("step", (1, 1, 256, 256), {"asked": "step"}),
    ("step", (1, 256, 1024, 1024), {"asked": "step"}),
)


class _Asked:
    """A cell with a layer's results, or a layer of fastrnn that gives torch.nn's by what torch.nn does not have."""

    asked = ""

    def forward(self, x, hx):
        if self.asked == "step":
            state = super().forward(x, hx)
            return (state[0] if isinstance(state, tuple) else state), state
        if self.asked == "lengths":
            padded, lengths = pad_packed_sequence(x)
            output, state = super().forward(padded, hx, lengths=lengths.to(padded.device))
            return pack_padded_sequence(output, lengths, enforce_sorted=False), state
        if self.asked == "save":  # gates computed again in backward, as by themselves where they would be large
            return super().forward(x, hx, save="states")
        _, final, (states,) = super().forward(x, hx, all_states=True)
        return states[0], (final[0], states[1][-1:]) if isinstance(final, tuple) else final


@dataclass(frozen=True)
class Shape(Case):
    """A case of a variant of a call; ``asked`` is "" or what :class:`_Asked` knows. What is not ``timed`` is run as
    long as it takes to check it."""

    variant: str = "plain"
    timed: bool = False
    nonlinearity: str = ""
    P: int = 0
    asked: str = ""

    @property
    def shape(self) -> str:
        """The label of a case, with what is more."""
        return " ".join(filter(None, (super().shape, self.P and f"P={self.P}", self.asked)))

    def layer(self, space) -> type[nn.Module]:
        """Its class in `space`; called with an input and states, it gives the output and the states."""
        made = getattr(space, self.cell + ("Cell" if self.asked == "step" else ""))
        own = self.asked == "step" or (self.asked and space is not nn)
        return type(made.__name__, (_Asked, made), {"asked": self.asked}) if own else made

    @property
    def options(self) -> dict:
        """What the class is made with besides I and H."""
        options = {} if self.asked == "step" else super().options
        more = {"nonlinearity": self.nonlinearity, "proj_size": self.P}
        return options | {name: value for name, value in more.items() if value}

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """A cell's input has no T."""
        return super().input_sizes[self.asked == "step" :]

    @property
    def state_sizes(self) -> list[tuple[int, ...]]:
        """A cell's states are rows; h is as wide as its projection."""
        first, *rest = super().state_sizes
        return [sizes[self.asked == "step" :] for sizes in ((*first[:2], self.P or self.H), *rest)]

    def weights(self, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """For relu, weights of one sign for each unit: no sum comes near 0, where a rounding more or less would make
        the whole of a gradient, in any implementation. Half of the units are on, and h does not grow."""
        if self.nonlinearity != "relu":
            return drawn
        damping, signs = min(1.0, 2 / self.H**0.5), 1 - 2 * (torch.arange(self.H) % 2)
        return {
            name: weight.abs() * (damping if "weight_hh" in name else 1) * signs.view(-1, *[1] * (weight.dim() - 1))
            for name, weight in drawn.items()
        }

    def values(self, drawn: Tensor) -> Tensor:
        """For relu, values above 0, and small: gradients are sums of many, and float16 ends at 65504."""
        return drawn.abs() / 8 if self.nonlinearity == "relu" else drawn


def shapes_of(mode: str, dtype: str, quick: bool) -> Iterator[tuple[str, str, Shape]]:
    """All that is measured of a cell in a dtype, kind by kind: the kind, its precision and a shape."""
    cell = CELLS[mode]
    checked, timed = _CHECKED + (() if quick else _CHECKED_MORE), _TIMED + (() if quick else _TIMED_MORE)
    rows = [(row, is_timed) for some, is_timed in ((checked, False), (timed, True)) for row in some]
    for precision, grad in product(proof.PRECISIONS.get(dtype, ("",)), (False, True)):
        (kind,) = proof.kinds_of(mode, dtype, (grad,), (precision,))
        fixed = {"dtype": dtype, "mode": "training" if grad else "forward", "nonlinearity": cell.nonlinearity or ""}
        for (variant, sizes, more), is_timed in rows:
            if variant != "projected" or cell.projects:
                yield kind, precision, Shape(cell.layer, *sizes, variant=variant, timed=is_timed, **fixed, **more)
