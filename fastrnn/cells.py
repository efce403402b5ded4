"""One time step: drop-in cells, with ``torch.nn``'s parameters, results, types and errors, and the cells that torch
does not have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ._backends import aten, dispatch
from ._backends.autograd import layer
from ._call.checks import as_states, check_call
from ._call.stack import autocast, describe, inferred, is_autocast, is_checked_by, is_left_to_torch
from ._kernels.gate import for_scan, is_foreign, with_strides
from ._spec import slots_of
from ._tools import Tooling, leaf
from .layers import (
    CIFGLSTM,
    SLSTM,
    IndRNN,
    LayerNormGRU,
    LayerNormLSTM,
    OwnLayer,
    PeepholeLSTM,
    own_sizes,
    slstm_mode,
    split_rows,
)
from .modules import Device
from .reference import Schedule, scan
from .registry import ALL_CELLS, CELLS, OWN_CELLS, Cell


def _check(module: nn.RNNCellBase, input: Tensor, states: list[Tensor]) -> None:
    """torch's checks of a batched step."""
    if input.size(1) != module.input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {module.input_size}")
    for index, state in enumerate(states):
        if state.size(0) != input.size(0) or state.dim() != 2:
            raise RuntimeError(
                f"Input batch size {input.size(0)} doesn't match hidden{index} batch size {state.size(0)}"
            )
        if state.size(1) != module.hidden_size:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: got {state.size(1)}, expected {module.hidden_size}"
            )


class Step(Tooling, nn.RNNCellBase):
    """The forward that the cells share."""

    def _mode(self) -> str:
        raise NotImplementedError

    def _params(self) -> list[Tensor]:
        """The weights that torch's cells do not have."""
        return []

    def _prepare(
        self, input: Tensor, hx: Tensor | Sequence[Tensor] | None
    ) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """Checks a step's arguments; returns the batched input, the states and the weights."""
        cell = ALL_CELLS[self._mode()]
        name = cell.step
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        batched = input.dim() == 2
        states = None
        if hx is not None:
            states = as_states(cell, name, hx)
            for index, state in enumerate(states):
                if state.dim() not in (1, 2):
                    label = f"hx[{index}]" if cell.states > 1 else "hidden"
                    raise ValueError(f"{name}: Expected {label} to be 1D or 2D, got {state.dim()}D instead")
        if not batched:
            input = input.unsqueeze(0)
            states = [h.unsqueeze(0) for h in states] if states is not None else None
        if states is None:
            zeros = input.new_zeros(input.size(0), self.hidden_size)
            states = [torch.full_like(zeros, value) if value else zeros for value in cell.initial]
        _check(self, input, states)
        weights, bias = [self.weight_ih, self.weight_hh] if cell.recurrent else [self.weight_ih], self.bias_ih
        if bias is not None:
            other = self.bias_hh
            weights += [bias, torch.zeros_like(bias) if other is None else other]
        elif self.bias and self.bias_hh is not None:  # one of them was taken away
            weights += [torch.zeros_like(self.bias_hh), self.bias_hh]
        return input, states, weights + self._params()

    # torch's stubs of the subclasses have narrower results.
    def forward(self, input: Tensor, hx: Tensor | Sequence[Tensor] | None = None) -> Tensor | tuple[Tensor, ...]:
        """As ``torch.nn``'s forward of the same class: same arguments, results, types and errors."""
        if type(input) is not Tensor and isinstance(input, Proxy):
            return leaf(self, input, hx)
        cell = ALL_CELLS[self._mode()]
        data, states, weights = self._prepare(input, hx)
        foreign, autocasting = is_foreign((data, *states, *weights)), is_autocast(data)
        if foreign and hx is None:  # zeros made like a sparse input are sparse
            states = [with_strides(h) for h in states]
        own = cell.mode not in CELLS
        if (foreign or autocasting) and is_left_to_torch(cell, data, foreign, own, step=True):
            after = aten.step(cell, data, states, weights)
        elif not autocasting:
            after = _step(cell, data, states, weights, foreign)
        else:
            data, states, weights = autocast(cell.step, data, states, weights, foreign=foreign)
            with torch.autocast(data.device.type, enabled=False):
                after = _step(cell, data, states, weights, foreign)
        if input.dim() == 1:
            after = [h.squeeze(0) for h in after]
        return tuple(after) if cell.states > 1 else after[0]


def _step(
    cell: Cell, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], foreign: bool
) -> list[Tensor]:
    if foreign:
        input, states, weights = for_scan(with_strides(input), states, weights)
    data, hx = input.unsqueeze(0), [h.unsqueeze(0) for h in states]
    call = describe(cell, data, None, hx, weights, extended=cell.mode not in CELLS, step=True, foreign=foreign)
    slots = slots_of(cell, weights, 1)
    try:
        backend = dispatch.choose(call)
        if (found := inferred(backend, call, cell, data, hx, weights)) is not None:
            return [h.squeeze(0) for h in found[1:]]
        if not is_checked_by(backend):
            check_call(cell, call, data, hx, slots)
        if backend == "aten":
            return aten.step(cell, input, states, weights)
        final: Sequence[Tensor]
        if call.transformed or call.foreign or backend == "reference":
            _, final = scan(cell.index, data, Schedule(), hx, slots)
        else:
            _, final = layer(backend, cell.index, data, Schedule(), hx, slots)
    except RuntimeError:
        check_call(cell, call, data, hx, slots)
        raise
    return [h.squeeze(0) for h in final]


class LSTMCell(Step, nn.LSTMCell):  # type: ignore[misc]
    r"""Drop-in for :class:`torch.nn.LSTMCell`: one step of :class:`fastrnn.LSTM`.

    Input (B, I) or (I,), states ``(h, c)`` (B, H) or (H,); returns ``(h', c')``. Parameters, types and errors are
    torch's; float64, float32, bfloat16 and float16. Source: ``torch.nn.LSTMCell``.
    """

    def _mode(self) -> str:
        return "LSTM"


class GRUCell(Step, nn.GRUCell):  # type: ignore[misc]
    r"""Drop-in for :class:`torch.nn.GRUCell`: one step of :class:`fastrnn.GRU`.

    Input (B, I) or (I,), state ``h`` (B, H) or (H,); returns ``h'``. Parameters, types and errors are torch's;
    float64, float32, bfloat16 and float16. Source: ``torch.nn.GRUCell``.
    """

    def _mode(self) -> str:
        return "GRU"


class RNNCell(Step, nn.RNNCell):  # type: ignore[misc]
    r"""Drop-in for :class:`torch.nn.RNNCell`: one step of :class:`fastrnn.RNN`.

    Input (B, I) or (I,), state ``h`` (B, H) or (H,); returns ``h'``. Parameters, types and errors are torch's, an
    unknown ``nonlinearity`` included, which torch reports at the first forward. Source: ``torch.nn.RNNCell``.
    """

    def _mode(self) -> str:
        for mode, cell in CELLS.items():
            if cell.step == "RNNCell" and cell.nonlinearity == self.nonlinearity:
                return mode
        raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")


class OwnStep(Step):
    """One step of a layer that torch does not have: of the class ``_layer``, with its parameters."""

    _layer: type[OwnLayer]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        cell = OWN_CELLS[self._mode()]
        super().__init__(input_size, hidden_size, bias, cell.gates, device, dtype)
        for name, size in own_sizes(cell, self._layer._rows, hidden_size).items():
            setattr(self, name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial values of the layer."""
        super().reset_parameters()
        own = OWN_CELLS[self._mode()].params
        self._layer._reset_own({name: weight for name, weight in self.named_parameters() if name in own})

    def _mode(self) -> str:
        return self._layer._mode

    def _params(self) -> list[Tensor]:
        cell, rows = OWN_CELLS[self._mode()], self._layer._rows
        weights = [(name, getattr(self, name)) for name in rows or cell.params]
        return split_rows(type(self).__name__, rows, weights, self.hidden_size)


class PeepholeLSTMCell(OwnStep):
    r"""One step of :class:`fastrnn.PeepholeLSTM`.

    Input (B, I) or (I,), states ``(h, c)`` (B, H) or (H,); returns ``(h', c')``. Parameters are those of
    :class:`fastrnn.LSTMCell`, and ``weight_peephole`` (3, H), rows i, f, o; types and errors as there. Source: Gers and
    Schmidhuber 2000.
    """

    _layer = PeepholeLSTM


class CIFGLSTMCell(OwnStep):
    r"""One step of :class:`fastrnn.CIFGLSTM`.

    Input (B, I) or (I,), states ``(h, c)`` (B, H) or (H,); returns ``(h', c')``. Parameters are those of
    :class:`fastrnn.LSTMCell` with the gates i, g, o; types and errors as there. Source: Greff et al. 2017.
    """

    _layer = CIFGLSTM


class IndRNNCell(OwnStep):
    r"""One step of :class:`fastrnn.IndRNN`.

    Input (B, I) or (I,), state ``h`` (B, H) or (H,); returns ``h'``. Parameters are those of :class:`fastrnn.RNNCell`
    but ``weight_hh`` (H,); types and errors as there. Source: Li et al. 2018.
    """

    _layer = IndRNN


class LayerNormLSTMCell(OwnStep):
    r"""One step of :class:`fastrnn.LayerNormLSTM`.

    Input (B, I) or (I,), states ``(h, c)`` (B, H) or (H,); returns ``(h', c')``. Parameters are those of
    :class:`fastrnn.LSTMCell`, ``weight_norm_ih`` and ``weight_norm_hh`` (4H,), ``weight_norm_c`` and ``bias_norm_c``
    (H,); types and errors as there. Source: Ba, Kiros and Hinton 2016.
    """

    _layer = LayerNormLSTM


class LayerNormGRUCell(OwnStep):
    r"""One step of :class:`fastrnn.LayerNormGRU`.

    Input (B, I) or (I,), state ``h`` (B, H) or (H,); returns ``h'``. Parameters are those of :class:`fastrnn.GRUCell`,
    and ``weight_norm_ih`` and ``weight_norm_hh`` (3H,); types and errors as there. Source: Ba, Kiros and Hinton 2016.
    """

    _layer = LayerNormGRU


class SLSTMCell(OwnStep):
    r"""One step of :class:`fastrnn.SLSTM`.

    Input (B, I) or (I,), states ``(h, c, n, m)`` (B, H) or (H,); returns these after the step. Parameters are those of
    :class:`fastrnn.LSTMCell` with the gates z, i, f, o; ``forget_gate`` is ``"sigmoid"`` or ``"exp"``; types and errors
    as there. Source: Beck et al. 2024.
    """

    _layer = SLSTM
    forget_gate = "sigmoid"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        forget_gate: str = "sigmoid",
    ) -> None:
        self.forget_gate = forget_gate
        super().__init__(input_size, hidden_size, bias, device, dtype)

    def _mode(self) -> str:
        return slstm_mode("SLSTMCell", self.forget_gate)

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", forget_gate={self.forget_gate}" if self.forget_gate != "sigmoid" else "")


def explain_cell(module: Step, input: Tensor, hx: Tensor | Sequence[Tensor] | None = None) -> dispatch.Explanation:
    """The backend that ``module(input, hx)`` would run on, with the reasons against the others."""
    cell = ALL_CELLS[module._mode()]
    data, states, weights = module._prepare(input, hx)
    foreign, autocasting = is_foreign((data, *states, *weights)), is_autocast(data)
    own = cell.mode not in CELLS
    left = (foreign or autocasting) and is_left_to_torch(cell, data, foreign, own, step=True)
    data, states, weights = autocast(cell.step, data, states, weights, foreign=foreign)
    data, hx = data.unsqueeze(0), [h.unsqueeze(0) for h in states]
    call = describe(cell, data, None, hx, weights, extended=own, step=True, foreign=foreign)
    if not left:
        check_call(cell, call, data, hx, slots_of(cell, weights, 1))
    return dispatch.explanation(call, left=left)
