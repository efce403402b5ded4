"""``torch.ops.fastrnn.layer_forward`` as the recurrent operators of ONNX, for the exporter of ``torch.onnx``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._spec import ALL_STATES, B_HH, B_IH, CELL, FIRST_PARAM, FORWARDS, W_HH, W_HR, W_IH
from ..registry import Cell, cell_of

# For every gate of ONNX's operator, in its order: our gate, and its sign. CIFG's f is 1 - i = sigmoid(-(x + h)).
_LSTM = ((0, 1), (3, 1), (1, 1), (2, 1))  # i o f c
_GATES = {
    "LSTM": _LSTM,
    "PEEPHOLE_LSTM": _LSTM,
    "CIFG_LSTM": ((0, 1), (2, 1), (0, -1), (1, 1)),
    "GRU": ((1, 1), (0, 1), (2, 1)),  # z r h
    "RNN_TANH": ((0, 1),),
    "RNN_RELU": ((0, 1),),
}
_PEEPHOLES = (0, 2, 1)  # i o f
_INT32 = 6
_DTYPES = ("FLOAT", "DOUBLE", "FLOAT16")


class _Several(list):
    """Values in the place of one: the exporter names what an operator returns and asks for the node it comes from."""

    name: str | None = None

    def producer(self) -> None:
        """Several values have no node in common."""


def _why_not(cell: Cell, x: Any, given: Sequence, weights: Sequence, spec: Sequence[int], scalars: Sequence) -> str:
    """What of a call ONNX's operators do not have; empty if nothing."""
    batch_sizes, _, resets, mask, _ = given
    if batch_sizes is not None:
        return "a PackedSequence; use lengths= on a padded input"
    if x.dtype is not None and x.dtype.name not in _DTYPES:
        return f"{x.dtype.name}; it has {', '.join(_DTYPES)}"
    found = [
        f"no operator for {cell.mode}" * (cell.mode not in _GATES),
        "reset_mask" * (resets is not None),
        "recurrent_dropout" * (mask is not None),
        "zoneout" * bool(scalars),
        "proj_size" * (weights[W_HR] is not None),
        "all_states of a cell with several states" * bool(spec[ALL_STATES] and cell.states > 1),
    ]
    return ", ".join(filter(None, found))


def _layer(x, given, hx, weights, spec, scalars):
    cell = cell_of(spec[CELL])
    if why := _why_not(cell, x, given, weights, spec, scalars):
        raise RuntimeError(
            f"fastrnn.onnx_translations: ONNX's recurrent operators do not have this: {why}. Export the program with "
            "loops instead: torch.onnx.export(program.run_decompositions(fastrnn.decompositions()))"
        )
    from onnxscript import opset18 as op

    slots, hidden = FIRST_PARAM + len(cell.params), hx[-1].shape[2]
    groups = [weights[first : first + slots] for first in range(0, len(weights), slots)]
    lengths = None if given[1] is None else op.Cast(given[1], to=_INT32)

    def in_order(w):
        """The rows of a matrix or bias, by gate, in ONNX's order."""
        if cell.gates == 1:
            return w
        gates = [op.Slice(w, [k * hidden], [(k + 1) * hidden], [0]) for k, _ in _GATES[cell.mode]]
        return op.Concat(*(g if sign > 0 else op.Neg(g) for g, (_, sign) in zip(gates, _GATES[cell.mode])), axis=0)

    def stacked(tensors):
        """One tensor for all directions."""
        return op.Concat(*(op.Unsqueeze(t, [0]) for t in tensors), axis=0)

    def node(groups, hx, direction):
        """The output (T, B, D H) of one operator, and the final states."""
        w, r = (stacked([in_order(group[slot]) for group in groups]) for slot in (W_IH, W_HH))
        b = p = None
        if groups[0][B_IH] is not None:
            b = stacked([op.Concat(in_order(group[B_IH]), in_order(group[B_HH]), axis=0) for group in groups])
        if cell.params:
            p = stacked([op.Concat(*(group[FIRST_PARAM + k] for k in _PEEPHOLES), axis=0) for group in groups])
        shared = {"hidden_size": hidden, "direction": direction}
        if cell.states == 2:
            rows, *final = op.LSTM(x, w, r, b, lengths, *hx, p, **shared)
        elif cell.mode == "GRU":
            rows, *final = op.GRU(x, w, r, b, lengths, *hx, linear_before_reset=1, **shared)
        else:
            activations = [cell.nonlinearity.title()] * len(groups)
            rows, *final = op.RNN(x, w, r, b, lengths, *hx, activations=activations, **shared)
        return op.Reshape(op.Transpose(rows, perm=[0, 2, 1, 3]), [0, 0, -1]), final

    if len(groups) == 2 and spec[FORWARDS] == 1:
        output, final = node(groups, hx, "bidirectional")
    else:  # one, or heads, of which each is a direction
        outputs, finals = [], []
        for d, group in enumerate(groups):
            own = hx if len(groups) == 1 else [op.Slice(h, [d], [d + 1], [0]) for h in hx]
            rows, states = node([group], own, "forward" if d < spec[FORWARDS] else "reverse")
            outputs.append(rows)
            finals.append(states)
        output = op.Concat(*outputs, axis=2)
        final = [op.Concat(*states, axis=0) for states in zip(*finals)]
    if lengths is not None:  # a row without steps keeps its state; onnxruntime returns zeros
        has_steps = op.Unsqueeze(op.Greater(given[1], 0), [1])
        final = [op.Where(has_steps, state, h) for state, h in zip(final, hx)]
    for state, h in zip(final, hx):
        state.shape, state.type = h.shape, h.type
    return [output, _Several(final), _Several()]


def _frozen(packed, x, hx, lengths, batch_first, directions):
    raise RuntimeError(
        "fastrnn.onnx_translations: a frozen layer has packed weights, which ONNX cannot read: export "
        "fastrnn.unfreeze(model), which has the same weights, as they were rounded"
    )


TRANSLATIONS = {"layer_forward": _layer, "frozen": _frozen}
"""By the name of the operator."""
