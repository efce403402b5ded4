"""A stack of recurrent layers on the backend chosen for it: autocast, checks, choice, one layer after another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from .._backends import aten, dispatch
from .._backends.autograd import layer, needs_grad
from .._kernels import ops
from .._kernels.gate import for_scan, is_foreign
from .._kernels.ops import is_watched
from .._spec import EVERYTHING, STATES, slots_of
from ..reference import Schedule, scan
from ..registry import CELLS, OWN_CELLS, Cell
from . import wavefront
from .checks import check_call
from .chunks import in_chunks
from .extras import Drops, Extras

# On the CPU torch's autocast runs these in the low type as a whole; the others keep the type of their state.
_OWN = {name for cell in OWN_CELLS.values() for name in (cell.layer, cell.step)}
_CPU_AUTOCAST_LOW = frozenset({"RNN", "RNNCell", "Layer"} | _OWN)
# Tensors of other types stay as they are, so that a call that mixes both is refused.
_AUTOCAST_TAKES = frozenset(
    t for t in vars(torch).values() if isinstance(t, torch.dtype) and t.is_floating_point and t != torch.float64
)
# What oneDNN may lack for an LSTM on this CPU; torch's autocast gives it the call all the same.
_LACKING = {torch.float16, torch.bfloat16} if torch.backends.mkldnn.is_available() else set()
if _LACKING and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _LACKING.remove(torch.bfloat16)
_WHOLE = Schedule()  # every row has every step


def is_autocast(input: Tensor) -> bool:
    """Whether autocast is on for a tensor's device; torch refuses to say for those that know none, such as meta."""
    if not torch._C._is_any_autocast_enabled():
        return False
    device = input.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def is_ragged(batch_sizes: Tensor | None) -> bool:
    """Whether the rows of a packed batch differ in length, or may do so where values are not to be looked at.

    Before version 2.13 torch took every packed batch for one.
    """
    if batch_sizes is None:
        return False
    return (
        TorchVersion(torch.__version__) < "2.13"
        or is_watched()
        or batch_sizes.numel() == 0
        or bool(batch_sizes[0] != batch_sizes[-1])
    )


def autocast(name: str, input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], ragged=False, foreign=False):
    """The arguments of a call of class ``name`` in the type that it is to be computed in under autocast.

    The type is torch's for that class and device, and also the result's but for :func:`_run_autocast`. Where torch
    mixes types inside (on the CPU GRU, LSTMCell, GRUCell, the projected LSTM and the packed one whose rows differ in
    length) everything is computed in the wider one.
    """
    if not is_autocast(input) or any(t.dtype not in _AUTOCAST_TAKES for t in (input, *hx, *weights)):
        return input, hx, weights
    device = input.device.type
    dtype = torch.get_autocast_dtype(device)
    if device == "cpu" and not _is_low_on_cpu(name, input, hx, ragged):
        for state in hx:
            dtype = torch.promote_types(dtype, state.dtype)
    cast = [w.to(dtype) for w in weights] if foreign else ops.autocast(weights, dtype, device)
    return input.to(dtype), [h.to(dtype) for h in hx], cast


def _is_low_on_cpu(name: str, input: Tensor, hx: Sequence[Tensor], ragged: bool) -> bool:
    """Whether torch's autocast computes a call of class ``name`` on the CPU in the low type as a whole."""
    if name == "LSTM":  # by oneDNN, if that serves it
        return input.dtype != torch.float16 and input.numel() > 0 and not ragged and not _is_projected(hx)
    return name in _CPU_AUTOCAST_LOW


def is_left_to_torch(cell: Cell, input: Tensor, foreign: bool, own: bool = False, step: bool = False) -> bool:
    """Whether torch's operators take a call as it stands, that has ``foreign`` tensors or is under autocast.

    They know what to do with such tensors. Without the extension they alone can cast a weight once for a whole block of
    autocast. And they multiply in the low type where they mix types, which a single step on the CPU spends its time
    on: here it would be computed in the wider type as a whole. ``own`` says that torch has nothing to compute it with,
    ``step`` that the call is a module's for one step.
    """
    mixed = input.is_cpu and (step or (cell.mode == "GRU" and input.dim() == 3 and input.size(0) == 1))
    if ops.has_extension() and not (foreign or mixed):
        return False
    if own or ops.is_transformed(foreign) or is_watched() or dispatch.forced() not in (None, "aten"):
        return False
    by_onednn = cell.mode == "LSTM" and input.is_cpu and not step
    return not (by_onednn and is_autocast(input) and torch.get_autocast_dtype("cpu") in _LACKING)


def _is_projected(hx: Sequence[Tensor]) -> bool:
    return hx[0].size(-1) != hx[-1].size(-1)


def describe(
    cell: Cell,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    layers: int = 1,
    directions: int = 1,
    extended: bool = False,
    step: bool = False,
    foreign: bool = False,
) -> dispatch.Call:
    """The call that these arguments make, as the backend choice sees it."""
    packed, H = batch_sizes is not None, hx[-1].size(-1)
    width = hx[0].size(-1) if cell.states > 1 else H
    if packed:
        T, I = batch_sizes.size(0), input.size(-1)
        B = int(batch_sizes[0]) if T else 0
    else:
        T, B, I = input.shape
    # By position and without a look at `device` on the CPU: this is on the way of every call, however small.
    return dispatch.Call(
        cell.mode,
        "cpu" if input.is_cpu else input.device.type,
        input.dtype,
        T,
        B,
        I,
        H,
        width if width != H else 0,
        layers,
        directions,
        packed,
        needs_grad(input, hx, weights),
        ops.is_transformed(foreign),
        extended,
        step,
        0 if input.is_cpu else input.device.index or 0,
        foreign,
    )


def _run_autocast(cell: Cell, input, hx, weights, batch_sizes: Tensor | None, foreign: bool, **options):
    """:func:`run` with autocast on: computed in one type, with results of torch's types."""
    device = input.device.type
    input, hx, weights = autocast(cell.layer, input, hx, weights, is_ragged(batch_sizes), foreign)
    with torch.autocast(device, enabled=False):
        output, hn, sequences = run(cell, input, hx, weights, batch_sizes=batch_sizes, **options)
    if device == "cpu" and _is_projected(hx) and output.dtype in _AUTOCAST_TAKES:
        # There torch projects h in the low type; c alone stays in the type of its initial value.
        low = torch.get_autocast_dtype(device)
        output, hn = output.to(low), [hn[0].to(low), *hn[1:]]
        sequences = [[h.to(low), *rest] for h, *rest in sequences]
    return output, hn, sequences


def _saves_states(call: dispatch.Call, cell: Cell, input: Tensor, extras: Extras | None) -> bool:
    """Whether a layer keeps its states alone for backward."""
    if extras is not None and extras.save is not None:
        return extras.save == "states"
    if call.device != "cuda" or not call.grad or ops.is_compiling():
        return False
    gates = call.directions * call.T * call.B * cell.saved * call.H * input.element_size()
    return gates > torch.cuda.get_device_properties(input.device).total_memory // 8


def _layer(call: dispatch.Call, backend: str, cell: Cell, input, schedule, hx, weights, extras: Extras | None):
    cells = cell.states > 1 and extras is not None and extras.all_states
    # The reference where a mode may see tensors of other classes; and one step of it, which autograd records sooner.
    if call.transformed or call.foreign or (backend == "reference" and (call.T == 1 or is_watched())):
        return scan(cell.index, input, schedule, hx, weights, cells)
    chunks, save = None if extras is None else extras.chunks, EVERYTHING
    if _saves_states(call, cell, input, extras):
        if backend == "cuda":
            save = STATES
        elif chunks is None and not ops.is_exporting():
            chunks = 1
    if chunks is None or not call.grad:
        return layer(backend, cell.index, input, schedule, hx, weights, cells, save)
    chunk = partial(layer, backend, cell.index, all_states=cells, save=save)
    return in_chunks(chunk, chunks, input, schedule, hx, weights, cell.initial)


def is_checked_by(backend: str) -> bool:
    """Whether the operations of ``backend`` check a layer's tensors before they compute anything."""
    return (backend == "cpu" or backend == "cuda") and not is_watched()


def inferred(
    backend: str, call: dispatch.Call, cell: Cell, input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor] | None:
    """The output and the final states of a plain call without gradients, in one step from here to the CPU kernels; None
    where it takes the longer way."""
    if backend != "cpu" or call.grad or ops.infer is None or not is_checked_by(backend):
        return None
    return ops.infer((input, *hx, *weights), cell.index, call.layers, call.directions)


def is_recomputed(call: dispatch.Call, extras: Extras | None) -> bool:
    """Whether backward computes chunks of time again because the caller asks for it."""
    return extras is not None and extras.chunks is not None and call.grad


def _plan_wavefront(call: dispatch.Call, input: Tensor, extras: Extras | None) -> tuple[int, int]:
    """How many layers of a stack on backend cuda run at the same time, in how many chunks of time; 0: no chunks."""
    if call.transformed or is_recomputed(call, extras) or is_watched():
        return 1, 0
    return ops.wavefront(input, call)


def _run_wavefront(call, cell, input, schedule, hx, weights, drops, dropout, extras, lanes: int, chunks: int):
    """As :func:`run`, on backend cuda, for layers of one direction."""
    all_states = extras is not None and extras.all_states
    save = STATES if _saves_states(call, cell, input, extras) else EVERYTHING
    chunk = partial(layer, "cuda", cell.index, all_states=all_states and cell.states > 1, save=save)
    count = len(weights) // call.layers
    states = [[h[index : index + 1] for h in hx] for index in range(call.layers)]
    groups = [weights[index * count : (index + 1) * count] for index in range(call.layers)]
    streams = wavefront.Lanes(input.device, lanes)
    finals, sequences = wavefront.run(
        chunk, streams, lanes, chunks, input, schedule, states, groups, dropout, all_states, drops
    )
    hn = [torch.cat(states) for states in zip(*finals)]
    return sequences[-1][0], hn, sequences if all_states else []


def run(
    cell: Cell,
    input: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    extras: Extras | None = None,
    is_module: bool = False,
    drops: Drops | None = None,
    heads: int = 1,
) -> tuple[Tensor, list[Tensor], list[list[Tensor]]]:
    """Runs a stack of layers on the backend chosen for it.

    ``input`` is (T, B, I), or (N, I) with ``batch_sizes``; the states are (layers * D, B, ...). There are as many
    states and weights as the cell and the layout have; whether they fit is checked here, before anything is computed,
    where nothing else does: the extension checks a layer, and torch's operators a single step of a module, whose time
    it would be a tenth of, and what is left to them as it stands. With ``heads``, states and weights are those of each
    (``_call.heads``). Returns the output and the final states, in the types
    that autocast asks for where it is on, and the states of every step by layer, where ``extras`` asks for them.
    """
    directions = (2 if bidirectional else 1) * heads
    foreign = is_foreign((input, *hx, *weights) if batch_sizes is None else (input, batch_sizes, *hx, *weights))
    autocasting = is_autocast(input)
    own = extras is not None or cell.mode not in CELLS or drops is not None or heads > 1
    if (foreign or autocasting) and is_left_to_torch(cell, input, foreign, own):
        options = num_layers, directions, dropout, training, foreign
        return *aten.run(cell, input, batch_sizes, hx, weights, *options), []
    if autocasting:
        return _run_autocast(
            cell, input, hx, weights, batch_sizes, foreign, num_layers=num_layers, bidirectional=bidirectional,
            dropout=dropout, training=training, extras=extras, drops=drops, heads=heads,
        )  # fmt: skip
    call = describe(cell, input, batch_sizes, hx, weights, num_layers, directions, own, foreign=foreign)
    each: Sequence[Drops] = ()
    if drops is not None:
        call = call._replace(masked=drops.mask is not None, zoned=bool(drops.rates))
        each = drops.by_layer(num_layers, input.dtype)
    try:
        backend = dispatch.choose(call)
    except RuntimeError:  # tensors on several devices, rather than on a wrong one
        check_call(cell, call, input, hx, slots_of(cell, weights, num_layers * directions))
        raise
    if extras is None and drops is None and batch_sizes is None and heads == 1 and not (dropout and training):
        found = inferred(backend, call, cell, input, hx, weights)
        if found is not None:
            return found[0], found[1:], []
    flat, weights = weights, slots_of(cell, weights, num_layers * directions)
    late = num_layers == 1 and is_checked_by(backend)
    if not (late or (is_module and backend == "aten" and aten.is_step(call))):
        check_call(cell, call, input, hx, weights)
    if backend == "aten":
        options = num_layers, directions, dropout, training
        if aten.is_step(call) and not foreign:
            try:
                return *aten.run_step(cell, input, hx, flat, *options), []
            except IndexError:  # of torch's cells, at weights of too few dimensions
                check_call(cell, call, input, hx, weights)
                raise
        return *aten.run(cell, input, batch_sizes, hx, flat, *options, foreign), []
    if foreign:
        input, hx, flat = for_scan(input, hx, flat)
        weights = slots_of(cell, flat, num_layers * directions)
    schedule = _WHOLE
    if extras is not None:
        schedule = Schedule(batch_sizes, extras.lengths, extras.resets)
    elif batch_sizes is not None:
        schedule = Schedule(batch_sizes)
    if heads > 1:
        schedule = schedule._replace(forwards=heads)
    if backend == "cuda" and num_layers > 1:
        lanes, chunks = _plan_wavefront(call, input, extras)
        if chunks:
            dropout = dropout if training else 0.0
            return _run_wavefront(call, cell, input, schedule, hx, weights, each, dropout, extras, lanes, chunks)
    per_layer, finals, sequences = len(weights) // num_layers, [], []
    for index in range(num_layers):
        states, group = hx, weights
        if num_layers > 1:
            states = [h[index * directions : (index + 1) * directions] for h in hx]
            group = weights[index * per_layer : (index + 1) * per_layer]
        if each:
            schedule = each[index].on(schedule)
        try:
            input, final = _layer(call, backend, cell, input, schedule, states, group, extras)
        except RuntimeError:
            if late:
                check_call(cell, call, input, hx, weights)
            raise
        finals.append(final[: cell.states])
        if extras is not None and extras.all_states:
            sequences.append([input, *final[cell.states :]])
        if dropout and training and index < num_layers - 1:
            input = torch.dropout(input, dropout, True)
    if num_layers == 1:
        return input, list(finals[0]), sequences
    return input, [torch.cat(states) for states in zip(*finals)], sequences
