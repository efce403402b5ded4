"""What a proof checks and times: shapes for every kernel that the plan can choose, and every variant of a call."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from ..bench.case import Case
from ..registry import CELLS
from . import proof

# Variant, (T, B, I, H), other fields of the case; what is only checked is small, and odd where it can be.
_CHECKED = (
    ("plain", (7, 3, 5, 6), {}),
    ("plain", (12, 33, 24, 136), {}),
    ("directions", (9, 12, 31, 72), {"directions": 2}),
    ("packed", (11, 9, 24, 40), {"directions": 2, "packed": True}),
    ("layers", (9, 5, 24, 40), {"layers": 3}),
    ("projected", (9, 9, 24, 40), {"directions": 2, "P": 17}),
    ("step", (1, 3, 5, 6), {"call": "step"}),
    ("extended", (9, 12, 31, 72), {"resets": 0.2}),
    ("extended", (11, 9, 24, 40), {"directions": 2, "packed": True, "call": "lengths"}),
)
_CHECKED_MORE = (
    ("plain", (3, 256, 40, 1024), {}),  # a library product a step
    ("plain", (2, 20, 64, 1152), {}),  # too large for a cluster
    ("plain", (5, 9, 31, 72), {"directions": 2, "call": "save"}),
    ("layers", (256, 4, 24, 64), {"layers": 3}),  # long enough for chunks of time
    ("extended", (9, 12, 31, 72), {"call": "all_states"}),
)
_TIMED = (
    ("plain", (1, 1, 256, 256), {}),
    ("plain", (64, 32, 128, 128), {}),
    ("plain", (64, 64, 512, 512), {}),
    ("step", (1, 64, 512, 512), {"call": "step"}),
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
    ("step", (1, 1, 256, 256), {"call": "step"}),
    ("step", (1, 256, 1024, 1024), {"call": "step"}),
)


class Shape(NamedTuple):
    """A case of a variant of a call. What is not ``timed`` is run as long as it takes to check it."""

    variant: str
    timed: bool
    case: Case


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
                yield kind, precision, Shape(variant, is_timed, Case(cell.layer, *sizes, **fixed, **more))
