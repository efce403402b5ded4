"""The cases: what is drawn, and the n-th case of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random

from fastrnn.registry import CELLS

from .contexts import SLOW
from .kinds import DENSE, KINDS, LAYOUTS, STRANGE
from .sides import PACKED
from .transforms import CONTEXTS


@dataclass(frozen=True)
class Case:
    """One call. ``odd`` pairs arguments with kinds of tensors, ``wants`` says what requires gradients, ``asks`` which
    results are differentiated, ``route`` how the weights get into the module."""

    cell: str
    step: bool = False
    layers: int = 1
    directions: int = 1
    bias: bool = True
    batch_first: bool = False
    T: int = 1
    B: int = 1
    I: int = 1
    H: int = 1
    P: int = 0
    dtype: str = "float32"
    form: str = "batched"
    hx: str = "right"
    extras: str = "none"
    odd: tuple[tuple[str, str], ...] = ()
    route: str = "parameter"
    wants: str = "all"
    asks: str = "all"
    context: str = "plain"
    backend: str | None = None
    convert: bool = False
    values: int = 0

    def __str__(self) -> str:
        given = [(f.name, getattr(self, f.name)) for f in fields(self)]
        standard = {f.name: f.default for f in fields(self)}
        return " ".join(
            f"{name}={'+'.join(':'.join(pair) for pair in value) if name == 'odd' else value}"
            for name, value in given
            if value != standard[name] or name in "TBIH"
        )


INCOMING = ("output grad", "h_n grad", "c_n grad", "grads")
HX = (
    "list", "tuple", "nested", "numpy", "None inside", "too many", "too few", "none at all", "swapped", "stacked",
    "generator", "dictionary", "string", "number", "same twice",
)  # fmt: skip
WIDE = (8, 15, 16, 17, 33)  # the vectors of kernels and their rests
ROUTES = {"parameter": 6, "functional": 2, "attribute": 1, "data": 1}


def slots_of(case: Case) -> dict[str, int]:
    """The arguments that a call has, with how often each is to be odd."""
    lstm = case.cell == "LSTM"
    slots = {"input": 5, "weight_ih": 2, "weight_hh": 2, "weights": 3, "all": 2, "output grad": 1, "grads": 1}
    if case.bias:
        slots |= {"bias_ih": 1, "bias_hh": 1}
    if case.P:
        slots |= {"weight_hr": 2}
    if case.hx != "absent":
        slots |= {"h": 3, **({"c": 3, "states": 2} if lstm else {})}
    if case.form in PACKED or case.extras != "none":
        slots |= {"sizes": 3}
    if not case.step or lstm:
        slots |= {"h_n grad": 1, **({"c_n grad": 1} if lstm else {})}
    return slots


def kinds_of(slot: str, form: str) -> list[str]:
    """What such an argument may be."""
    if slot in INCOMING:
        return [*DENSE, *STRANGE]
    if slot != "sizes":
        return [*KINDS]
    # torch reads batch_sizes without their strides.
    layouts = ("offset", "permuted", "computed") if form in PACKED else LAYOUTS
    return [*layouts, "int32", "int64", "bool", "meta", "numpy", "list", "longer"]


def drawn(rng: Random, **fixed) -> Case:
    """A random call, but for the fields in ``fixed``."""

    def one_of(choices: Sequence | dict):
        """One of a sequence, or of a dictionary of weights."""
        return rng.choices([*choices], [*choices.values()] if isinstance(choices, dict) else None)[0]

    def pick(field: str, choices: Sequence | dict):
        return fixed[field] if field in fixed else one_of(choices)

    cell, step, H = pick("cell", [*CELLS]), pick("step", {False: 3, True: 1}), pick("H", (*range(1, 7), *WIDE))
    mode = one_of({"plain": 3, "odd": 5, "context": 4, "both": 3, "hx": 2})
    form = pick(
        "form", ("batched", "unbatched") if step else {"batched": 2, "unbatched": 1, "packed": 1, "unsorted": 1}
    )
    context = "plain"
    if mode in ("context", "both"):
        context = pick("context", {name: 1 if name in SLOW else 4 for name in CONTEXTS})
    # Under those torch's side would pack, and the checkpoint would see no tensor; a trace has its arguments.
    has_extras = not step and form == "batched" and context not in ("checkpoint-reentrant", "fx")
    case = Case(
        cell=cell,
        step=step,
        layers=1 if step else pick("layers", {1: 3, 2: 2}),
        directions=1 if step else pick("directions", {1: 2, 2: 1}),
        bias=pick("bias", {True: 9, False: 1}),
        batch_first=not step and pick("batch_first", (False, True)),
        T=1 if step else pick("T", {2: 4, 5: 4, 1: 2, 9: 2, 0: 1}),
        B=pick("B", {3: 6, 1: 2, 2: 3, 17: 1, 0: 1}),
        I=pick("I", {3: 6, 5: 3, 1: 2, 16: 1, 0: int(step)}),
        H=H,
        P=0 if step or cell != "LSTM" or H == 1 else pick("P", {0: 9, rng.randrange(1, H): 1}),
        dtype=pick(
            "dtype", {"float32": 10, "float64": 4, "bfloat16": 3, "float16": 2, "complex64": 1, "complex128": 1}
        ),
        form=form,
        hx=pick("hx", HX if mode == "hx" else {"right": 4, "absent": 1}),
        extras=pick("extras", {"none": 8, "lengths": 1, "resets": 1, "both": 1}) if has_extras else "none",
        route=pick("route", ROUTES if step else {**ROUTES, "flat": 1}),
        wants=pick("wants", {"all": 6, "some": 3, "nothing": 1, "input": 1, "weights": 1, "states": 1}),
        asks=pick("asks", {"all": 6, "output": 2, "states": 2}),
        context=context,
        backend=None if context in SLOW else pick("backend", {None: 6, "cpu": 1, "reference": 1}),
        convert=pick("convert", (False, True)),
        values=fixed.get("values", rng.randrange(1000)),
    )
    odd = fixed.get("odd", ())
    if "odd" not in fixed and (mode in ("odd", "both") or (mode == "hx" and rng.random() < 0.1)):
        slots = [one_of(slots_of(case)) for _ in range(one_of({1: 6, 2: 2, 3: 1}))]
        odd = tuple({slot: one_of(kinds_of(slot, form)) for slot in slots}.items())
    return possible(replace(case, odd=odd))


def possible(case: Case) -> Case:
    """The case, or the next that torch can be measured on."""
    kinds = {kind for _, kind in case.odd}
    if kinds & {"functional", "logged", "stored"} and case.route == "data":
        case = replace(case, route="parameter")  # it would have other memory than its values, or none
    if kinds & {"logged", "stored"} and case.dtype.startswith("complex"):
        case = replace(case, dtype="float64")  # torch loses conjugates inside wrappers: t * t has a wrong gradient
    if case.context in ("jacrev", "jacobian"):
        case = replace(case, B=min(case.B, 3))  # the truth goes row by row, and each keeps a Jacobian
    return case


def of_seed(seed: int | str, index: int) -> Case:
    """The case of this index among those of a seed, however many there are."""
    return drawn(Random(f"{seed} {index}"))
