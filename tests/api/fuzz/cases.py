"""The cases: what is drawn, and the n-th case of a seed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fastrnn.registry import CELLS

from .contexts import SLOW
from .kinds import DENSE, KINDS, LAYOUTS, STRANGE
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
ROUTES = (*["parameter"] * 6, "functional", "functional", "attribute", "data")
seldom = st.integers(0, 9).map(lambda n: n == 5)
usually = seldom.map(lambda value: not value)


def _weighted(*choices) -> st.SearchStrategy:
    """Of (weight, value) pairs."""
    return st.sampled_from([value for weight, value in choices for _ in range(weight)])


@st.composite
def _odd(draw, slots: dict[str, int], is_packed: bool) -> tuple[str, str]:
    slot = draw(_weighted(*((weight, slot) for slot, weight in slots.items())))
    if slot in INCOMING:
        return slot, draw(st.sampled_from(sorted(DENSE | STRANGE)))
    if slot == "sizes":
        # torch reads batch_sizes without their strides.
        layouts = ("offset", "permuted", "computed") if is_packed else sorted(LAYOUTS)
        return slot, draw(st.sampled_from([*layouts, "int32", "int64", "bool", "meta", "numpy", "list", "longer"]))
    return slot, draw(st.sampled_from(sorted(KINDS)))


def _slots(lstm: bool, step: bool, bias: bool, proj: bool, has_states: bool, has_sizes: bool) -> dict[str, int]:
    """The arguments that a call has, with how often each is to be odd."""
    slots = {"input": 5, "weight_ih": 2, "weight_hh": 2, "weights": 3, "all": 2, "output grad": 1, "grads": 1}
    if bias:
        slots |= {"bias_ih": 1, "bias_hh": 1}
    if proj:
        slots |= {"weight_hr": 2}
    if has_states:
        slots |= {"h": 3, **({"c": 3, "states": 2} if lstm else {})}
    if has_sizes:
        slots |= {"sizes": 3}
    if not step or lstm:
        slots |= {"h_n grad": 1, **({"c_n grad": 1} if lstm else {})}
    return slots


@st.composite
def cases(draw) -> Case:
    values = draw(st.integers(0, 999))  # first, for the second example differs from the simplest in what is drawn first
    cell = CELLS[draw(st.sampled_from(sorted(CELLS)))]
    step = draw(_weighted((3, False), (1, True)))
    H = draw(st.one_of(st.integers(1, 6), st.sampled_from([8, 15, 16, 17, 33])))
    B = draw(_weighted((6, 3), (2, 1), (3, 2), (1, 17), (1, 0)))
    mode = draw(_weighted((3, "plain"), (5, "odd"), (4, "context"), (3, "both"), (2, "hx")))
    forms = ("batched", "unbatched") if step else ("batched", "batched", "unbatched", "packed", "unsorted")
    form = draw(st.sampled_from(forms))
    extras = "none"
    if not step and form == "batched":
        extras = draw(_weighted((8, "none"), (1, "lengths"), (1, "resets"), (1, "both")))
    hx = draw(st.sampled_from(HX)) if mode == "hx" else draw(_weighted((4, "right"), (1, "absent")))
    bias, context, odd = draw(usually), "plain", ()
    P = draw(st.integers(1, H - 1)) if cell.mode == "LSTM" and not step and H > 1 and draw(seldom) else 0
    if mode in ("odd", "both") or (mode == "hx" and draw(seldom)):
        is_packed = form in ("packed", "unsorted")
        slots = _slots(cell.mode == "LSTM", step, bias, P > 0, hx != "absent", is_packed or extras != "none")
        odd = tuple(
            dict(
                draw(st.lists(_odd(slots, is_packed), min_size=1, max_size=draw(_weighted((6, 1), (2, 2), (1, 3)))))
            ).items()
        )
    if mode in ("context", "both"):
        context = draw(_weighted(*[(1 if name in SLOW else 4, name) for name in sorted(CONTEXTS)]))
    if context in ("checkpoint-reentrant", "fx"):
        extras = "none"  # torch's side would pack, and the checkpoint would see no tensor; a trace has its arguments
    dtype = _weighted(
        (10, "float32"), (4, "float64"), (3, "bfloat16"), (2, "float16"), (1, "complex64"), (1, "complex128")
    )
    case = Case(
        cell=cell.mode,
        step=step,
        layers=1 if step else draw(_weighted((3, 1), (2, 2))),
        directions=1 if step else draw(_weighted((2, 1), (1, 2))),
        bias=bias,
        batch_first=not step and draw(st.booleans()),
        T=1 if step else draw(_weighted((4, 2), (4, 5), (2, 1), (2, 9), (1, 0))),
        B=B,
        I=draw(_weighted((6, 3), (3, 5), (2, 1), (1, 16), (int(step), 0))),
        H=H,
        P=P,
        dtype=draw(dtype),
        form=form,
        hx=hx,
        extras=extras,
        odd=odd,
        route=draw(st.sampled_from(ROUTES if step else (*ROUTES, "flat"))),
        wants=draw(_weighted((6, "all"), (1, "nothing"), (1, "input"), (1, "weights"), (1, "states"), (3, "some"))),
        asks=draw(_weighted((6, "all"), (2, "output"), (2, "states"))),
        context=context,
        backend=draw(_weighted((6, None), (1, "reference"))) if context not in SLOW else None,
        convert=draw(st.booleans()),
        values=values,
    )  # fmt: skip
    kinds = {kind for _, kind in odd}
    if kinds & {"functional", "logged", "stored"} and case.route == "data":
        case = replace(case, route="parameter")  # it would have other memory than its values, or none
    if kinds & {"logged", "stored"} and case.dtype.startswith("complex"):
        return replace(case, dtype="float64")  # torch loses conjugates inside wrappers: t * t has a wrong gradient
    return case


def drawn(number: int, index: int) -> Case:
    """The case of this index among those of a seed, however many there are.

    A search of its own for each: hypothesis begins with the simplest example there is, and varies what it had before.
    """
    found: list[Case] = []

    @seed(number * 1_000_003 + index)
    @settings(
        max_examples=2,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def collect(case):
        found.append(case)

    collect()
    return found[-1]
