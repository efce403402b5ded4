"""Stacks of recurrent layers as functions: several layers, both directions, packed batches, dropout between layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ._call.checks import check_weight_count
from ._call.extras import check_extras
from ._call.stack import run
from .registry import CELLS

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._call.extras import Asked


def _public(
    mode: str,
    input: Tensor,
    hx: Tensor | Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    num_layers: int,
    bidirectional: bool,
    dropout: float,
    training: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
    **asked: Unpack[Asked],
) -> tuple[Any, ...]:
    """Output and final states, and the states of every step where ``asked`` for; arguments checked."""
    cell = CELLS[mode]
    name = f"fastrnn.{cell.layer.lower()}"
    dims = 3 if batch_sizes is None else 2
    if input.dim() != dims:
        raise ValueError(f"{name}: input must have {dims} dimensions, got {input.dim()}")
    if not isinstance(dropout, (int, float)) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(f"{name}: dropout must be a number in [0, 1], got {dropout!r}")
    if not isinstance(num_layers, int) or isinstance(num_layers, bool) or num_layers < 1:
        raise ValueError(f"{name}: num_layers must be a positive integer, got {num_layers!r}")
    swap = batch_first and batch_sizes is None
    if swap:
        input = input.transpose(0, 1)
    directions = 2 if bidirectional else 1
    check_weight_count(cell, weights, num_layers, directions)
    extras = check_extras(name, input, batch_sizes, **asked)
    if hx is None:
        for slot, weight in zip(("weight_ih_l0", "weight_hh_l0"), weights):
            if weight.dim() != 2:
                raise RuntimeError(f"{name}: {slot} must have 2 dimensions, got {tuple(weight.shape)}")
        batch = input.size(1) if batch_sizes is None else int(batch_sizes[0])
        rows, widths = num_layers * directions, [weights[0].size(0) // cell.gates] * cell.states
        widths[0] = weights[1].size(1)
        hx = [input.new_full((rows, batch, width), value) for width, value in zip(widths, cell.initial)]
    elif isinstance(hx, Tensor):
        hx = [hx]
    elif not isinstance(hx, (tuple, list)):
        raise TypeError(f"{name}: expected hx to be {cell.states} tensor(s) in a tuple, got {type(hx).__name__}")
    if len(hx) != cell.states:
        raise RuntimeError(f"{name} expects {'two hidden states' if cell.states == 2 else 'one hidden state'}")
    options = num_layers, bidirectional, dropout, training, batch_sizes, extras
    output, hn, sequences = run(cell, input, list(hx), list(weights), *options)
    if swap:
        output, sequences = output.transpose(0, 1), [[s.transpose(0, 1) for s in states] for states in sequences]
    result = output, (tuple(hn) if cell.states > 1 else hn[0])
    if extras is None or not extras.all_states:
        return result
    return *result, [tuple(states) if cell.states > 1 else states[0] for states in sequences]


def lstm(
    input: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    all_states: bool = False,
    checkpoint_chunks: int | str | None = None,
    save: str | None = None,
) -> tuple[Any, ...]:
    r"""A stack of LSTM layers: i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b), c' = f c + i g,
    h' = o tanh(c'), and h' = W_hr h' if projected.

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``, or packed rows (N, I) with ``batch_sizes``.
        hx: ``(h_0, c_0)`` of shapes (layers * D, B, R) and (layers * D, B, H), or None for zeros; R is P with a
            projection and H without.
        weights: flat list in torch's order, that of ``nn.LSTM``'s ``_flat_weights``: for every layer, for every
            direction, ``w_ih (4H, I), w_hh (4H, R)``, then ``b_ih, b_hh (4H,)`` or neither, then ``w_hr (P, H)`` if
            projected. Gates are stacked i, f, g, o.
        num_layers, bidirectional, dropout, training, batch_first: as for ``torch.nn.LSTM``; ``training`` switches the
            dropout between layers.
        batch_sizes: a ``PackedSequence``'s batch sizes: (T,), int64 on the CPU, not increasing.
        lengths: B integers, a list, an array or a tensor on the input's device: row b ends after ``lengths[b]`` of the
            T steps, 0 included. The backward direction begins at each row's own last step; output past a row's end is
            zero, input there is never used, and the final state is that after the last step. What packing gives,
            without packing: nothing is sorted by the caller and nothing waits for the device.
        reset_mask: (B, T) bool on the input's device: where True, a new sequence begins at that step. The state it
            starts from is zero, and neither direction carries anything over the boundary. Not with ``batch_sizes``.
        all_states: also return the states after every step.
        checkpoint_chunks: keep the values that backward needs for one chunk of time only, of this many (``"auto"``:
            about sqrt(T)), and compute each chunk again in backward. Same results; no effect without gradients or
            under ``torch.func``.
        save: ``"full"`` keeps the gates of every step for backward. ``"states"`` keeps the states alone: on CUDA
            kernels backward computes the gates of all steps again by one product, elsewhere it runs forward again.
            None is ``"states"`` on CUDA kernels where the gates of a layer would take more than an eighth of the
            device's memory, else ``"full"``.

    Returns:
        The output, shaped like the input with D * R features, and ``(h_n, c_n)`` shaped like ``hx``. With
        ``all_states`` a list too, which has for every layer ``(h, c)`` after every step, before any dropout, shaped
        like the output with D * R and D * H features. All are differentiable.

    Raises:
        TypeError, ValueError, RuntimeError: arguments that do not fit together, before anything is computed. Lengths
            outside 0 .. T are a ValueError on the CPU and, because nothing waits for it, an assertion on the device
            elsewhere.

    float64, float32, bfloat16 and float16; the 16-bit types accumulate in float32. The same inputs give the same bits.
    Source: Hochreiter and Schmidhuber 1997; Gers et al. 2000; Sak et al. 2014 (projection); ``torch.nn.LSTM``.
    """
    return _public(
        "LSTM", input, hx, weights, num_layers, bidirectional, dropout, training, batch_first, batch_sizes,
        lengths=lengths, reset_mask=reset_mask, all_states=all_states, checkpoint_chunks=checkpoint_chunks, save=save,
    )  # fmt: skip


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    all_states: bool = False,
    checkpoint_chunks: int | str | None = None,
    save: str | None = None,
) -> tuple[Any, ...]:
    r"""A stack of GRU layers: r, z = sigmoid(W x + U h + b), n = tanh(W_n x + b_n + r (U_n h + b_hn)),
    h' = n + z (h - n).

    Arguments, errors and numerics are those of :func:`lstm`, with one state: ``hx`` is ``h_0`` (layers * D, B, H) or
    None, the gates are stacked r, z, n (3H rows), there is no projection, and the result is ``(output, h_n)``, with
    ``all_states`` also the list of every layer's h.

    Source: Cho et al. 2014, with the reset gate applied after the product as in cuDNN and ``torch.nn.GRU``.
    """
    return _public(
        "GRU", input, hx, weights, num_layers, bidirectional, dropout, training, batch_first, batch_sizes,
        lengths=lengths, reset_mask=reset_mask, all_states=all_states, checkpoint_chunks=checkpoint_chunks, save=save,
    )  # fmt: skip


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    reset_mask: Tensor | None = None,
    all_states: bool = False,
    checkpoint_chunks: int | str | None = None,
    save: str | None = None,
) -> tuple[Any, ...]:
    r"""A stack of Elman layers: h' = act(W x + U h + b) with ``nonlinearity`` ``"tanh"`` or ``"relu"``.

    Arguments, errors and numerics are those of :func:`lstm`, with one state and one gate: ``hx`` is ``h_0``
    (layers * D, B, H) or None, and the result is ``(output, h_n)``, with ``all_states`` also the list of every layer's
    h. An unknown ``nonlinearity`` is a ValueError.

    Source: Elman 1990; ``torch.nn.RNN``.
    """
    modes = {cell.nonlinearity: mode for mode, cell in CELLS.items() if cell.nonlinearity}
    if nonlinearity not in modes:
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return _public(
        modes[nonlinearity], input, hx, weights, num_layers, bidirectional, dropout, training, batch_first, batch_sizes,
        lengths=lengths, reset_mask=reset_mask, all_states=all_states, checkpoint_chunks=checkpoint_chunks, save=save,
    )  # fmt: skip
