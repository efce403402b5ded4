"""Recurrent layers from scratch, printed as a lesson.

    python examples/from_scratch.py

An LSTM gate by gate, back-propagation through time by hand, layers and directions out of cells, and how many
parameters each cell has. Every piece is compared with fastrnn, and the hand-written gradients also with numerical
ones. In the end the hand-written LSTM learns a text beside fastrnn's. The text is the `import` topic of Python's own
documentation (PSF License 2), which every Python has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import fastrnn

Weights = tuple[Tensor, Tensor, Tensor]  # W_ih (4H, I), W_hh (4H, H), b (4H)
FAILED: list[str] = []  # comparisons that did not hold


def check(what: str, ours: Tensor, theirs: Tensor, limit: float = 1e-10) -> None:
    """Print the largest difference, and remember it if it is more than rounding in float64."""
    difference = float((ours - theirs).detach().abs().max())
    if not difference <= limit:
        FAILED.append(what)
    print(f"  {what:<58}{difference:.1e}  {'equal' if difference <= limit else 'NOT EQUAL'}")


def head(number: int, title: str, text: str) -> None:
    print(f"\n{number}. {title}\n{'-' * (len(title) + 3)}\n{text.strip()}\n")


# --- the forward pass ----------------------------------------------------------------------------------------------


def lstm_step(x: Tensor, h: Tensor, c: Tensor, weights: Weights) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """One step: x (B, I), h and c (B, H) -> the new h and c, and the four gates for the backward pass."""
    w_ih, w_hh, b = weights
    i, f, g, o = (x @ w_ih.t() + h @ w_hh.t() + b).chunk(4, dim=1)
    i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()  # how much to write, to keep, to show: between 0 and 1
    g = g.tanh()  # what to write
    c = f * c + i * g
    return o * c.tanh(), c, (i, f, g, o)


class HandWrittenLSTM(torch.autograd.Function):
    """A layer over a sequence whose backward pass is written out; autograd only calls it."""

    @staticmethod
    def forward(ctx, x, h, c, w_ih, w_hh, b):
        hs, cs, gates = [h], [c], []
        for x_t in x:
            h, c, step = lstm_step(x_t, h, c, (w_ih, w_hh, b))
            hs.append(h)
            cs.append(c)
            gates.append(torch.cat(step, dim=1))
        ctx.save_for_backward(x, torch.stack(hs), torch.stack(cs), torch.stack(gates), w_ih, w_hh)
        return torch.stack(hs[1:]), h.clone(), c.clone()

    @staticmethod
    def backward(ctx, d_output, d_h, d_c):
        """From the last step to the first: d_h and d_c are what the later steps ask of this one."""
        x, hs, cs, gates, w_ih, w_hh = ctx.saved_tensors
        d_x, d_w_ih, d_w_hh = torch.zeros_like(x), torch.zeros_like(w_ih), torch.zeros_like(w_hh)
        d_b = torch.zeros_like(w_ih[:, 0])
        for t in reversed(range(len(x))):
            i, f, g, o = gates[t].chunk(4, dim=1)
            d_h = d_h + d_output[t]  # h goes to the output and to the next step
            tanh_c = cs[t + 1].tanh()
            d_c = d_c + d_h * o * (1 - tanh_c**2)  # h = o tanh(c)
            d_before = torch.cat(  # of the gates before their sigmoid and tanh; sigmoid' = s (1 - s), tanh' = 1 - t^2
                [
                    d_c * g * i * (1 - i),  # c = f c_before + i g
                    d_c * cs[t] * f * (1 - f),
                    d_c * i * (1 - g**2),
                    d_h * tanh_c * o * (1 - o),
                ],
                dim=1,
            )
            d_x[t] = d_before @ w_ih
            d_w_ih += d_before.t() @ x[t]
            d_w_hh += d_before.t() @ hs[t]
            d_b += d_before.sum(0)
            d_h = d_before @ w_hh  # h of the step before fed the gates
            d_c = d_c * f  # and its c was kept in part
        return d_x, d_h, d_c, d_w_ih, d_w_hh, d_b


# --- the lesson ----------------------------------------------------------------------------------------------------


def first_lesson_forward(T: int, B: int, I: int, H: int) -> None:
    head(
        1,
        "An LSTM, gate by gate",
        """
An LSTM hands two states from step to step: c, which is written and kept, and h, which is shown. Four gates decide:

    i = sigmoid(W_i x + U_i h + b_i)    how much of g is written
    f = sigmoid(W_f x + U_f h + b_f)    how much of c is kept
    g =    tanh(W_g x + U_g h + b_g)    what would be written
    o = sigmoid(W_o x + U_o h + b_o)    how much of c is shown

    c = f c + i g            h = o tanh(c)

torch stacks the four W into weight_ih, the four U into weight_hh, and has two biases, which are added.
""",
    )
    cell, layer = fastrnn.LSTMCell(I, H), fastrnn.LSTM(I, H)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih + cell.bias_hh)
    x, h, c = torch.randn(T, B, I), torch.randn(B, H), torch.randn(B, H)
    h_1, c_1, _ = lstm_step(x[0], h, c, weights)
    theirs = cell(x[0], (h, c))
    check("h after one step, against fastrnn.LSTMCell", h_1, theirs[0])
    check("c after one step", c_1, theirs[1])
    output, _, c_n = HandWrittenLSTM.apply(x, h, c, *weights)
    their_output, (_, their_c) = layer(x, (h[None], c[None]))
    check(f"output of {T} steps, against fastrnn.LSTM", output, their_output)
    check("c after the last step", c_n, their_c[0])


def second_lesson_backward(T: int, B: int, I: int, H: int) -> None:
    head(
        2,
        "Back-propagation through time, by hand",
        """
The loss asks something of the output of every step. Going backwards, each step hands two requests to the one before:

    d_c = d_c_later * f_later + d_h o (1 - tanh(c)^2)        d_h = d_output + U^T d_gates_later

The gradients of the weights are sums over all steps. See HandWrittenLSTM.backward in this file: it is 20 lines.
""",
    )
    layer = fastrnn.LSTM(I, H)
    x, h, c = torch.randn(T, B, I), torch.randn(1, B, H), torch.randn(1, B, H)
    weights = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0]
    ours_in = [tensor.detach().clone().requires_grad_() for tensor in (x, h[0], c[0], *weights)]
    ours_in[-1].data += layer.bias_hh_l0.detach()
    theirs_in = [tensor.requires_grad_() for tensor in (x, h, c)] + weights
    output, h_n, c_n = HandWrittenLSTM.apply(*ours_in)
    their_output, (their_h, their_c) = layer(x, (h, c))
    asked = [torch.randn_like(output), torch.randn_like(h_n), torch.randn_like(c_n)]
    ours = torch.autograd.grad((output, h_n, c_n), ours_in, asked)
    theirs = torch.autograd.grad((their_output, their_h[0], their_c[0]), theirs_in, asked)
    for name, mine, other in zip(("x", "the first h", "the first c", "W_ih", "W_hh", "b"), ours, theirs):
        check(f"gradient of {name}, against fastrnn", mine, other.view_as(mine))
    small = [tensor.detach().clone().requires_grad_() for tensor in ours_in]
    small[0] = small[0].detach()[:4].clone().requires_grad_()
    holds = torch.autograd.gradcheck(HandWrittenLSTM.apply, small, raise_exception=False)
    print(f"  {'gradcheck: numerical gradients of every input':<58}{'passed' if holds else 'FAILED'}")
    if not holds:
        FAILED.append("gradcheck")


def third_lesson_layers(T: int, B: int, I: int, H: int) -> None:
    head(
        3,
        "Layers and directions",
        """
A layer reads the output of the layer below. A direction more is a second cell, with weights of its own, that reads the
sequence from its end; the outputs of both stand side by side. So the second layer of a bidirectional LSTM reads 2 H.
""",
    )
    layer = fastrnn.LSTM(I, H, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I)
    below, zeros = x, torch.zeros(B, H)
    for number in range(2):
        both = []
        for suffix in ("", "_reverse"):
            w_ih, w_hh, b_ih, b_hh = (
                getattr(layer, f"{name}_l{number}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            is_reverse = bool(suffix)
            sequence = below.flip(0) if is_reverse else below
            output, _, _ = HandWrittenLSTM.apply(sequence, zeros, zeros, w_ih, w_hh, b_ih + b_hh)
            both.append(output.flip(0) if is_reverse else output)
        below = torch.cat(both, dim=2)
    check("two layers, both directions, against fastrnn.LSTM", below, layer(x)[0])


def fourth_lesson_parameters(I: int, H: int) -> None:
    head(
        4,
        "How many parameters",
        """
An Elman RNN has one matrix pair and bias pair of H rows, a GRU three (reset, update, new), an LSTM four.
""",
    )
    counts = {
        name: sum(p.numel() for p in getattr(fastrnn, name)(I, H).parameters()) for name in ("RNN", "GRU", "LSTM")
    }
    for name, count in counts.items():
        print(f"  {name:<5}{count:>10,}   {count // counts['RNN']} x (H I + H H + 2 H), I = {I}, H = {H}")
    if [counts[name] / counts["RNN"] for name in counts] != [1, 3, 4]:
        FAILED.append("parameters 1:3:4")


def fifth_lesson_learning(steps: int) -> None:
    head(
        5,
        "It learns",
        f"""
Both LSTMs start from the same weights in float32 and learn the next character of a text: {steps} steps of Adam,
16 pieces of 32 characters each.
""",
    )
    from pydoc_data.topics import topics

    text = topics["import"]
    characters = sorted(set(text))
    numbers = torch.tensor([characters.index(character) for character in text])
    size, H = len(characters), 64
    layer = fastrnn.LSTM(size, H, dtype=torch.float32)
    decode = nn.Linear(H, size, dtype=torch.float32)
    start = [p.detach().clone() for p in (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0)]
    weights = [p.requires_grad_() for p in start]
    our_decode = nn.Linear(H, size, dtype=torch.float32)
    our_decode.load_state_dict(decode.state_dict())
    # torch adds two biases, each with a gradient of its own; one of them stands still here, as ours is a single one.
    layer.bias_ih_l0.data += layer.bias_hh_l0.data
    layer.bias_hh_l0.data.zero_()
    layer.bias_hh_l0.requires_grad_(False)

    def ours(x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.shape[1], H)
        return our_decode(HandWrittenLSTM.apply(x, zeros, zeros, *weights)[0])

    def theirs(x: Tensor) -> Tensor:
        return decode(layer(x)[0])

    our_losses = learn(ours, [*weights, *our_decode.parameters()], numbers, size, steps)
    losses = learn(
        theirs, [*(p for p in layer.parameters() if p.requires_grad), *decode.parameters()], numbers, size, steps
    )
    for step in sorted({0, steps // 4, steps // 2, steps - 1}):
        print(f"  step {step + 1:>4}: loss by hand {our_losses[step]:.4f}, fastrnn {losses[step]:.4f}")
    check("losses of all steps", torch.tensor(our_losses), torch.tensor(losses), limit=1e-2)
    if not losses[-1] < 0.8 * losses[0]:
        FAILED.append("the loss falls")


def learn(model: Callable, parameters: list[Tensor], numbers: Tensor, size: int, steps: int) -> list[float]:
    """Train on random pieces of the text; returns the losses."""
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        places = torch.randint(len(numbers) - 33, (16,), generator=generator) + torch.arange(33)[:, None]
        piece = numbers[places]
        logits = model(nn.functional.one_hot(piece[:-1], size).float())
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), piece[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    """Print the lesson; the exit status is 0, or 1 if a comparison does not hold."""
    parser = argparse.ArgumentParser(prog="from_scratch.py", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="of learning, default: %(default)s")
    args = parser.parse_args(argv)
    FAILED.clear()
    torch.manual_seed(args.seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # so that a mistake is told from rounding
    try:
        first_lesson_forward(T=12, B=3, I=5, H=7)
        second_lesson_backward(T=12, B=3, I=5, H=7)
        third_lesson_layers(T=12, B=3, I=5, H=7)
        fourth_lesson_parameters(I=128, H=256)
        fifth_lesson_learning(args.steps)
    finally:
        torch.set_default_dtype(before)
    print("\nEverything agrees." if not FAILED else f"\nNOT EQUAL: {', '.join(FAILED)}")
    return int(bool(FAILED))


if __name__ == "__main__":
    sys.exit(main())
