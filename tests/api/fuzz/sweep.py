"""The sweep: faults that there once were, every kind of tensor in every place, initial states of every form."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from random import Random

from fastrnn.registry import CELLS

from .cases import HX, Case, drawn, kinds_of, slots_of
from .kinds import KINDS, OBJECTS, SIZES

SHAPE = {"B": 3, "I": 4, "H": 6}
ALL, STEPS, BACKENDS = [*CELLS], [False, True], [None, "reference", "cpu"]
OTHERS = [cell for cell in ALL if cell != "LSTM"]
STATES = ["h", "c", "states"]
GRADS = ["output grad", "h_n grad", "c_n grad", "grads"]
WEIGHTS = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weights"]
PLACES = ["input", *STATES, *WEIGHTS, "weight_hr", "all", "sizes", *GRADS]
OF_LSTMS = ("c", "states", "weight_hr", "c_n grad")
STACK = {"layers": 2, "directions": 2}
FORMS = (
    {},
    {**STACK, "batch_first": True},
    {"form": "unbatched"},
    {"form": "packed"},
    {"step": True},
    {"step": True, "form": "unbatched"},
)
SPARSE_STATES = [f"{place}:{kind}" for place in STATES for kind in ("coo", "csr")]
ODD_STATES = [f"{place}:{kind}" for place in STATES for kind in SIZES | OBJECTS]
AUTOCAST = {"cell": ALL, "context": ["autocast-bfloat16", "autocast-float16"]}
GRIDS = (
    # What ended the process, came out wrong or was refused at some time.
    {"cell": ALL, "step": True, "odd": "h:coo", "context": "vjp"},
    {"cell": ALL, "step": True, "odd": "input:coo", "hx": ["right", "absent"], "wants": "nothing", "backend": BACKENDS},
    {"cell": ALL, "step": True, "odd": ["bias_ih:None", "bias_hh:None"]},
    {"cell": ALL, "form": "packed", "odd": ["h:nested", "c:nested"], "values": [0, 1, 2]},
    {"cell": ALL, "odd": [f"{place}:coo" for place in GRADS], "dtype": ["float32", "bfloat16"], "backend": BACKENDS},
    {"cell": ALL, "odd": "weight_ih:coo", "route": "functional", "dtype": "bfloat16", "backend": "reference"},
    {"cell": ALL, "odd": "input:negative h:inference", "extras": "lengths", "dtype": "float64"},
    {"cell": ALL, "step": True, "odd": "input:negative", "dtype": "float64", "context": "jacfwd"},
    {"cell": ALL, "form": "packed", "odd": "input:coo", "context": "dispatch-mode", "wants": "nothing"},
    {"cell": ALL, "odd": "input:stored", "context": "dispatch-mode", "wants": "nothing", "backend": "reference"},
    {"cell": ALL, "odd": "input:mkldnn", "hx": "absent", "dtype": ["float32", "bfloat16"]},
    {"cell": ALL, "form": "packed", "layers": [1, 2], "odd": "input:coo", "hx": "absent", "wants": "nothing"},
    {"cell": ALL, **STACK, "odd": SPARSE_STATES, "extras": ["none", "lengths"], "backend": [None, "reference"]},
    {"cell": ALL, "step": STEPS, "odd": [f"{place}:meta" for place in WEIGHTS], "wants": "nothing"},
    {"cell": ALL, "dtype": ["complex64", "complex128"], "extras": ["none", "lengths"]},
    {"cell": ALL, "bias": False, "odd": "all:inference", "route": "data", "dtype": "float64", "backend": BACKENDS},
    # Under autocast; it touches floating-point types but float64, and beside them no other type may stand.
    {**AUTOCAST, "step": STEPS, "odd": ["input:plain-subclass", "weight_hh:plain-subclass"], "route": "attribute"},
    {**AUTOCAST, "cell": OTHERS, "odd": "weight_hh:plain-subclass", "route": "attribute", "extras": "lengths"},
    {**AUTOCAST, "step": STEPS, "dtype": ["float64", "complex64", "complex128"], "backend": BACKENDS},
    {**AUTOCAST, "cell": "LSTM", "P": 2, "dtype": ["float64", "complex64"]},
    {**AUTOCAST, "form": ["batched", "packed"],
     "odd": [f"{place}:{kind}" for place in ("input", "h") for kind in ("float64", "complex64", "int64", "bool")]},
    # Initial states of every form.
    *({"cell": ALL, **form, "hx": [*HX]} for form in FORMS),
    *({"cell": ALL, **form, "odd": ODD_STATES} for form in FORMS),
)  # fmt: skip


def _of_grid(grid: dict) -> Iterator[Case]:
    """All combinations; a list holds the alternatives of a field."""
    for values in product(*(value if isinstance(value, list) else [value] for value in grid.values())):
        fields = dict(zip(grid, values))
        odd = tuple(tuple(part.split(":")) for part in fields.pop("odd", "").replace(" grad", "_grad").split())
        case = Case(
            **SHAPE | {"T": 1 if fields.get("step") else 5} | fields,
            odd=tuple((place.replace("_grad", " grad"), kind) for place, kind in odd),
        )
        if all(place in slots_of(case) for place, _ in case.odd):
            yield case


_GRIDS = [case for grid in GRIDS for case in _of_grid(grid)]
_PLACES = [
    (place, kind, cell)
    for place, kind, cell in product(PLACES, KINDS, ALL)
    if kind in kinds_of(place, "batched") and (cell == "LSTM" or place not in OF_LSTMS)
]
COUNT = len(_GRIDS) + len(_PLACES)


def of_index(index: int) -> Case:
    """A combination of a grid; behind these a kind in a place of a call to a cell, whose other fields are drawn."""
    if index < len(_GRIDS):
        return _GRIDS[index]
    (place, kind, cell), rng = _PLACES[index - len(_GRIDS)], Random(index)
    while True:
        hx = rng.choice(("right", "right", "absent"))
        case = drawn(rng, cell=cell, step=rng.random() < 0.5, hx=hx, odd=((place, kind),))
        if place in slots_of(case) and kind in kinds_of(place, case.form):
            return case
