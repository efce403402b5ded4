"""One recurrent layer by the formulas, row by row, in whatever dtype its inputs have; gradients by autograd.

Every row of the batch is run alone over its own length, so nothing here knows of batch sizes or offsets.
"""

import torch

MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")  # a cell's number is its position
GATES = (4, 3, 1, 1)


def step(cell, x, state, w_ih, w_hh, b_ih, b_hh, w_hr):
    gates_x, gates_h = w_ih @ x + b_ih, w_hh @ state[0] + b_hh
    if cell == 0:
        i, f, g, o = (gates_x + gates_h).chunk(4)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if w_hr is None else w_hr @ h, c)
    if cell == 1:
        x_r, x_z, x_n = gates_x.chunk(3)
        h_r, h_z, h_n = gates_h.chunk(3)
        z = (x_z + h_z).sigmoid()
        n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        return ((1 - z) * n + z * state[0],)
    return ((gates_x + gates_h).tanh() if cell == 2 else (gates_x + gates_h).relu(),)


def layer(cell, x, lengths, hx, weights, biased, projected):
    """x (T, B, I) -> output (T, B, D*R), zero past a row's length, and the final states."""
    directions, each = hx[0].size(0), 2 + 2 * biased + projected
    output = [[[None] * directions for _ in range(x.size(1))] for _ in range(x.size(0))]
    final = [[[None] * x.size(1) for _ in range(directions)] for _ in hx]
    for d in range(directions):
        w = list(weights[d * each : (d + 1) * each])
        w_hr = w.pop() if projected else None
        b_ih, b_hh = w[2:] if biased else (0, 0)
        for b, length in enumerate(lengths):
            state = tuple(s[d, b] for s in hx)
            for t in range(length) if d == 0 else reversed(range(length)):
                state = step(cell, x[t, b], state, w[0], w[1], b_ih, b_hh, w_hr)
                output[t][b][d] = state[0]
            for s, value in enumerate(state):
                final[s][d][b] = value
    zero = torch.zeros_like(hx[0][0, 0])
    rows = [[torch.cat([zero if h is None else h for h in row]) for row in step_rows] for step_rows in output]
    stack = torch.stack([torch.stack(step_rows) for step_rows in rows])
    return stack, [torch.stack([torch.stack(row) for row in state]) for state in final]
