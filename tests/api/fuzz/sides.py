"""A module of either library, or the truth, with the arguments of a case."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.registry import CELLS

from .kinds import KINDS, Kind

STRUCTURE = " of type"
"""Ends the names of results that are types."""


PACKED = ("packed", "unsorted")
SIZES = ("batch_sizes", "lengths", "reset_mask")
GROUPS = {"states": ("h", "c"), "sizes": SIZES, "grads": ("output grad", "h_n grad", "c_n grad")}


def base(case, name: str, shape: tuple[int, ...]) -> Tensor:
    """The values of a tensor: multiples of 1/64 that every type holds exactly; none of them negative for relu, whose
    slope would depend on rounding where sums come near 0."""
    generator = torch.Generator().manual_seed(case.values * 2**32 + crc32(name.encode()))
    is_weight = name.startswith(("weight", "bias"))
    low, high = (-24, 25) if is_weight else (-63, 64)
    if case.cell == "RNN_RELU":
        low, high = 0, (9 if is_weight else 64)
    elif case.dtype.startswith("complex"):
        low, high = low // 4, high // 4  # away from the poles of tanh and sigmoid

    def draw():
        return torch.randint(low, high, shape, generator=generator).double() / 64

    return torch.complex(draw(), draw()) if case.dtype.startswith("complex") else draw()


def kind_of(case, name: str) -> Kind | None:
    for slot, kind in case.odd:
        covered = GROUPS.get(slot, (slot,))
        if name in covered or name == f"{slot}_l0" or (slot == "weights" and name.startswith(("weight", "bias"))):
            return KINDS[kind]
        if slot == "all" and not name.endswith("grad") and name not in SIZES:
            return KINDS[kind]
    return None


def wants(case, name: str) -> bool:
    group = "weights" if name.startswith(("weight", "bias")) else "states" if name in ("h", "c") else name
    if case.wants == "some":
        return crc32(f"{case.values} {name}".encode()) % 5 > 1
    return case.wants in ("all", group)


def can_want(case, name: str) -> bool:
    """As :func:`wants`, of a tensor that can require gradients at all."""
    kind = kind_of(case, name)
    return wants(case, name) and not (kind is KINDS["inference"] or kind is KINDS["quantised"])


def named(result) -> dict[str, Any]:
    """Every tensor in a result by its place, and the types of what they stand in."""
    found: dict[str, Any] = {}

    def walk(value, place: str) -> None:
        if isinstance(value, PackedSequence):
            found[place + STRUCTURE] = type(value).__name__
            for field, part in zip(value._fields, value):
                walk(part, f"{place}.{field}")
        elif isinstance(value, (tuple, list)):
            found[place + STRUCTURE] = type(value).__name__
            for index, part in enumerate(value):
                walk(part, f"{place}.{index}")
        else:
            found[place] = value

    walk(result, "result")
    return found


def _states(form: str, states: list) -> Any:
    h, c = states[0], states[-1]
    forms = {
        "right": lambda: states[0] if len(states) == 1 else tuple(states),
        "list": lambda: states,
        "tuple": lambda: tuple(states),
        "nested": lambda: (tuple(states),),
        "numpy": lambda: h.detach().numpy() if len(states) == 1 else [s.detach().numpy() for s in states],
        "None inside": lambda: (*states[:-1], None),
        "too many": lambda: (*states, c),
        "too few": lambda: tuple(states[:-1]),
        "none at all": lambda: (),
        "swapped": lambda: tuple(reversed(states)),
        "stacked": lambda: torch.stack((h, h)),
        "generator": lambda: (s for s in states),
        "dictionary": lambda: {"h": h, "c": c},
        "string": lambda: "hx",
        "number": lambda: 0.0,
        "same twice": lambda: (h, h),
    }
    return forms[form]()


class Side:
    """What a context needs: the leaves, the arguments made of them, and a call from arguments to results."""

    is_exact = False

    def __init__(self, case, space) -> None:
        self.case, self.space, self.cell = case, space, CELLS[case.cell]
        self.dtype = getattr(torch, case.dtype)
        self.wrap = lambda run: run
        self.leaves: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}
        self._sizes()
        self.module = self._module()
        for name, shape in self._shapes().items():
            self._argument(name, base(case, name, shape))
        self._weights()

    def _sizes(self) -> None:
        case = self.case
        is_packed = case.form in PACKED
        self.T, self.B = (max(1, size) if is_packed else size for size in (case.T, case.B))
        generator = torch.Generator().manual_seed(case.values)
        lengths = torch.randint(min(1, self.T), self.T + 1, (self.B,), generator=generator)
        if case.extras not in ("lengths", "both") and not is_packed:
            lengths = torch.full((self.B,), self.T)
        if is_packed:
            lengths[0] = self.T
        self.lengths = lengths if case.form == "unsorted" or not is_packed else lengths.sort(descending=True)[0]
        self.resets = torch.rand(self.B, self.T, generator=generator) < 0.3
        if case.extras not in ("resets", "both"):
            self.resets = torch.zeros_like(self.resets)
        if is_packed:
            is_sorted = case.form == "packed"
            packed = pack_padded_sequence(torch.empty(self.T, self.B, 1), self.lengths, enforce_sorted=is_sorted)
            self.packing, self.steps = packed[1:], int(self.lengths.sum())

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        case, T, B = self.case, self.T, self.B
        rows, widths = case.layers * case.directions, (case.P or case.H, case.H)[: self.cell.states]
        if case.step:
            batch = (B,) if case.form == "batched" else ()
            states = [(*batch, case.H) for _ in widths]
            return {"input": (*batch, case.I), **dict(zip("hc", states))}
        if case.form == "unbatched":
            return {"input": (T, case.I), **{n: (rows, width) for n, width in zip("hc", widths)}}
        x = (B, T, case.I) if case.batch_first else (T, B, case.I)
        x = x if case.form == "batched" else (self.steps, case.I)
        return {"input": x, **{n: (rows, B, width) for n, width in zip("hc", widths)}}

    def _module(self) -> nn.Module:
        case = self.case
        options = {"bias": case.bias, "dtype": self.dtype}
        if self.cell.nonlinearity:
            options["nonlinearity"] = self.cell.nonlinearity
        if not case.step:
            options |= {"num_layers": case.layers, "bidirectional": case.directions == 2}
            options |= {"batch_first": case.batch_first} | ({"proj_size": case.P} if case.P else {})
        space = nn if case.convert else self.space
        module = getattr(space, self.cell.step if case.step else self.cell.layer)(case.I, case.H, **options)
        if case.convert and self.space is fastrnn:
            fastrnn.convert_(module)
        return module

    def _made(self, name: str, values: Tensor) -> tuple[Any, Any]:
        """A leaf and the argument made of it."""
        kind, values = kind_of(self.case, name), values.to(self.dtype)
        if kind is None or kind.recorded:
            leaf = values.requires_grad_(wants(self.case, name))
            return leaf, leaf if kind is None else kind.make(leaf)
        made = kind.make(values)
        if isinstance(made, Tensor) and (made.is_floating_point() or made.is_complex()) and not made.is_inference():
            made.requires_grad_(wants(self.case, name))
        return made, made

    def _argument(self, name: str, values: Tensor) -> None:
        self.leaves[name], self.arguments[name] = self._made(name, values)

    def _weights(self) -> None:
        route, module = self.case.route, self.module
        for name, parameter in list(module.named_parameters()):
            values = base(self.case, name, tuple(parameter.shape))
            with torch.no_grad():
                parameter.copy_(values)
            if route in ("functional", "attribute", "flat"):
                self._argument(name, values)
                continue
            made = self._made(name, values)[1]
            wanted = parameter.requires_grad_(wants(self.case, name)).requires_grad
            if route == "data":
                parameter.data = made.detach()
            elif kind_of(self.case, name) is not None:
                is_leaf = isinstance(made, Tensor)
                setattr(module, name, nn.Parameter(made.detach(), requires_grad=wanted) if is_leaf else made)
            self.leaves[name] = self.arguments[name] = getattr(module, name)

    def _runner(self, arguments: dict[str, Any]):
        """The module as a function of its input, with the weights of ``arguments`` in it."""
        module, route = self.module, self.case.route
        weights = {name: v for name, v in arguments.items() if name.startswith(("weight", "bias"))}
        if route == "attribute":
            for name, value in weights.items():
                if hasattr(module, name):
                    delattr(module, name)
                setattr(module, name, value)
            return module
        if route == "flat" and not self.case.step:
            module._flat_weights = [weights[name] for name in module._flat_weights_names]
            return module
        own = dict(module.named_parameters())
        weights = {name: value for name, value in weights.items() if value is not own.get(name)}
        if not weights:
            return module
        return lambda *args, **kwargs: functional_call(module, weights, args, kwargs)

    def _size(self, name: str, values):
        kind = kind_of(self.case, name)
        with unset_fake_temporarily() as mode:  # that mode takes no real tensors
            made = values if kind is None else kind.make(values)
            return made if mode is None or not isinstance(made, Tensor) else mode.from_tensor(made)

    def call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """All results by name."""
        run, x, args = self.wrap(self._runner(arguments)), arguments["input"], []
        if self.case.form in PACKED:
            batch_sizes, *orders = self.packing
            x = PackedSequence(x, self._size("batch_sizes", batch_sizes), *orders)
        if self.case.hx != "absent":
            args = [_states(self.case.hx, [arguments[name] for name in "hc"[: self.cell.states]])]
        return named(self._run(run, x, args))

    def _run(self, run, x, args):
        asked = {}
        if self.case.extras in ("lengths", "both"):
            asked["lengths"] = self._size("lengths", self.lengths)
        if self.case.extras in ("resets", "both"):
            asked["reset_mask"] = self._size("reset_mask", self.resets)
        return run(x, *args, **asked)


class Torchs(Side):
    """torch.nn's module; lengths by packing. It knows no resets: with them only types and errors are comparable."""

    def __init__(self, case) -> None:
        super().__init__(case, nn)

    def _run(self, run, x, args):
        if self.case.extras == "none" or self.B == 0:  # it packs no empty batch
            return run(x, *args)
        lengths, first = self._size("lengths", self.lengths), self.case.batch_first
        output, hn = run(pack_padded_sequence(x, lengths, first, enforce_sorted=False), *args)
        return pad_packed_sequence(output, first, total_length=self.T)[0], hn
