"""One recurrent layer by the formulas, row by row, in whatever dtype its inputs have; gradients by autograd.

Every row of the batch is run alone over its own length, so nothing here knows of batch sizes or offsets.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU", "PEEPHOLE_LSTM", "SLSTM", "SLSTM_EXP", "CIFG_LSTM", "IND_RNN")
MODES += ("LAYER_NORM_LSTM", "LAYER_NORM_GRU")
"""A cell's number is its position."""
GATES = (4, 3, 1, 1, 4, 4, 4, 3, 1, 4, 3)
STATES = (2, 1, 1, 1, 2, 4, 4, 2, 1, 2, 1)
PARAMS = (0, 0, 0, 0, 3, 0, 0, 0, 1, 4, 2)
SLACK = (1, 1, 1, 1, 2, 1, 1, 1, 2, 5, 5)
"""Of the error budget: a parameter's gradient sums products that cancel, and a norm multiplies the rounding of rows
that hardly vary: with norms these formulas in float32 need twice the budget, too."""
AWAY_FROM_TIES = {"SLSTM": 21, "SLSTM_EXP": 42}
"""Added to the seeds of small layers in tf32: operands that are truncated, as a GPU's library does, or rounded send no
gradient along the other branch of the cell's maximum there."""
WITHOUT_W_HH = ("IND_RNN",)
NORMED = ("LAYER_NORM_LSTM", "LAYER_NORM_GRU")
# All; those whose CUDA kernels can make the product with w_hh themselves; those whose h may be projected.
CELLS = tuple(range(len(MODES)))
FUSED = tuple(number for number in CELLS if MODES[number] not in (*WITHOUT_W_HH, *NORMED))
PROJECTED = (0, 4, 5, 6, 7, 9)


def after_reset(cell, state):
    """The value of a state after a reset."""
    return -60000.0 if MODES[cell].startswith("SLSTM") and state == 3 else 0.0


def param_sizes(cell, units):
    """Of the parameters besides matrices and biases."""
    gains = 2 if MODES[cell] in NORMED else 0
    return [(GATES[cell] * units,)] * gains + [(units,)] * (PARAMS[cell] - gains)


def normalised(v, gain, bias):
    """Layer normalisation of a row (Ba, Kiros and Hinton 2016), with the epsilon that keeps it finite."""
    off = v - v.sum() / len(v)
    return off / ((off * off).sum() / len(v) + 1e-5).sqrt() * gain + bias


def step(cell, x, state, w_ih, w_hh, b_ih, b_hh, w_hr, params, mask=None):
    seen = state[0] if mask is None else state[0] * mask  # of h, by the recurrent weights
    if MODES[cell] in NORMED:
        gates_x, gates_h = normalised(w_ih @ x, params[0], b_ih), normalised(w_hh @ seen, params[1], b_hh)
    else:
        gates_x, gates_h = w_ih @ x + b_ih, b_hh if w_hh is None else w_hh @ seen + b_hh
    if MODES[cell] == "LAYER_NORM_LSTM":
        i, f, g, o = (gates_x + gates_h).chunk(4)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * normalised(c, params[2], params[3]).tanh()
        return (h if w_hr is None else w_hr @ h, c)
    if MODES[cell] == "PEEPHOLE_LSTM":
        i, f, g, o = (gates_x + gates_h).chunk(4)
        i, f = (i + params[0] * state[1]).sigmoid(), (f + params[1] * state[1]).sigmoid()
        c = f * state[1] + i * g.tanh()
        h = (o + params[2] * c).sigmoid() * c.tanh()
        return (h if w_hr is None else w_hr @ h, c)
    if MODES[cell] == "CIFG_LSTM":
        i, g, o = (gates_x + gates_h).chunk(3)
        c = (1 - i.sigmoid()) * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if w_hr is None else w_hr @ h, c)
    if MODES[cell] == "IND_RNN":
        return ((gates_x + gates_h + params[0] * seen).relu(),)
    if MODES[cell].startswith("SLSTM"):
        z, i, f, o = (gates_x + gates_h).chunk(4)
        log_f = f if MODES[cell] == "SLSTM_EXP" else torch.nn.functional.logsigmoid(f)
        m = torch.where(log_f + state[3] > i, log_f + state[3], i)
        keep, take = (log_f + state[3] - m).exp(), (i - m).exp()
        c, n = keep * state[1] + take * z.tanh(), keep * state[2] + take
        h = o.sigmoid() * c / n
        return (h if w_hr is None else w_hr @ h, c, n, m)
    if cell == 0:
        i, f, g, o = (gates_x + gates_h).chunk(4)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if w_hr is None else w_hr @ h, c)
    if MODES[cell] in ("GRU", "LAYER_NORM_GRU"):
        x_r, x_z, x_n = gates_x.chunk(3)
        h_r, h_z, h_n = gates_h.chunk(3)
        z = (x_z + h_z).sigmoid()
        n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        return ((1 - z) * n + z * state[0],)
    return ((gates_x + gates_h).tanh() if cell == 2 else (gates_x + gates_h).relu(),)


def philox(counter, key):
    """Philox4x32-7 of Salmon et al. 2011: four words of a counter of four words and a key of two."""
    c, k = list(counter), list(key)
    for _ in range(7):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second % 2**32, first >> 32 ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def kept(seed, t, units, rates):
    """What units keep of h, and of the other states, in a step of a row with this seed."""
    words = [philox((unit, t, 0, 0), (seed % 2**32, seed >> 32)) for unit in range(units)]
    return [torch.tensor([float(w[k] >> 8 < rates[k] * 2**24) for w in words], dtype=torch.float64) for k in (0, 1)]


def zoned(keep, before, after):
    """The states after a step with zoneout."""
    return tuple(keep[k > 0] * old + (1 - keep[k > 0]) * new for k, (old, new) in enumerate(zip(before, after)))


class Formula(NamedTuple):
    """A cell by its number of parameters besides matrices and biases, whether it has w_hh, its states after a reset,
    and ``step`` with the arguments of `step` but the first."""

    params: int
    recurrent: bool
    initial: tuple[float, ...]
    step: Callable


def of_number(cell):
    initial = tuple(after_reset(cell, state) for state in range(STATES[cell]))
    return Formula(PARAMS[cell], MODES[cell] not in WITHOUT_W_HH, initial, partial(step, cell))


def of_gates(initial, params, update):
    """A user's cell: ``update(gates_x, gates_h, states, params by name)`` gives the states of a row after a step."""

    def whole(x, state, w_ih, w_hh, b_ih, b_hh, w_hr, given):
        after = update(w_ih @ x + b_ih, w_hh @ state[0] + b_hh, state, dict(zip(params, given)))
        return (after[0] if w_hr is None else w_hr @ after[0], *after[1:])

    return Formula(len(params), True, tuple(initial), lambda *arguments: whole(*arguments[:-1]))


def is_cut(resets, length, t, backwards):
    """Whether step t starts anew: resets (T) of one row cut it off from the step visited before."""
    if resets is None:
        return False
    return bool(t + 1 < length and resets[t + 1] if backwards else resets[t])


def layer(cell, x, lengths, hx, weights, biased, projected, resets=None, forwards=1, mask=None, keep=None):
    """cell a number or a Formula, x (T, B, I), mask (D, B, R), keep(direction, row, step) as `kept` -> states of every
    step, each (T, B, D*R), zero past a row's length; and the final states."""
    count, recurrent, initial, of_row = cell if isinstance(cell, Formula) else of_number(cell)
    directions, each = hx[0].size(0), 1 + recurrent + 2 * biased + projected + count
    visited = [[[[None] * directions for _ in range(x.size(1))] for _ in range(x.size(0))] for _ in hx]
    final = [[[None] * x.size(1) for _ in range(directions)] for _ in hx]
    for d in range(directions):
        w = list(weights[d * each : (d + 1) * each])
        w, params = w[: each - count], w[each - count :]
        w_hr = w.pop() if projected else None
        w_hh = w.pop(1) if recurrent else None
        b_ih, b_hh = w[1:] if biased else (0, 0)
        for b, length in enumerate(lengths):
            state = tuple(s[d, b] for s in hx)
            backwards = d >= forwards
            for t in reversed(range(length)) if backwards else range(length):
                if is_cut(None if resets is None else resets[b], length, t, backwards):
                    state = tuple(torch.full_like(s, value) for s, value in zip(state, initial, strict=True))
                before, seen = state, None if mask is None else mask[d, b]
                state = of_row(x[t, b], before, w[0], w_hh, b_ih, b_hh, w_hr, params, seen)
                if keep is not None:
                    state = zoned(keep(d, b, t), before, state)
                for s, value in enumerate(state):
                    visited[s][t][b][d] = value
            for s, value in enumerate(state):
                final[s][d][b] = value
    steps = []
    for state, given in zip(visited, hx, strict=True):
        zero = torch.zeros_like(given[0, 0])
        rows = [[torch.cat([zero if h is None else h for h in row]) for row in step_rows] for step_rows in state]
        steps.append(torch.stack([torch.stack(step_rows) for step_rows in rows]))
    return steps, [torch.stack([torch.stack(row) for row in state]) for state in final]


def dense(w_hh, cell):
    """(heads, G * H / heads, H / heads) as (G * H, H)."""
    gates = [torch.block_diag(*blocks) for blocks in zip(*[head.chunk(GATES[cell]) for head in w_hh])]
    return torch.cat(gates)


def stack(module, x, hx, lengths=None, reset_mask=None, masks=None, seeds=None, cell=None):
    """The output of a module, its final states, and the states of every step by layer; x is (T, B, I).

    masks (layers * D, B, H) are those of recurrent_dropout, seeds (layers * D, B) those of zoneout, which without them
    has its expectation; ``cell`` is the module's Formula where it has no number. Heads are a block-diagonal w_hh.
    """
    cell, D, sequences, finals = cell or MODES.index(module.mode), 1 + module.bidirectional, [], []
    lengths = [x.size(0)] * x.size(1) if lengths is None else lengths.tolist()
    flat = [dense(w, cell) if w.dim() == 3 else w for w in module._weights()]
    each = len(flat) // module.num_layers
    for index in range(module.num_layers):

        def keep(d, b, t, index=index):
            if seeds is None:
                return module.zoneout
            return kept(int(seeds[index * D + d][b]), t, module.hidden_size, module.zoneout)

        rows, weights = slice(index * D, (index + 1) * D), flat[index * each : (index + 1) * each]
        steps, final = layer(
            cell, x, lengths, [h[rows] for h in hx], weights, module.bias, module.proj_size > 0, reset_mask,
            mask=None if masks is None else masks[rows], keep=keep if module.zoneout else None,
        )  # fmt: skip
        x = steps[0]
        sequences.append(tuple(steps))
        finals.append(final)
    return x, tuple(torch.cat(states) for states in zip(*finals)), sequences
