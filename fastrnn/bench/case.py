"""What is measured: a case is plain data; here it becomes modules, inputs and one step of work.

Letters: T time, B batch, I input features, H hidden units, P projection.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn

from ..registry import ALL_CELLS, Cell

MODES = ("forward", "training")
WEIGHT_SEED, INPUT_SEED, LENGTH_SEED, RESET_SEED, DROP_SEED = 1, 2, 3, 4, 5
_ROOT = Path(fastrnn.__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """One shape of one cell in one mode.

    ``cell`` is the name of a layer, or the path of a user's header from the folder that holds the package.

    ``packed`` draws the B lengths uniformly from 1..T; ``resets`` is the share of all steps before which a row's state
    is set to zero, as where an episode ends. ``P`` is the width of a projected h, 0 for none. ``call`` says what is
    called: "" the layer, "step" the one-step module, or our layer with what torch.nn does not have ("lengths",
    "all_states", "save"), held against torch.nn's without. ``option`` is one that torch.nn does not have, such as
    "num_heads=4", or several, with commas between them.

    What torch.nn does not have is held against the loop over PyTorch's operations that is written for it instead
    (:class:`_Loop`): the same formulas, recorded by autograd, in float64 the truth.
    """

    cell: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    directions: int = 1
    dtype: str = "float32"
    mode: str = "forward"
    packed: bool = False
    resets: float = 0.0
    P: int = 0
    nonlinearity: str = ""
    call: str = ""
    option: str = ""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The storage type of weights, inputs and states."""
        return getattr(torch, self.dtype)

    @property
    def shape(self) -> str:
        """A short label: `T=100 B=32 I=128 H=128 x2 layers bidirectional packed`."""
        label = f"T={self.T} B={self.B} I={self.I} H={self.H}"
        label += f" x{self.layers} layers" if self.layers > 1 else ""
        label += " bidirectional" if self.directions == 2 else ""
        label += " packed" if self.packed else ""
        label += f" {self.resets:.0%} resets" if self.resets else ""
        more = f"P={self.P}" if self.P else "", self.nonlinearity, self.call, self.option
        return " ".join(filter(None, (label, *more)))

    def __str__(self) -> str:
        return f"{self.cell} {self.shape} {self.dtype} {self.mode}"

    @property
    def is_step(self) -> bool:
        """Whether it is a call of the one-step module."""
        return self.call == "step"

    @property
    def registered(self) -> Cell:
        """The cell as data."""
        if self.is_own:
            return fastrnn.load_cell(_ROOT / self.cell).registered
        return next(cell for cell in ALL_CELLS.values() if cell.layer == self.cell)

    @property
    def is_own(self) -> bool:
        """Whether a user wrote the cell."""
        return self.cell.endswith(".h")

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the cell's states."""
        return ("h", "c", "n", "m")[: self.registered.states]

    @property
    def state_sizes(self) -> list[tuple[int, ...]]:
        """Of each initial state; those of the one-step module are rows."""
        rows = () if self.is_step else (self.layers * self.directions,)
        return [(*rows, self.B, width) for width in (self.P or self.H, *[self.H] * (len(self.states) - 1))]

    @property
    def is_relu(self) -> bool:
        """Whether its activation has a kink at 0."""
        return self.nonlinearity == "relu" or self.cell == "IndRNN"

    @property
    def is_torchs(self) -> bool:
        """Whether torch.nn has the layer."""
        return not self.option and hasattr(nn, self.cell)

    def layer(self, space) -> type[nn.Module]:
        """Its class in ``space``, torch.nn or fastrnn; called with an input and states it gives output and states."""
        loop = space is nn and not self.is_torchs
        if self.is_own:
            own = fastrnn.load_cell(_ROOT / self.cell)
            made = type(own.name, (fastrnn.Layer,), {"__init__": partialmethod(fastrnn.Layer.__init__, own)})
        else:
            made = getattr(fastrnn if loop else space, self.cell + ("Cell" if self.is_step else ""))
        if self.is_step or (self.call and space is not nn):
            made = type(made.__name__, (_Called, made), {"called": self.call})
        return type(made.__name__, (_Loop, made), {}) if loop else made

    @property
    def options(self) -> dict[str, float | str]:
        """What its constructor is given besides the sizes."""
        more = {"nonlinearity": self.nonlinearity, "proj_size": self.P}
        more |= {} if self.is_step else {"num_layers": self.layers, "bidirectional": self.directions == 2}
        for option in filter(None, self.option.split(",")):
            name, _, value = option.partition("=")
            more[name] = _value(value)
        return {name: value for name, value in more.items() if value}


def _value(text: str) -> float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


class _Loop:
    """A layer as a Python loop over PyTorch's operations, step by step, recorded by autograd."""

    def forward(self, x, hx, **asked):
        with fastrnn.backend("reference"), forward_ad.dual_level():  # whose presence rules out all but operations
            return super().forward(x, hx, **asked)


class _Called:
    """A one-step module with a layer's results, or our layer called with more than torch.nn's."""

    called = ""

    def forward(self, x, hx):
        if self.called == "step":
            state = super().forward(x, hx)
            return (state[0] if isinstance(state, tuple) else state), state
        if self.called == "lengths":
            padded, lengths = pad_packed_sequence(x)
            output, state = super().forward(padded, hx, lengths=lengths.to(padded.device))
            return pack_padded_sequence(output, lengths, enforce_sorted=False), state
        if self.called == "save":  # gates computed again in backward, as by themselves where they would be large
            return super().forward(x, hx, save="states")
        _, final, (states,) = super().forward(x, hx, all_states=True)
        if not isinstance(final, tuple):
            return states, final
        return states[0], (final[0], *(state[-1:] for state in states[1:]))


class Inputs(NamedTuple):
    """One set of inputs; `leaves` are the tensors in it that gradients are taken for."""

    x: Tensor | PackedSequence
    hx: Tensor | tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]
    reset_mask: Tensor | None = None

    @property
    def asked(self) -> dict[str, Tensor]:
        """What the module is called with besides x and hx."""
        return {} if self.reset_mask is None else {"reset_mask": self.reset_mask}


def make_weights(case: Case) -> dict[str, Tensor]:
    """The weights that every side of a case starts from: torch's own initialisation under a fixed seed.

    For relu all weights of a unit have one sign, and inputs are positive: no sum comes near 0, where a rounding more or
    less would make the whole of a gradient, in any implementation. Half of the units are on, and h does not grow.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHT_SEED)
        drawn = build(case.layer(nn), case, "cpu").state_dict()
    # A norm multiplies the rounding of a row that hardly varies, from step to step: less with small gains.
    drawn = {name: weight / 2 if "weight_norm" in name else weight for name, weight in drawn.items()}
    if not case.is_relu:
        return drawn
    damping, signs = min(1.0, 2 / case.H**0.5), 1 - 2 * (torch.arange(case.H) % 2)

    def signed(name: str, weight: Tensor) -> Tensor:
        units = (*weight.shape[:-1], 1) if weight.dim() > 1 else weight.shape  # with heads, of each head
        return weight.abs() * (damping if "weight_hh" in name else 1) * signs.view(units)

    return {name: signed(name, weight) for name, weight in drawn.items()}


def build(cls, case: Case, device, weights: dict[str, Tensor] | None = None, dtype: torch.dtype | None = None):
    """An instance of the nn.LSTM-like class `cls` for the case, with `weights` copied into it."""
    module = cls(case.I, case.H, device=device, dtype=dtype or case.torch_dtype, **case.options)
    if weights is not None:
        module.load_state_dict(weights)
    return module.train(case.mode == "training")


def make_inputs(case: Case, device, count: int = 1) -> list[Inputs]:
    """`count` different sets of inputs of the same shape, packed of the same lengths, and with the same resets."""
    generator = torch.Generator(device).manual_seed(INPUT_SEED)

    def leaf(*shape):
        values = torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)
        if case.is_relu:  # see make_weights; small, for gradients are sums of many and float16 ends soon
            values = values.abs() / 8
        return values.to(case.torch_dtype).requires_grad_()

    layout = _packed_layout(case, device) if case.packed else None
    resets = _reset_mask(case).to(device) if case.resets else None
    sets = []
    for _ in range(count):
        if layout is None:
            data = x = leaf(*(() if case.is_step else (case.T,)), case.B, case.I)
        else:
            data = leaf(int(layout.batch_sizes.sum()), case.I)
            x = layout._replace(data=data)
        hx = tuple(leaf(*sizes) for sizes in case.state_sizes)
        if case.cell == "SLSTM":  # n is a sum of exponentials
            hx[2].data.abs_().add_(1)
        sets.append(Inputs(x, hx if len(hx) > 1 else hx[0], (data, *hx), resets))
    return sets


def lengths_of(case: Case) -> Tensor:
    """How many steps each of the B rows has."""
    if not case.packed:
        return torch.full((case.B,), case.T)
    generator = torch.Generator().manual_seed(LENGTH_SEED)
    lengths = torch.randint(1, case.T + 1, (case.B,), generator=generator)
    lengths[case.B // 2] = case.T  # so that T is the length of the longest row, as the case says
    return lengths


def _packed_layout(case: Case, device) -> PackedSequence:
    """A PackedSequence of one feature: only its batch_sizes and indices are of use."""
    padded = torch.zeros(case.T, case.B, 1, device=device)
    return pack_padded_sequence(padded, lengths_of(case), enforce_sorted=False)


def _reset_mask(case: Case) -> Tensor:
    """(B, T) bool."""
    generator = torch.Generator().manual_seed(RESET_SEED)
    return torch.rand(case.B, case.T, generator=generator) < case.resets


def to_float64(inputs: Inputs) -> Inputs:
    """The same values in float64, as new leaves."""
    leaves = tuple(leaf.detach().double().requires_grad_() for leaf in inputs.leaves)
    x = inputs.x._replace(data=leaves[0]) if isinstance(inputs.x, PackedSequence) else leaves[0]
    return inputs._replace(x=x, hx=leaves[1:] if len(leaves) > 2 else leaves[1], leaves=leaves)


class Side:
    """A module together with the step of the case's mode: calling it runs the step once.

    The result is a flat tuple, named by `names`: output, final states, and in training the gradients of
    output.sum() + the final states' sums for the inputs, the initial states and every weight. `writing` says how
    torch.nn's side does resets, "" without.
    """

    def __init__(self, module: nn.Module, case: Case, writing: str = ""):
        self.module, self.writing = module, writing
        self.training, self.drops = case.mode == "training", bool(case.option)
        # m of an sLSTM is a maximum, by which c and n are scaled and h is not: within rounding of its kink their
        # gradients are a matter of luck.
        self.summed = 2 if case.cell == "SLSTM" else 1 + len(case.states)
        self.weights = tuple(module.parameters())
        self.names = ("output", *(f"{state}_n" for state in case.states))
        if self.training:
            weights = [name for name, _ in module.named_parameters()]
            self.names += tuple(f"grad {name}" for name in ("input", *(f"{s}_0" for s in case.states), *weights))

    def prepare(self, inputs: Inputs) -> None:
        """Called once, untimed, for every set of inputs; a side that needs others makes them here."""

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        if self.drops:  # the same on every side
            torch.manual_seed(DROP_SEED)
        if not self.training:
            with torch.no_grad():
                return self._run(inputs)
        results = self._run(inputs)
        loss = results[0].sum()
        for state in results[1 : self.summed]:
            loss = loss + state.sum()
        return results + torch.autograd.grad(loss, inputs.leaves + self.weights, materialize_grads=True)

    def _run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        output, state = self.module(inputs.x, inputs.hx, **inputs.asked)
        data = output.data if isinstance(output, PackedSequence) else output
        return (data, *state) if isinstance(state, tuple) else (data, state)


def rotation_count(inputs: Inputs, device, most: int) -> int:
    """How many input sets to rotate through: enough to exceed a GPU's L2 cache, one on a CPU.

    Tiny inputs would need thousands of sets; `most` bounds that to one fresh set for every call of a run.
    """
    if torch.device(device).type != "cuda":
        return 1
    held = sum(leaf.nbytes for leaf in inputs.leaves)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(math.ceil(1.5 * cache / held), most))
