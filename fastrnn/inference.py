"""Inference on the CPU: layers whose weights are packed once, in float32, bfloat16 or int8; single steps and streams.

A frozen layer is a snapshot. It computes no gradients and never changes, so any number of threads may share it: what a
call works in belongs to the call, and the GIL is released.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from ._call.checks import as_states
from ._call.extras import as_lengths
from ._kernels import ext, frozen, ops
from ._tools import leaf
from .conversion import TO_FASTRNN, ConversionReport, is_recurrent, mixes_states, require_module, why_not_frozen
from .modules import Rows, States
from .registry import ALL_CELLS, CELLS

if TYPE_CHECKING:
    from typing_extensions import Self

_SETTINGS = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "proj_size")
_SLOTS = [f"{name}_l{{}}{{}}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")]
_SLOTS += ["weight_ih_l{}{}_scale", "weight_hh_l{}{}_scale"]


def _is_matrix(name: str) -> bool:
    return re.fullmatch(r"weight_(ih|hh|hr)_l\d+(_reverse)?", name) is not None


class FrozenLayer(nn.Module):
    r"""A layer of :func:`freeze`: the same call as the layer's, on the CPU, without gradients.

    ``frozen(input, hx=None, *, lengths=None)`` takes and returns what the layer takes and returns in eval mode: input
    (T, B, I), (B, T, I) with ``batch_first``, (T, I), or a PackedSequence; states (layers * D, B, H). Input, states and
    output have the layer's dtype; sums and states between steps are float32.

    The weights are float32 as they were, rounded to bfloat16, or int8 with a scale for each row; docs/inference.md has
    the arithmetic and the errors. LSTM, GRU and RNN have kernels of their own; other cells, layers with zoneout or
    heads, and all layers where the compiled extension is missing, are computed as the layer would compute them, in
    float32.

    ``state_dict`` has the layer's names, and ``weight_ih_l0_scale`` and so on for int8; the packed weights are made
    again after loading, copying and unpickling.

    Raises:
        RuntimeError: an input requires a gradient while gradients are recorded; ``train()``; a shape does not fit.
        TypeError: ``to`` would change the dtype or the device.
        ValueError: a dtype does not fit; with int8 weights, a value of h0 outside -1 .. 1.
    """

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    batch_first: bool
    bidirectional: bool
    dtype: torch.dtype
    weights: torch.dtype
    _skeleton: nn.RNNBase
    _packed: Tensor | None
    _plain: Tensor | None  # the same, where calls may go to the kernels as they are
    _engine: Any  # a layer in the place of `_packed`

    def __init__(self, layer: nn.RNNBase, weights: torch.dtype | None = None) -> None:
        super().__init__()
        self.training = False
        for name in _SETTINGS:
            setattr(self, name, getattr(layer, name))
        self.dtype = next(layer.parameters()).dtype
        self.weights = weights or (torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32)
        self.names = list(layer._flat_weights_names)
        # What unfreeze makes a layer of, with whatever options: the layer itself, without memory.
        object.__setattr__(self, "_skeleton", copy.deepcopy(layer).to("meta"))
        for name in self.names:
            value = getattr(layer, name).detach().float()
            if not _is_matrix(name):
                self.register_buffer(name, value.clone())
            elif self.weights == torch.int8:
                quantised, scale = frozen.quantise(value)
                self.register_buffer(name, quantised)
                self.register_buffer(f"{name}_scale", scale)
            else:
                self.register_buffer(name, value.to(self.weights, copy=True))
        self._pack()

    def _pack(self) -> None:
        """Makes what calls use of the buffers: packed weights, or a layer where there are no kernels for it."""
        extension, cell = ext.load(), ALL_CELLS[self.mode]
        packed = engine = None
        if extension is None and self.weights == torch.int8:
            raise RuntimeError(f"fastrnn.freeze: int8 weights need the compiled extension: {ext.reason}")
        if extension is None or self.mode not in CELLS or mixes_states(self._skeleton):
            engine = self._layer(torch.float32)
            engine.__class__ = TO_FASTRNN.get(type(engine), type(engine))  # type: ignore[assignment]
        else:
            ways, H = ("", "_reverse")[: 2 if self.bidirectional else 1], self.hidden_size
            names = [slot.format(*place) for *place, slot in product(range(self.num_layers), ways, _SLOTS)]
            slots = [self._buffers.get(name) for name in names]
            sizes = [self.num_layers, len(ways), self.input_size, H, self.proj_size or H]
            packed = extension.cpu.pack_frozen(cell.index, frozen.TYPES[self.weights], sizes, slots)
        self._packed = packed
        self._plain = packed if self.dtype is torch.float32 else None
        object.__setattr__(self, "_engine", engine)

    def _layer(self, dtype: torch.dtype) -> nn.RNNBase:
        """The layer again, with the weights as they were rounded."""
        layer = copy.deepcopy(self._skeleton).to_empty(device="cpu").to(dtype).eval()
        weights = {name: getattr(self, name).float() for name in self.names}
        for name in self.names:
            if (scale := self._buffers.get(f"{name}_scale")) is not None:
                weights[name] = weights[name] * scale[:, None]
        layer.load_state_dict(weights)
        return layer

    def forward(
        self, input: Rows, hx: Tensor | Sequence[Tensor] | None = None, *, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Rows, States]:
        """See the class."""
        cell = ALL_CELLS[self.mode]
        if self._plain is not None and lengths is None and not ops.is_watched():
            found = frozen.call_plain(self._plain, cell.states, self.batch_first, input, hx)
            if found is not None:
                return found
        if isinstance(input, Proxy):
            return leaf(self, input, hx, lengths=lengths)
        packed, data = (input, input.data) if isinstance(input, PackedSequence) else (None, input)
        states = None if hx is None else as_states(cell, cell.layer, hx)
        data, states = self._cast(data), states and [self._cast(h) for h in states]
        self._check(self.dtype, data, *(states or ()))
        wide = data if data.dtype is torch.float32 else data.float()
        if states is not None and self.dtype is not torch.float32:
            states = [h.float() for h in states]
        lengths = as_lengths(cell.layer, lengths, data)
        if self._packed is None:
            output, final = self._run_engine(PackedSequence(wide, *packed[1:]) if packed else wide, states, lengths)
            output = output.data if packed else output
        else:
            if packed and states is not None and packed.sorted_indices is not None:
                states = [h.index_select(1, packed.sorted_indices) for h in states]
            output, final = frozen.forward(
                self._packed, wide, states, self._initial, lengths, packed.batch_sizes if packed else None,
                self.batch_first, 2 if self.bidirectional else 1,
            )  # fmt: skip
            if packed and packed.unsorted_indices is not None:
                final = [h.index_select(1, packed.unsorted_indices) for h in final]
        if self.dtype is not torch.float32:
            output, final = output.to(self.dtype), [h.to(self.dtype) for h in final]
        output = PackedSequence(output, *packed[1:]) if packed else output
        return output, tuple(final) if cell.states > 1 else final[0]

    def step(self, x: Tensor, state: Tensor | Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """One time step: returns the output (B, R), and leaves the new state in ``state``.

        Args:
            x: (B, I) with states (layers, B, ...), or (I,) with states (layers, ...).
            state: h, or the tuple of all states, as :meth:`initial_state` makes it: float32 and contiguous, whatever
                the layer's dtype is. It is updated in place.
            out: where to write the output; made anew without it.

        Raises:
            ValueError: the layer is bidirectional, or ``x`` has other dimensions.
            RuntimeError: ``out`` does not fit, or it and the states share memory.
        """
        cell = ALL_CELLS[self.mode]
        if not 1 <= x.dim() <= 2:
            raise ValueError(f"FrozenLayer.step: expected x of shape (B, I) or (I,), got {tuple(x.shape)}")
        if self._plain is not None:
            output = frozen.step_plain(self._plain, cell.states, self.batch_first, x, state, out)
            if output is not None:
                return output
        return self._advance(x, as_states(cell, cell.layer, state), out)

    def initial_state(self, batch: int | None = None) -> States:
        """The states that a call without ``hx`` begins with, float32: h (layers, batch, R) or a tuple of all states;
        without ``batch`` for unbatched steps."""
        states = self._initial(batch)
        return tuple(states) if len(states) > 1 else states[0]

    def _initial(self, batch: int | None) -> list[Tensor]:
        cell, rows = ALL_CELLS[self.mode], self.num_layers * (2 if self.bidirectional else 1)
        widths = (self.proj_size or self.hidden_size, *[self.hidden_size] * (cell.states - 1))
        sizes = [(rows, width) if batch is None else (rows, batch, width) for width in widths]
        return [torch.full(size, value) for size, value in zip(sizes, cell.initial, strict=True)]

    def stream(self, batch: int = 1) -> Stream:
        """A stream of ``batch`` sequences, which arrive in chunks; see :class:`Stream`."""
        return Stream(self, batch)

    def _advance(self, x: Tensor, states: list[Tensor], out: Tensor | None = None) -> Tensor:
        """The next steps, of which x (T, B, I) has T, or one without T; the states in place."""
        if self.bidirectional:
            raise ValueError("FrozenLayer: a bidirectional layer has no single steps, it needs the whole sequence")
        x = self._cast(x)
        self._check(self.dtype, x)
        self._check(torch.float32, *states)
        wide = x if x.dtype is torch.float32 else x.float()
        if self._packed is None or wide is not x or out is not None:
            size = *x.shape[:-1], self.proj_size or self.hidden_size
            frozen.check_written(self.mode, states, out, size, self.dtype)
        if self._packed is not None and wide is x:
            return frozen.advance(self._packed, x, states, out, self.batch_first)
        if self._packed is not None:
            output = frozen.advance(self._packed, wide, states, None, self.batch_first)
        elif x.dim() == 3 and x.size(1 if self.batch_first else 0) == 0:
            return x.new_empty(size)  # the layer wants a step
        else:
            time = 1 if self.batch_first and x.dim() == 2 else 0
            output, final = self._run_engine(wide if x.dim() == 3 else wide.unsqueeze(time), states, None)
            for state, new in zip(states, final, strict=True):
                state.copy_(new)
            output = output if x.dim() == 3 else output.squeeze(time)
        output = output.to(self.dtype)
        return output if out is None else out.copy_(output)

    def _run_engine(self, input: Rows, states: list[Tensor] | None, lengths: Tensor | None) -> tuple[Any, list[Tensor]]:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._run_engine(input, states, lengths)
        cell, asked = ALL_CELLS[self.mode], {} if lengths is None else {"lengths": lengths}
        with torch.no_grad():
            hx = states if states is None or cell.states > 1 else states[0]
            output, final = self._engine(input, hx, **asked)
        return output, list(final) if cell.states > 1 else [final]

    def _cast(self, tensor: Tensor) -> Tensor:
        """What an operation under autocast has made, in the layer's type."""
        is_cast = tensor.dtype is not self.dtype and torch._C._is_any_autocast_enabled()
        return tensor.to(self.dtype) if is_cast and tensor.is_floating_point() else tensor

    def _check(self, dtype: torch.dtype, *tensors: Tensor) -> None:
        for t in tensors:
            if t.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    "fastrnn: a frozen layer computes no gradients and got a tensor that requires one: call it under "
                    "torch.no_grad(), or fastrnn.unfreeze(model)"
                )
            if t.dtype is not dtype:
                raise ValueError(f"fastrnn: this frozen layer expected {dtype}, got {t.dtype}; to change its type: "
                                 "fastrnn.unfreeze(model)")  # fmt: skip

    def train(self, mode: bool = True) -> Self:
        """Raises RuntimeError unless ``mode`` is False."""
        if mode:
            raise RuntimeError("fastrnn: a frozen layer cannot be trained: fastrnn.unfreeze(model)")
        return self

    def flatten_parameters(self) -> None:
        """Does nothing: there are no parameters."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for name, value in self.named_buffers(recurse=False):
            new = fn(value)
            if new.dtype != value.dtype or new.device != value.device:
                raise TypeError(
                    f"fastrnn: a frozen layer stays as it is, and this would make {name} {new.dtype} on {new.device}: "
                    "fastrnn.unfreeze(model) first"
                )
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any) -> None:
        for name in self.names:  # what stands for integers with a scale, and what stands for itself
            given = state_dict.get(prefix + name)
            why_not = frozen.why_not(getattr(self, name), given) if isinstance(given, Tensor) else ""
            if why_not:
                args[-1].append(f"{prefix}{name} of the frozen layer {why_not}")
                return
        # Copied in any case, which leaves the types as they are.
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "assign_to_params_buffers": False}, *args)
        self._pack()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_packed", "_plain", "_engine")}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._pack()

    def extra_repr(self) -> str:
        """The layer's settings and the type of the weights."""
        weights = str(self.weights).removeprefix("torch.")
        return f"{type(self._skeleton).__name__}, {self._skeleton.extra_repr()}, weights={weights}"


class Stream:
    """Sequences that arrive in chunks: ``stream(x)`` computes the next steps and keeps the state.

    ``x`` is (T, B, I), or (B, T, I) where the layer has ``batch_first``, of any length T; with one sequence also
    (T, I). The result has the same form. A stream belongs to one thread at a time; streams of one layer are independent
    of each other.
    """

    def __init__(self, layer: FrozenLayer, batch: int) -> None:
        if layer.bidirectional:
            raise ValueError("FrozenLayer.stream: a bidirectional layer needs the whole sequence")
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise ValueError(f"FrozenLayer.stream: batch must be a positive integer, got {batch!r}")
        self.layer, self.batch = layer, batch
        self._states = layer._initial(batch)
        self._initial = [h.flatten()[:1].clone() for h in self._states]

    @property
    def state(self) -> States:
        """h, or the tuple of all states, each (layers, B, ...) float32: the tensors that the next call will update."""
        return tuple(self._states) if len(self._states) > 1 else self._states[0]

    def __call__(self, x: Tensor) -> Tensor:
        """The output of the next steps."""
        if x.dim() == 3:
            return self.layer._advance(x, self._states)
        if x.dim() != 2 or self.batch != 1:
            raise ValueError(f"Stream: expected x of 3 dimensions with batch = {self.batch}, got {tuple(x.shape)}")
        batch = 0 if self.layer.batch_first else 1
        return self.layer._advance(x.unsqueeze(batch), self._states).squeeze(batch)

    def reset(self, rows: int | slice | Sequence[int] | Tensor | None = None) -> None:
        """Begins anew, with all sequences or with the ``rows`` given (an index of the batch, a list, a mask)."""
        where = slice(None) if rows is None else rows
        for state, value in zip(self._states, self._initial, strict=True):
            state[:, where] = value


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)


def freeze(
    model: nn.Module, weights: torch.dtype | None = None, inplace: bool = False, report: ConversionReport | None = None
) -> nn.Module:
    """Returns ``model`` with every recurrent layer, of ``torch.nn`` or fastrnn, replaced by a :class:`FrozenLayer`.

    Args:
        model: any module; a recurrent layer itself becomes a frozen one.
        weights: the type of the weight matrices: None as they are, ``torch.bfloat16``, or ``torch.int8`` (LSTM and GRU
            without projection, zoneout or heads; others are skipped. The compiled extension is needed). Biases stay
            float32.
        inplace: replace the layers within ``model`` rather than in a deep copy. A root layer is returned frozen and
            stays as it was.
        report: is filled in with the names of the layers that were frozen, and of those left alone with the reason.
            Without it a UserWarning names the latter.

    Exact types only: subclasses, parametrized and scripted layers, layers with hooks, in float64 or on another device
    are left alone. Dropout is ignored, as in eval mode.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``weights`` is another type.
        RuntimeError: int8 without the compiled extension.
    """
    require_module("freeze", model)
    if weights not in (None, torch.bfloat16, torch.int8):
        raise ValueError(f"fastrnn.freeze: weights must be None, torch.bfloat16 or torch.int8, got {weights!r}")
    if not inplace:
        model = copy.deepcopy(model)
    warns, report = report is None, ConversionReport() if report is None else report
    new: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if not (isinstance(module, nn.RNNBase) or is_recurrent(module, cells_too=False)):
            continue
        reason = why_not_frozen(module, weights)
        if reason is None:
            new[module] = FrozenLayer(module, weights)
            report.converted.append(name)
        else:
            report.skipped[name] = reason
    if warns and (report.skipped or not new):
        warnings.warn(f"fastrnn.freeze: {report}", stacklevel=2)
    return _replace(model, new)


def unfreeze(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Returns ``model`` with every frozen layer replaced by a layer as it was before :func:`freeze`, in eval mode.

    The weights are the frozen ones: where they were rounded to bfloat16 or int8 they stay so. ``inplace`` as in
    :func:`freeze`.

    Raises:
        TypeError: ``model`` is not a module.
    """
    require_module("unfreeze", model)
    if not inplace:
        model = copy.deepcopy(model)
    return _replace(model, {m: m._layer(m.dtype) for m in list(model.modules()) if isinstance(m, FrozenLayer)})
