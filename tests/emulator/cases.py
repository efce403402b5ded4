"""Layer calls with random arguments, and what they must give: for the emulator and for a GPU alike.

Error budget: the error of a tensor, in the 2-norm, is at most BUDGET[precision] times the precision's unit of
rounding times the norm of the float64 result (a result whose typical value is under 0.1 counts as if it were 0.1).
The budgets are about twice what the emulator needs; for tf32 five times, because on a GPU the library rounds to tf32
as well, and the emulator's does not.
"""

import contextlib
import hashlib
import itertools
import math

import pytest
import torch
from support import backward_arguments, forward_arguments

from fastrnn._backends import graph
from fastrnn._spec import STATES

from . import oracle

DTYPES = {"float64": torch.float64, "float32": torch.float32, "tf32": torch.float32}
DTYPES |= {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NUMBER = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
ROUNDING = {"float64": 2**-53, "float32": 2**-24, "tf32": 2**-11, "bfloat16": 2**-8, "float16": 2**-11}
BUDGET = {"float64": 16, "float32": 16, "tf32": 12, "bfloat16": 8, "float16": 8}

EXPECTED = {}  # results by the formulas

# (name, how to ask for it, precisions it exists in): every kernel that a step can run on.
KERNELS = [
    ("update", {"fused": False}, ["float64", "float32", "bfloat16", "float16"]),
    ("fma8", {"fused": True, "rows": 8}, ["float64", "float32"]),
    ("fma16", {"fused": True, "rows": 16}, ["float32"]),
    ("mma8", {"fused": True, "tensor_cores": True, "rows": 8}, ["tf32", "bfloat16", "float16"]),
    ("mma32", {"fused": True, "tensor_cores": True, "rows": 32}, ["tf32", "bfloat16", "float16"]),
]
# The same for the kernels that run a whole sequence: (name, how to ask for it, precisions it exists in).
MMA = ["tf32", "bfloat16", "float16"]
RESIDENT = [
    ("cta4", {"tier": "cta", "rows": 4}, ["float32", *MMA]),
    ("cta8", {"tier": "cta", "rows": 8}, ["float32", *MMA]),
    ("cluster8", {"tier": "cluster", "rows": 8, "units": 8}, ["float32", *MMA]),
    ("cluster32", {"tier": "cluster", "rows": 32}, MMA),
    ("grid8", {"tier": "grid", "rows": 8, "units": 8}, ["float32", *MMA]),
    ("grid32", {"tier": "grid", "rows": 32}, MMA),
]
BY_NAME = {name: form for name, form, _ in KERNELS + RESIDENT}

# T B I H: one step; an odd H with rows of the last member missing; more rows than a tile, aligned rows.
RESIDENT_SHAPES = [(1, 2, 1, 33), (4, 3, 2, 17), (3, 33, 3, 40)]
# T B I H: one element; rows and units that fill no tile; more rows than a tile; 16-byte rows that end inside a chunk.
SHAPES = [(1, 1, 1, 1), (3, 3, 2, 17), (2, 33, 3, 3), (2, 17, 1, 33), (2, 9, 3, 40)]


@contextlib.contextmanager
def fp32_precision(name, matmul=None):
    """torch's precision of float32 products, in layers and, if it is to be another one, in matmul."""
    knobs = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [knob.fp32_precision for knob in knobs]
    try:
        for knob, value in zip(knobs, (name, matmul or name)):
            knob.fp32_precision = value
        yield
    finally:
        for knob, value in zip(knobs, before):
            knob.fp32_precision = value


def check_error(name, got, want, precision, slack=1):
    """That a tensor is within the budget of the result in float64."""
    scale = max(want.norm().item(), 0.1 * math.sqrt(want.numel())) * ROUNDING[precision]
    error = (got.double() - want).norm().item() / scale
    assert error <= BUDGET[precision] * slack, f"{name}: {error:.1f} units of rounding"


class Layer:
    """Random arguments of a layer call, and the results that the formulas give for them.

    lengths: a list, with NaN and infinity in the padding; resets: (B, T) of bool; cells: the other states of every step
    too, where the cell has any; masked: with an operand mask, which drops two in five; rates: of zoneout, in a sequence
    that began `first_step` steps before, or its expectation; save: what a forward keeps that is not told otherwise.
    """

    def __init__(
        self,
        cell,
        precision,
        shape,
        directions=1,
        packed=False,
        biased=True,
        projection=None,
        seed=0,
        lengths=None,
        resets=None,
        forwards=None,
        cells=False,
        masked=False,
        rates=(),
        expectation=False,
        first_step=0,
        save=1,
    ):
        T, B, I, H = shape
        R, G, D = projection or H, oracle.GATES[cell], directions
        self.cell, self.dtype, self.precision = cell, DTYPES[precision], precision
        self.biased, self.projected, self.D, self.R, self.save = biased, projection is not None, D, R, save
        self.random = torch.Generator().manual_seed(seed)
        self.lengths = sorted((1 + (b * 7 + seed) % T for b in range(B)), reverse=True) if packed else [T] * B
        self.lengths[0] = T
        self.schedule = {} if forwards is None else {"forwards": forwards}
        if lengths is not None:
            self.lengths, self.schedule["lengths"] = lengths, torch.tensor(lengths)
        if resets is not None:
            self.schedule["resets"] = torch.as_tensor(resets)
        self.cells = cells and oracle.STATES[cell] > 1
        self.batch_sizes = torch.tensor([sum(n > t for n in self.lengths) for t in range(T)]) if packed else None
        self.kept = torch.tensor([[t < n for n in self.lengths] for t in range(T)])
        self.kept_rows = self.kept.flatten().nonzero().flatten()
        self.x = self.draw(T, B, I)
        self.hx = [self.draw(D, B, R if k == 0 else H) for k in range(oracle.STATES[cell])]
        if oracle.MODES[cell].startswith("SLSTM"):
            self.hx[2] = self.hx[2].abs() + 1  # a sum of exponentials
        recurrent = oracle.MODES[cell] not in oracle.WITHOUT_W_HH
        sizes = [(G * H, I)] + [(G * H, R)] * recurrent + [(G * H,)] * (2 * biased) + [(R, H)] * self.projected
        sizes += oracle.param_sizes(cell, H)
        if masked:
            kept = torch.rand(D, B, R, generator=self.random) < 0.6
            self.schedule["mask"] = (kept / 0.6).to(self.dtype)
        if rates:
            self.schedule |= {"rates": rates, "first_step": first_step}
            if not expectation:
                self.schedule["seeds"] = torch.randint(2**63 - 1, (D, B), generator=self.random)
        self.weights = [self.draw(*size) / math.sqrt(H) for _ in range(D) for size in sizes]
        if oracle.MODES[cell] in ("RNN_RELU", "IND_RNN") and biased:
            self.stay_off_the_kink(1 + recurrent)
        self.grad_output = self.draw(T, B, D * R)
        self.grad_hn = [self.draw(*h.shape) for h in self.hx]
        self.grad_cells = [self.draw(T, B, D * H) for _ in self.hx[1:]] if self.cells else []
        if oracle.MODES[cell].startswith("SLSTM") and self.dtype.itemsize == 2:
            # m is a maximum, by which c and n are scaled and h is not: within rounding of the kink their gradients
            # are a matter of luck.
            for grad in (*self.grad_hn[1:], *self.grad_cells):
                grad.zero_()
        for tensor in (self.x, self.grad_output, *self.grad_cells):
            nothing = torch.tensor([math.nan, math.inf]).repeat(tensor.size(2))
            tensor[~self.kept] = nothing[: tensor.size(2)].to(self.dtype)

    def draw(self, *size):
        return torch.randn(size, generator=self.random).to(self.dtype)

    def stay_off_the_kink(self, bias):
        """Within rounding of zero a relu's slope is a matter of luck: let the bias, the weight at that place, decide
        the sign."""
        for w in self.weights:
            w *= 0.2
        for b_ih in self.weights[bias::4]:
            b_ih += torch.tensor([1.0, -1.0]).repeat(len(b_ih))[: len(b_ih)]

    def to(self, device):
        """The same layer, all tensors but batch_sizes there."""
        return self.each(lambda t: t.to(device))

    def each(self, change):
        """The same layer, with ``change`` of every tensor but batch_sizes in its place."""
        self.schedule = {name: change(t) if isinstance(t, torch.Tensor) else t for name, t in self.schedule.items()}
        for name in ("x", "grad_output", "kept", "kept_rows"):
            setattr(self, name, change(getattr(self, name)))
        for name in ("hx", "weights", "grad_hn", "grad_cells"):
            setattr(self, name, [change(t) for t in getattr(self, name)])
        return self

    def rows(self, tensor):
        """As a PackedSequence has them. By number, because to index with a mask would wait for a GPU."""
        return tensor if self.batch_sizes is None else tensor.flatten(0, 1).index_select(0, self.kept_rows)

    def expected(self):
        """output, hn, grad_x, grad_hx, grad_weights in float64; kept, for many kernels are given the same layer."""
        tensors = [self.x, *self.hx, *self.weights, self.grad_output, *self.grad_hn, *self.grad_cells]
        tensors += [t for t in self.schedule.values() if isinstance(t, torch.Tensor)]
        options = [value for value in self.schedule.items() if not isinstance(value[1], torch.Tensor)]
        facts = self.cell, self.biased, self.projected, self.lengths, self.batch_sizes is None, self.schedule.keys()
        described = repr((facts, options, [(t.shape, t.dtype, t.device) for t in tensors])).encode()
        values = [t.cpu().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]
        key = hashlib.sha256(b"".join([described, *values])).digest()
        return EXPECTED.get(key) or EXPECTED.setdefault(key, self.by_the_formulas())

    def by_the_formulas(self):
        x, *rest = (t.detach().double().requires_grad_() for t in [self.x, *self.hx, *self.weights])
        hx, weights = rest[: len(self.hx)], rest[len(self.hx) :]
        schedule = {"resets": self.schedule.get("resets"), "forwards": self.schedule.get("forwards", 1)}
        if "mask" in self.schedule:
            schedule["mask"] = self.schedule["mask"].double()
        if "rates" in self.schedule:
            schedule["keep"] = self.keep
        steps, hn = oracle.layer(self.cell, x, self.lengths, hx, weights, self.biased, self.projected, **schedule)
        wanted = [steps[0], *hn, *steps[1:][: len(self.grad_cells)]]
        grads = [g.double() for g in [self.grad_output, *self.grad_hn, *self.grad_cells]]
        pairs = [(w, g) for w, g in zip(wanted, grads, strict=True) if w.requires_grad]
        outputs, grads = zip(*pairs, strict=True)
        grad_x, *grad = torch.autograd.grad(outputs, [x, *rest], grads, materialize_grads=True)
        hn = [h.detach() for h in [*hn, *map(self.rows, wanted[len(hn) + 1 :])]]
        return self.rows(steps[0]).detach(), hn, self.rows(grad_x), grad[: len(hx)], grad[len(hx) :]

    def keep(self, d, b, t):
        """What zoneout keeps of the units of row b in step t."""
        rates, H = self.schedule["rates"], self.hx[0].size(2)
        if "seeds" not in self.schedule:
            return rates
        return oracle.kept(int(self.schedule["seeds"][d, b]), t + self.schedule["first_step"], H, rates)

    def arguments(self, save=1):
        inputs = self.rows(self.x), self.batch_sizes, self.hx, self.weights
        return forward_arguments(self.cell, *inputs, save, **self.schedule, all_states=self.cells)

    def forward(self, cuda, save=None):
        self.saved = self.save if save is None else save
        with fp32_precision("tf32" if self.precision == "tf32" else "ieee"):
            return cuda.layer_forward(*self.arguments(self.saved))

    def backward(self, cuda, output, saved, needs=(True, True, True)):
        """Of the last forward; gradients of weights without those that the layer has not."""
        grads = [self.rows(self.grad_output), *self.grad_hn, *map(self.rows, self.grad_cells)]
        arguments = backward_arguments(self.arguments(self.saved), grads, output, saved, needs)
        with fp32_precision("tf32" if self.precision == "tf32" else "ieee"):
            grad_x, grad_hx, grad_weights = cuda.layer_backward(*arguments)
        return grad_x, grad_hx, grad_weights and [g for g in grad_weights if g is not None]

    def results(self, cuda, **save):
        """All that forward and backward return, but for what is saved."""
        output, hn, saved = self.forward(cuda, **save)
        return flat((output, hn, *self.backward(cuda, output, saved)))

    def check(self, cuda):
        output, hn, saved = self.forward(cuda)
        found = output, hn, *self.backward(cuda, output, saved)
        names = "output", "hn", "grad_x", "grad_hx", "grad_weights"
        for name, got, want in zip(names, found, self.expected(), strict=True):
            pairs = [(got, want)] if isinstance(got, torch.Tensor) else zip(got, want, strict=True)
            for index, (g, w) in enumerate(pairs):
                assert g.dtype == self.dtype and g.shape == w.shape, (name, index)
                check_error(f"{name}[{index}]", g, w, self.precision, oracle.SLACK[self.cell])
        if "lengths" in self.schedule:
            assert not any(t[~self.kept].any() for t in (output, found[2], *hn[len(self.hx) :]))

    def check_nothing_overwritten(self, cuda):
        """Forward and two backwards write no argument, and the backwards agree bit for bit."""
        output, hn, saved = self.forward(cuda)
        given = [self.x, *self.hx, *self.weights, self.grad_output, *self.grad_hn, output, *hn, *saved]
        copies = [t.clone() for t in given]
        first, second = (flat(self.backward(cuda, output, saved)) for _ in range(2))
        assert all(torch.equal(t.nan_to_num(7), copy.nan_to_num(7)) for t, copy in zip(given, copies, strict=True))
        assert all(map(torch.equal, first, second)) and len({t.data_ptr() for t in first}) == len(first)

    def check_without_save(self, cuda):
        """Results are what they are, whether anything is saved for backward or not."""
        (output, hn, _), (again, hn_again, nothing) = self.forward(cuda), self.forward(cuda, save=0)
        assert torch.equal(output, again) and all(map(torch.equal, hn, hn_again)) and nothing == []

    def check_needs(self, cuda):
        """A gradient is what it is, whichever others are asked for, and nothing where it is not."""
        output, _, saved = self.forward(cuda)
        everything = self.backward(cuda, output, saved)
        for needs in itertools.product((False, True), repeat=3):
            for got, want, needed in zip(self.backward(cuda, output, saved, needs), everything, needs, strict=True):
                pairs = zip(got, want, strict=True) if needed else []
                assert (got is not None) == needed and all(torch.equal(g, w) for g, w in pairs)


def check_unread_states(cuda, cell, precision, make=Layer):
    """Initial states that no step starts from may hold anything: of a row without steps, and of one reset at once."""
    results = []
    for value in (0.0, math.nan):
        layer = make(cell, precision, (3, 3, 2, 9), lengths=[3, 0, 2], resets=torch.eye(3, dtype=torch.bool))
        for state in layer.hx:
            state[:, :2] = value
        found, n = layer.results(cuda), len(layer.hx)
        results.append([found[0], *(state[:, ::2] for state in found[1 : n + 1]), *found[n + 1 :]])
    assert all(map(torch.equal, *results))


def check_saved_shapes(kernels, cell, rebuilds_gates):
    """That what forward saves has the shapes and types that graphs are told, with all that changes them."""
    options = [(1, {}), (STATES, {}), (1, {"rates": (0.5, 0.5)})]
    if cell in oracle.PROJECTED:
        options += [(1, {"projection": 4}), (STATES, {"projection": 4})]
    for save, named in options:
        layer = Layer(cell, "bfloat16", (3, 4, 2, 7), 2, packed=True, **named)
        saved = layer.forward(kernels, save)[2]
        gates = save == 1 or not rebuilds_gates
        told = graph._saved_shapes(cell, layer.rows(layer.x), layer.hx, layer.projected, gates, "rates" in named)
        assert [(tuple(t.shape), t.dtype) for t in saved] == told, (save, named)


def flat(results):
    """The tensors of a tuple of tensors and of lists of them."""
    return [t for part in results for t in ([part] if isinstance(part, torch.Tensor) else part)]


def prescribe(cuda, kernel):
    """Has one of KERNELS or RESIDENT, a name or how to ask for it, serve all calls."""
    form = BY_NAME[kernel] if isinstance(kernel, str) else kernel
    (cuda.override_tier if "tier" in form else cuda.override_plan)(**form)


def parameters(kernels, every=1):
    """pytest's parameters (cell, kernel, precision) for every cell on each of ``kernels``, KERNELS or RESIDENT, that it
    has: without W_hh the update of the step alone. ``every`` second combination: of two precisions or two kernels in a
    row a cell has one."""
    return [
        pytest.param(cell, kernel, precision, id=f"{oracle.MODES[cell]}-{name}-{precision}")
        for i, (name, kernel, precisions) in enumerate(kernels)
        for j, precision in enumerate(precisions)
        for cell in oracle.CELLS
        if (cell in oracle.FUSED or name == "update") and (cell + i + j) % every == 0
    ]


def small_layers(cell, precision, make=Layer, kernel=()):
    first = oracle.AWAY_FROM_TIES.get(oracle.MODES[cell], 0) if precision == "tf32" else 0
    for number, shape in enumerate(RESIDENT_SHAPES if "tier" in kernel else SHAPES):
        for directions, packed in itertools.product((1, 2), (False, True)):
            if number <= 1 or directions + packed == 1 + number % 3:  # all four for the two smallest, else one or two
                yield make(cell, precision, shape, directions, packed, seed=first + number)


# T B H, directions, options of the Layer: which steps exist, where states are cut, the direction.
MIXED, NONE, ALL = [4, 0, 3, 1, 4, 2, 4, 0, 1], [0, 0], [3, 3, 3]
TIMED = [
    ((4, 9, 17), 2, {"lengths": MIXED, "resets": "random", "cells": True}),
    ((4, 9, 17), 1, {"lengths": MIXED, "resets": "ends", "forwards": 0, "cells": True}),
    ((4, 9, 11), 2, {"lengths": MIXED}),
    ((3, 3, 9), 2, {"resets": "ends"}),
    ((3, 3, 9), 1, {"lengths": ALL, "resets": "everywhere"}),
    ((2, 2, 9), 2, {"lengths": NONE, "resets": "random", "cells": True}),
    ((1, 2, 9), 2, {"lengths": [1, 0], "resets": "everywhere"}),
    ((1, 2, 9), 2, {"resets": "everywhere"}),
    ((3, 3, 9), 1, {"forwards": 0}),
    ((3, 3, 9), 1, {"forwards": 0, "packed": True, "cells": True}),
    ((3, 5, 9), 4, {"forwards": 2, "packed": True}),  # heads are directions
]


def masked_layers(cell, precision, make=Layer, **named):
    """With an operand mask: padded and packed, with lengths and resets, in both directions, in one, and with heads."""
    options = {"masked": True} | named
    yield make(cell, precision, (3, 9, 2, 17), 2, packed=True, **options)
    yield make(cell, precision, (2, 33, 3, 40), seed=1, **options)
    yield make(cell, precision, (3, 5, 3, 9), 3, forwards=3, **options)
    yield from list(timed_layers(cell, precision, make, **options))[:2]


def zoned_layers(cell, precision, make=Layer, **named):
    """With zoneout: packed, with lengths and resets, with an operand mask, in expectation, and with heads."""
    options = {"rates": (0.3, 0.6)} | named
    yield make(cell, precision, (3, 9, 2, 17), 2, packed=True, **options)
    yield make(cell, precision, (3, 5, 3, 33), 2, masked=True, first_step=7, **options)
    yield make(cell, precision, (3, 5, 3, 8), 2, expectation=True, **options)
    yield make(cell, precision, (4, 9, 5, 8), 6, lengths=MIXED, forwards=3, **options)
    yield from list(timed_layers(cell, precision, make, **options))[:2]


def resets_of(kind, B, T):
    """(B, T): at random, with both ends in some row; in some rows at both ends alone; or everywhere."""
    if kind == "everywhere":
        return torch.ones(B, T, dtype=torch.bool)
    if kind == "random":
        return torch.arange(B * T).reshape(B, T).mul(7).remainder(5) < 2
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[::2, 0] = resets[:, -1] = True
    return resets


def timed_layers(cell, precision, make=Layer, **named):
    for number, ((T, B, H), directions, options) in enumerate(TIMED):
        options = {**options, **named}
        if "resets" in options:
            options["resets"] = resets_of(options["resets"], B, T)
        yield make(cell, precision, (T, B, 2, H), directions, seed=number, **options)
