"""One time step of every cell, forward and backward, on preallocated whole-sequence buffers.

Forward: ``Forward(gates, weights, out, counts, save)`` binds the buffers of one direction. ``gates`` (N, G*H) holds the
input product and is overwritten, with the activated gates if they are to be saved; ``out`` are the step-wise views of
the layer's output columns. ``step(t, state)`` returns the next state, after ``make_room`` for as many rows as it has;
``saved`` is what backward needs.

Backward: ``Backward(saved, out, initial, weights, counts, reverse, scratch)`` folds what it can into coefficients of
the whole sequence, in memory of a :class:`~.scratch.Scratch`. ``step(t, grad_state, addend)`` turns the gradient of the
state after step t into that of the state before it, recurrent product included; ``addend``, if given, is added to the
gradient of h on the way. Afterwards ``grad_hidden`` (N, G*H) holds the gradients of the hidden product,
``grad_input()`` those of the input product and ``grad_projection()`` that of ``w_hr``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .products import factor, product
from .rows import Direction, previous

State = tuple[Tensor, ...]
# grad * y (1 - y) and grad * (1 - y * y) in one pass each.
sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input
relu_backward = torch.ops.aten.threshold_backward.grad_input


class LSTMForward:
    """i, f, o = sigmoid, g = tanh; c' = f c + i g; h' = o tanh(c'), then projected if there is a ``w_hr``.

    A step computes in a place of its own, whose parts are cut out once: a view takes as long as a small operation.
    """

    def __init__(self, gates: Tensor, weights: Direction, out: list[Tensor], counts: list[int], save: bool):
        self.saved = [gates, gates.new_empty(gates.size(0), gates.size(1) // 4)] if save else []
        self.cells = self.saved[1].split(counts) if save else [None] * len(counts)
        self.recurrent = factor(weights.w_hh.t(), counts)
        self.projection = None if weights.w_hr is None else weights.w_hr.t()
        self.gates, self.out = gates.split(counts), out

    def make_room(self, rows: int) -> None:
        gates, hidden = self.gates[0], self.gates[0].size(1) // 4
        self.sums, self.activated = gates.new_empty(2, rows, 4 * hidden)
        self.sum_of_g = self.sums[:, 2 * hidden : 3 * hidden]
        self.i, self.f, self.g, self.o = self.activated.split(hidden, 1)

    def step(self, t: int, state: State) -> State:
        h, c = state
        torch.sigmoid(self.recurrent.plus(self.gates[t], h, out=self.sums), out=self.activated)
        torch.tanh(self.sum_of_g, out=self.g)
        c = torch.mul(c, self.f, out=self.cells[t]).addcmul_(self.i, self.g)
        if self.saved:
            self.gates[t].copy_(self.activated)
        if self.projection is None:
            return torch.mul(c.tanh(), self.o, out=self.out[t]), c
        return torch.mm(c.tanh().mul_(self.o), self.projection, out=self.out[t]), c


class LSTMBackward:
    """Gradients of i, f and g are dc times a factor, that of o is dh times one."""

    def __init__(self, saved, out: Tensor, initial, weights: Direction, counts: list[int], reverse: bool, scratch):
        gates, cells = saved
        hidden = cells.size(1)
        i, f, g, o = gates.split(hidden, 1)
        tanh_c = torch.tanh(cells, out=scratch.empty(*cells.shape))
        self.grad_hidden = scratch.empty(*gates.shape)  # the factors, until each has met its gradient
        for_i, for_f, for_g, for_o = self.grad_hidden.split(hidden, 1)
        sigmoid_backward(g, i, grad_input=for_i)
        sigmoid_backward(previous(cells, initial[1], counts, reverse, scratch), f, grad_input=for_f)
        tanh_backward(i, g, grad_input=for_g)
        sigmoid_backward(tanh_c, o, grad_input=for_o)
        self.unprojected = None if weights.w_hr is None else o * tanh_c
        self.slope = tanh_backward(o, tanh_c, grad_input=tanh_c).split(counts)
        self.f = f.split(counts)
        self.recurrent, self.w_hr = factor(weights.w_hh, counts), weights.w_hr
        self.grad_rows = self.grad_hidden.split(counts)
        self.for_ifg = self.grad_hidden[:, : 3 * hidden].unflatten(1, (3, hidden)).transpose(0, 1).split(counts, 1)
        self.for_o = for_o.split(counts)
        if self.w_hr is not None:
            self.grad_h = scratch.empty(cells.size(0), self.w_hr.size(0))
            self.grad_h_rows = self.grad_h.split(counts)

    def step(self, t: int, grad_state: State, addend: Tensor | None) -> State:
        dh, dc = grad_state
        if self.w_hr is not None:
            self.grad_h_rows[t].copy_(dh)
            dh = torch.mm(dh, self.w_hr)
        dc = torch.addcmul(dc, dh, self.slope[t])
        self.for_o[t].mul_(dh)
        self.for_ifg[t].mul_(dc)
        return self.recurrent.times(self.grad_rows[t], addend), dc.mul_(self.f[t])

    def grad_input(self) -> Tensor:
        return self.grad_hidden

    def grad_projection(self) -> Tensor:
        return product(self.grad_h.t(), self.unprojected)


class GRUForward:
    """r, z = sigmoid; n = tanh(x + r h); h' = n + z (h - n), the reset applied after the hidden product."""

    def __init__(self, gates: Tensor, weights: Direction, out: list[Tensor], counts: list[int], save: bool):
        hidden = gates.size(1) // 3
        self.saved = [gates, gates.new_empty(gates.size(0), hidden)] if save else []
        self.hidden_n = self.saved[1].split(counts) if save else None
        self.recurrent = factor(weights.w_hh.t(), counts, weights.b_hh)
        self.sizes = [2 * hidden, hidden]
        self.out = out
        self.r_and_z = gates[:, : 2 * hidden].split(counts)
        self.r, self.z, self.n = (gate.split(counts) for gate in gates.split(hidden, 1))

    def make_room(self, rows: int) -> None:
        self.product = self.r[0].new_empty(rows, sum(self.sizes))
        self.difference = self.r[0].new_empty(rows, self.sizes[1])
        self.parts = self.product.split(self.sizes, 1)

    def step(self, t: int, state: State) -> State:
        (h,) = state
        product = self.recurrent.into(self.product, h)
        r_and_z, hidden_n = self.parts if product is self.product else product.split(self.sizes, 1)
        self.r_and_z[t].add_(r_and_z).sigmoid_()
        if self.hidden_n is not None:
            self.hidden_n[t].copy_(hidden_n)
        n = self.n[t].addcmul_(self.r[t], hidden_n).tanh_()
        # torch.lerp would subtract from h where z > 0.5, and make NaN of an infinite one.
        return (torch.addcmul(n, torch.sub(h, n, out=self.difference), self.z[t], out=self.out[t]),)


class GRUBackward:
    """Every gate gradient is dh times a factor. The buffers hold four a unit: the input's n, then the hidden r z n."""

    def __init__(self, saved, out: Tensor, initial, weights: Direction, counts: list[int], reverse: bool, scratch):
        gates, hidden_n = saved
        rows, hidden = hidden_n.shape
        r, z, n = gates.split(hidden, 1)
        self.grads = scratch.empty(rows, 4 * hidden)  # the factors, until each has met its gradient
        for_n, for_r, for_z, for_hidden_n = self.grads.split(hidden, 1)
        tanh_backward(1 - z, n, grad_input=for_n)
        sigmoid_backward(for_n * hidden_n, r, grad_input=for_r)
        sigmoid_backward(previous(out, initial[0], counts, reverse, scratch).sub_(n), z, grad_input=for_z)
        torch.mul(for_n, r, out=for_hidden_n)
        self.z, self.recurrent = z.split(counts), factor(weights.w_hh, counts)
        self.grad_gates = self.grads.unflatten(1, (4, hidden)).transpose(0, 1).split(counts, 1)
        self.grad_hidden = self.grads[:, hidden:]
        self.grad_rows = self.grad_hidden.split(counts)

    def step(self, t: int, grad_state: State, addend: Tensor | None) -> State:
        (dh,) = grad_state
        self.grad_gates[t].mul_(dh)
        direct = dh * self.z[t] if addend is None else torch.addcmul(addend, dh, self.z[t])
        return (self.recurrent.add_to(direct, self.grad_rows[t]),)

    def grad_input(self) -> Tensor:
        n, r, z, _ = self.grads.chunk(4, 1)
        return torch.cat([r, z, n], 1)


class TanhForward:
    """h' = tanh(x + h), in the place of x: the gates are the output."""

    def __init__(self, gates: Tensor, weights: Direction, out: list[Tensor], counts: list[int], save: bool):
        self.saved: list[Tensor] = []
        self.recurrent = factor(weights.w_hh.t(), counts)
        self.out = out

    def make_room(self, rows: int) -> None:
        pass

    def step(self, t: int, state: State) -> State:
        return (self.recurrent.add_to(self.out[t], state[0]).tanh_(),)


class ReluForward(TanhForward):
    """h' = relu(x + h)."""

    def step(self, t: int, state: State) -> State:
        return (self.recurrent.add_to(self.out[t], state[0]).relu_(),)


class TanhBackward:
    """The gradient of the one gate is dh times the slope at the output."""

    def __init__(self, saved, out: Tensor, initial, weights: Direction, counts: list[int], reverse: bool, scratch):
        self.out = out.split(counts)
        self.recurrent = factor(weights.w_hh, counts)
        self.grad_hidden = scratch.empty(*out.shape)
        self.grad_rows = self.grad_hidden.split(counts)

    def through_activation(self, t: int, dh: Tensor) -> Tensor:
        return tanh_backward(dh, self.out[t], grad_input=self.grad_rows[t])

    def step(self, t: int, grad_state: State, addend: Tensor | None) -> State:
        return (self.recurrent.times(self.through_activation(t, grad_state[0]), addend),)

    def grad_input(self) -> Tensor:
        return self.grad_hidden


class ReluBackward(TanhBackward):
    """relu has slope 1 where its output is positive and 0 elsewhere."""

    def through_activation(self, t: int, dh: Tensor) -> Tensor:
        return relu_backward(dh, self.out[t], 0, grad_input=self.grad_rows[t])


# By mode; RNN cells compute inside the output, so their input product is written there.
FORWARD = {"LSTM": LSTMForward, "GRU": GRUForward, "RNN_TANH": TanhForward, "RNN_RELU": ReluForward}
BACKWARD = {"LSTM": LSTMBackward, "GRU": GRUBackward, "RNN_TANH": TanhBackward, "RNN_RELU": ReluBackward}
