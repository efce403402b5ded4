"""Drop-in layers: ``fastrnn.LSTM``, ``GRU`` and ``RNN`` are the classes of ``torch.nn`` with another forward.

They inherit everything else (parameters and their initialisation, state_dict, pickling, ``flatten_parameters``), so a
model, a checkpoint or an optimizer cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from ._backends import dispatch
from ._call.checks import as_states, check_call, check_heads
from ._call.extras import check_extras
from ._call.heads import join_states, split_states, split_weights
from ._call.stack import autocast, describe, is_autocast, is_left_to_torch, is_ragged, is_recomputed, run
from ._kernels.gate import is_foreign
from ._kernels.ops import is_compiling
from ._options import Options
from ._spec import slots_of
from ._tools import Tooling, leaf
from .registry import ALL_CELLS, CELLS, Cell

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._call.extras import Asked

Rows = Tensor | PackedSequence
"""A value for every step of every row: inputs and outputs."""
States = Tensor | tuple[Tensor, ...]
"""h, or a tuple of all states of a cell that has several."""
Device = torch.device | str | int | None
_CHECKS = (
    "check_forward_args", "check_input", "check_hidden_size", "get_expected_hidden_size", "get_expected_cell_size"
)  # fmt: skip


def _check_input(module: nn.RNNBase, input: Tensor, weight: Tensor, dims: int) -> None:
    """torch's ``check_input``, against the weight as it is now rather than as it was cached."""
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )
    if input.dim() != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
    if input.size(-1) != module.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {module.input_size}, got {input.size(-1)}"
        )


def _wrong_state_dims(hx: list[Tensor], batched: bool) -> RuntimeError:
    dims, case = (3, "batched 3-D") if batched else (2, "unbatched 2-D")
    got = [f"{h.dim()}-D" for h in hx]
    if len(hx) == 1:
        return RuntimeError(f"For {case} input, hx should also be {dims}-D but got {got[0]} tensor")
    states = "hx and cx" if len(hx) == 2 else "all states"
    return RuntimeError(f"For {case} input, {states} should also be {dims}-D but got ({', '.join(got)}) tensors")


def _is_nested(state: Tensor) -> bool:
    """Whether a state has rows of their own, and no shape. Packed LSTMs of torch take it."""
    return state.is_nested and state.layout == torch.strided


class Layer(Tooling, Options, nn.RNNBase):
    """The forward that all layers share."""

    _checks_arguments = False

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        torchs = nn.LSTM if issubclass(cls, nn.LSTM) else nn.RNNBase
        # torch's check_forward_args, which calls the others, knows the states of torch's classes alone.
        names = _CHECKS if issubclass(cls, (nn.LSTM, nn.GRU, nn.RNN)) else _CHECKS[:1]
        cls._checks_arguments = any(getattr(cls, name, None) is not getattr(torchs, name, None) for name in names)

    def _weights(self) -> list[Tensor]:
        """The weights of a call, by torch's rule: the module's attributes where one of them was exchanged since
        ``_flat_weights`` was made (functional_call, FSDP, parametrizations), else ``_flat_weights``, which code may
        assign."""
        parameters: dict[str, Any] = self._parameters
        flat: list[Any] = self._flat_weights
        try:
            weights = [parameters[name] for name in self._flat_weights_names]
        except KeyError:  # one is no parameter at present but a tensor, computed or deleted
            weights = [getattr(self, name, None) for name in self._flat_weights_names]
        if all(map(is_, weights, flat)):
            return weights
        refs = self._flat_weight_refs
        if not any(w is not None and ref is not None and ref() is not w for w, ref in zip(weights, refs)):
            return flat
        if not is_compiling():
            self.__dict__["_flat_weights"] = [ref and ref() for ref in refs]  # what was assigned there is over
        return weights

    def _prepare(
        self, cell: Cell, input: Rows, hx: Tensor | Sequence[Tensor] | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor | None]:
        """Checks a forward's arguments and brings them into the form of :func:`fastrnn._call.stack.run`.

        Returns the time-major input, the states, the weights and the batch sizes.
        """
        weights = self._weights()
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, _ = input
            _check_input(self, data, weights[0], 2)
            batch, batched = int(batch_sizes[0]), True
        else:
            data, batch_sizes, sorted_indices = input, None, None
            if data.dim() not in (2, 3):
                tensor = " tensor" if cell.layer == "RNN" else ""
                raise ValueError(f"{cell.layer}: Expected input to be 2D or 3D, got {data.dim()}D{tensor} instead")
            batched = data.dim() == 3
            if not batched:
                data = data.unsqueeze(1)
            elif self.batch_first:
                data = data.transpose(0, 1)
            batch = data.size(1)

        rows, hidden = self.num_layers * (2 if self.bidirectional else 1), self.hidden_size
        widths = (self.proj_size or hidden, *[hidden] * (cell.states - 1))
        states: list[Tensor]
        if hx is None:
            zeros = data.new_zeros
            if data.layout is not torch.strided:  # in some layouts new_zeros writes where it must not
                zeros = partial(torch.zeros, dtype=data.dtype, device=data.device)
            states = [zeros(rows, batch, width) for width in widths]
            states = [h.fill_(value) if value else h for h, value in zip(states, cell.initial)]
        else:
            states = as_states(cell, cell.layer, hx)
            if batch_sizes is None:
                for h in states:
                    if h.dim() != (3 if batched else 2):
                        raise _wrong_state_dims(states, batched)
            if not batched:
                states = [h.unsqueeze(1) for h in states]
        if self._checks_arguments:
            self._check_by_override(data, states, batch_sizes)
        else:
            _check_input(self, data, weights[0], data.dim())
        if hx is None:
            return data, states, weights, batch_sizes
        try:
            for index, (state, width) in enumerate(zip(states, widths)):
                if state.shape != (rows, batch, width) and not self._checks_arguments:
                    which = f"hidden[{index}]" if len(states) > 1 else "hidden"
                    self.check_hidden_size(state, (rows, batch, width), f"Expected {which} size {{}}, got {{}}")
        except RuntimeError:
            packed = batch_sizes is not None and sorted_indices is None
            if not (packed and cell.mode == "LSTM" and any(map(_is_nested, states))):
                raise
            return self._prepare(cell, input, [torch.stack(h.unbind()) if _is_nested(h) else h for h in states])
        if sorted_indices is not None:
            states = [h.index_select(1, sorted_indices) for h in states]
        return data, states, weights, batch_sizes

    def _check_by_override(self, data: Tensor, hx: list[Tensor], batch_sizes: Tensor | None) -> None:
        """Calls ``check_forward_args`` in place of the checks, with what torch's forward hands to it, where a subclass
        has its own, or its own form of a method that this calls."""
        if self.batch_first and batch_sizes is None:
            data = data.transpose(0, 1)
        states: Any = tuple(hx) if len(hx) > 1 else hx[0]
        self.check_forward_args(data, states, batch_sizes)

    def forward(
        self,
        input: Rows,
        hx: Tensor | Sequence[Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset_mask: Tensor | None = None,
        all_states: bool = False,
        checkpoint_chunks: int | str | None = None,
        save: str | None = None,
    ) -> tuple[Rows, States] | tuple[Rows, States, list]:
        """As ``torch.nn``'s forward of the same class: same arguments, results, types and errors.

        The keyword arguments are fastrnn's own, as for :func:`fastrnn.functional.lstm`: ``lengths``, B integers, a
        list, an array or a tensor on the input's device; ``reset_mask`` (B, T) bool, whatever ``batch_first`` is;
        ``all_states`` adds to the result a list with every layer's states (a tuple, or h alone where there is no other)
        after every step, shaped like the output; ``checkpoint_chunks`` is a number or ``"auto"``, ``save`` is
        ``"full"`` or ``"states"``.
        """
        if type(input) is not Tensor and isinstance(input, Proxy):
            return leaf(
                self, input, hx, lengths=lengths, reset_mask=reset_mask, all_states=all_states,
                checkpoint_chunks=checkpoint_chunks, save=save,
            )  # fmt: skip
        cell = ALL_CELLS[self.mode]
        data, states, weights, batch_sizes = self._prepare(cell, input, hx)
        extras = check_extras(cell.layer, data, batch_sizes, lengths, reset_mask, all_states, checkpoint_chunks, save)
        directions = 2 if self.bidirectional else 1
        if self.num_heads > 1:
            states = self._split(cell, data, batch_sizes, states, weights)
        drops = self._drops(states[0], input) if self.zoneout or (self.recurrent_dropout and self.training) else None
        if self.weight_dropout and self.training:
            weights = self._dropped(cell, weights)
        if self.num_heads > 1:
            weights = split_weights(cell, weights, self.num_layers * directions, self.num_heads)
        output, hn, sequences = run(
            cell, data, states, weights, self.num_layers, self.bidirectional, self.dropout, self.training, batch_sizes,
            extras, is_module=True, drops=drops, heads=self.num_heads,
        )  # fmt: skip
        if self.num_heads > 1:
            hn = join_states(hn, self.num_heads)
        if isinstance(input, PackedSequence) and input.unsorted_indices is not None:
            hn = [h.index_select(1, input.unsorted_indices) for h in hn]
        elif isinstance(input, Tensor) and input.dim() == 2:
            hn = [h.squeeze(1) for h in hn]
        rows, final = self._like_input(output, input), tuple(hn) if cell.states > 1 else hn[0]
        if not sequences:
            return rows, final
        layers = [tuple(self._like_input(s, input) for s in states) for states in sequences]
        return rows, final, (layers if cell.states > 1 else [h for (h,) in layers])

    def _split(
        self, cell: Cell, data: Tensor, batch_sizes: Tensor | None, states: list[Tensor], weights: list[Tensor]
    ) -> list[Tensor]:
        """The states of each head, once they and the weights are known to fit."""
        directions = 2 if self.bidirectional else 1
        call = describe(cell, data, batch_sizes, states, weights, self.num_layers, directions)
        check_heads(cell, call, states, slots_of(cell, weights, self.num_layers * directions), self.num_heads)
        return split_states(states, self.num_heads)

    def _like_input(self, rows: Tensor, input: Rows) -> Rows:
        """A time-major result for every step, laid out as the caller's input is."""
        if isinstance(input, PackedSequence):
            return PackedSequence(rows, *input[1:])
        if input.dim() == 2:
            return rows.squeeze(1)
        return rows.transpose(0, 1) if self.batch_first else rows


class LSTM(Layer, nn.LSTM):  # type: ignore[misc]  # torch's stubs have no keyword arguments
    r"""Drop-in for :class:`torch.nn.LSTM` on fastrnn's kernels.

    i, f, o = sigmoid(W x_t + b + U h + b'), g = tanh(W x_t + b + U h + b'), c' = f c + i g, h' = o tanh(c');
    with ``proj_size`` P > 0 then h' = W_hr h'.

    Constructor, parameters (bit-identical for the same seed), attributes, state_dict, inputs, outputs and errors are
    torch's. Input (T, B, I), (B, T, I) with ``batch_first``, (T, I), or a PackedSequence; states (layers * D, B, P or
    H) and (layers * D, B, H). float64, float32, bfloat16 and float16 on any device; 16-bit types accumulate and keep
    c in float32. ``fastrnn.explain(module, input)`` says which backend computes it.

    In training, and scaled by 1 / (1 - p): ``recurrent_dropout`` drops features of h on their way to U, the same ones
    at all steps of a row, layer and direction (Gal and Ghahramani 2016); ``weight_dropout`` drops elements of U, the
    same ones at all steps of a call (Merity et al. 2018). ``zoneout``, one rate or one for h and one for c, keeps a
    unit's previous state; evaluation uses the expected value (Krueger et al. 2017). It cannot be combined with
    ``proj_size``. All use torch's generator: the same seed drops the same elements, also packed, in chunks, and on
    other backends.

    With ``num_heads`` n, units are in n groups that see no states of each other: U is block-diagonal,
    ``weight_hh_l{k}`` is (n, 4 H / n, H / n), and the recurrent product has an n-th of the work (Beck et al. 2024). n
    divides H, is at most 16, or 8 with both directions, and excludes a projection.

    Source: ``torch.nn.LSTM``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        num_heads: int = 1,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device=device, dtype=dtype,
        )  # fmt: skip
        self._set_options(num_heads, zoneout, recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout)


class GRU(Layer, nn.GRU):  # type: ignore[misc]
    r"""Drop-in for :class:`torch.nn.GRU` on fastrnn's kernels.

    r, z = sigmoid(W x_t + b + U h + b'), n = tanh(W_n x_t + b_n + r (U_n h + b'_n)), h' = n + z (h - n).

    Everything said of :class:`LSTM` holds, with one state (layers * D, B, H) and no projection: ``proj_size`` is a
    ValueError.

    Source: ``torch.nn.GRU``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        num_heads: int = 1,
        **unsupported: int,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype, **unsupported,
        )  # fmt: skip
        self._set_options(num_heads, zoneout, recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout)


class RNN(Layer, nn.RNN):  # type: ignore[misc]
    r"""Drop-in for :class:`torch.nn.RNN` on fastrnn's kernels.

    h' = act(W x_t + b + U h + b') with ``nonlinearity`` ``"tanh"`` or ``"relu"``, the fourth positional argument as in
    torch. Everything said of :class:`LSTM` holds, with one state (layers * D, B, H) and no projection.

    Source: ``torch.nn.RNN``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        num_heads: int = 1,
        **unsupported: int,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype, **unsupported,
        )  # fmt: skip
        self._set_options(num_heads, zoneout, recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout)


def explain_layer(
    module: Layer, input: Rows, hx: Tensor | Sequence[Tensor] | None = None, **asked: Unpack[Asked]
) -> dispatch.Explanation:
    """The backend that ``module(input, hx, **asked)`` would run on, with the reasons against the others."""
    cell = ALL_CELLS[module.mode]
    data, states, weights, batch_sizes = module._prepare(cell, input, hx)
    extras = check_extras(cell.layer, data, batch_sizes, **asked)
    masked, zoned = module.training and module.recurrent_dropout > 0, bool(module.zoneout)
    heads, directions = module.num_heads, 2 if module.bidirectional else 1
    if heads > 1:
        states = module._split(cell, data, batch_sizes, states, weights)
        weights = split_weights(cell, weights, module.num_layers * directions, heads)
    foreign = is_foreign((data, *states, *weights))
    own = extras is not None or cell.mode not in CELLS or masked or zoned or heads > 1
    left = (foreign or is_autocast(data)) and is_left_to_torch(cell, data, foreign, own)
    data, states, weights = autocast(cell.layer, data, states, weights, is_ragged(batch_sizes), foreign)
    sizes = module.num_layers, directions * heads
    call = describe(cell, data, batch_sizes, states, weights, *sizes, own, foreign=foreign)
    if not left:
        check_call(cell, call, data, states, slots_of(cell, weights, module.num_layers * directions * heads))
    return dispatch.explanation(call._replace(masked=masked, zoned=zoned), data, is_recomputed(call, extras), left)
