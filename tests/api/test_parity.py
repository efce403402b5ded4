"""Every cell, as a layer and as one step, computes what torch.nn computes, forward and backward, on every backend."""

from __future__ import annotations

import functools
import itertools

import torch
from support import (
    DTYPES,
    agree,
    available,
    build,
    cells,
    compare,
    cotangents,
    device_of,
    dtypes,
    given,
    like,
    name_of,
    off_the_kink,
    pairs,
    pairwise,
    random_states,
    tensors,
    twins,
)

import fastrnn
from fastrnn.registry import CELLS

GRID = pairwise(
    {
        "layers": (1, 2, 3),
        "bidirectional": (False, True),
        "bias": (True, False),
        "projected": (False, True),
        "packed": (False, True),
        "batch_first": (False, True),
        "hx": (False, True),
        "T": (1, 2, 7),
        "B": (0, 1, 3, 17),
        "sizes": ((1, 1), (3, 17), (17, 3), (33, 65), (65, 33)),
    }
)


def judged(dtype, cell, draw) -> None:
    """Compares what ``draw`` gives: modules, an input, initial states and lengths.

    In 16 bits a sum that cancels decides the error of one small case in 2,000, in torch's result or in ours: then four
    fresh ones must be right.
    """

    def judge():
        modules, x, hx, lengths = draw()
        if cell.nonlinearity == "relu" and dtype.itemsize == 2:
            x, hx = off_the_kink(modules, x, hx)
        compare(modules, x, hx, lengths)

    try:
        judge()
    except AssertionError:
        if dtype.itemsize > 2:
            raise
        for _ in range(4):
            judge()


@dtypes
@pairs(cell=CELLS.values(), backend=available(), case={name_of(case): case for case in GRID})
def test_layer(cell, dtype, backend, case):
    T, B, (I, H) = case["T"], case["B"], case["sizes"]
    proj = (H + 1) // 2 if case["projected"] and cell.mode == "LSTM" and H > 1 else 0
    options = {key: case[key] for key in ("bidirectional", "bias", "batch_first")}
    if proj:
        options["proj_size"] = proj
    rows, device = case["layers"] * (2 if case["bidirectional"] else 1), device_of(backend)

    def draw():
        modules = twins(cell, I, H, case["layers"], **options, device=device, dtype=dtype)
        x = torch.randn(*((B, T) if case["batch_first"] else (T, B)), I, device=device)
        hx = random_states(cell, rows, B, H, proj) if case["hx"] else None
        return modules, x, hx, torch.randint(1, T + 1, (B,)) if case["packed"] and B else None

    judged(dtype, cell, draw)


@pairs(
    cell=CELLS.values(),
    dtype=DTYPES,
    backend=available(),
    bias=[True, False],
    B=[0, 1, 33, None],
    with_states={"hx": True, "zeros": False},
)
def test_step(cell, dtype, backend, bias, B, with_states):
    batch = () if B is None else (B,)
    for I, H in itertools.pairwise((1, 3, 17, 33)):

        def draw(I=I, H=H):
            modules = twins(cell, I, H, step=True, bias=bias, device=device_of(backend), dtype=dtype)
            hx = given([torch.randn(*batch, H) for _ in range(cell.states)]) if with_states else None
            return modules, torch.randn(*batch, I), hx, None

        judged(dtype, cell, draw)


@cells
def test_long_sequence(cell, backend):
    """Rounding errors do not pile up faster than torch's."""
    for dtype in (torch.float32, torch.bfloat16):
        modules = twins(cell, 5, 16, device=device_of(backend), dtype=dtype)
        compare(modules, torch.randn(150, 2, 5))


@cells
def test_unbatched_layer(cell, backend):
    for hx in (None, given([torch.randn(4, 5) for _ in range(cell.states)])):
        modules = twins(cell, 3, 5, 2, bidirectional=True, device=device_of(backend))
        compare(modules, torch.randn(6, 3), hx)


WANTED = ["x", "hx", "weights", "x+hx", "x+weights", "hx+weights", "one weight", "c or h"]


@pairs(cell=CELLS.values(), backend=available(), wanted=WANTED)
def test_gradients_of_some_inputs_only(cell, backend, wanted):
    """What asks for no gradient gets none, and the others' gradients do not depend on it."""
    x, hx = torch.randn(4, 2, 3), random_states(cell, 4, 2, 5)

    def gradients(module):
        x_, hx_ = like(module, x), like(module, hx)
        groups = {"x": [x_], "hx": tensors(hx_), "weights": list(module.parameters())}
        groups |= {"one weight": [module.weight_hh_l0_reverse], "c or h": [tensors(hx_)[-1]]}
        sources = [t for name in wanted.split("+") for t in groups[name]]
        for t in itertools.chain(*groups.values()):
            t.requires_grad_(any(t is s for s in sources))
        outputs = tensors(module(x_, hx_))
        torch.autograd.backward(outputs, cotangents(outputs, torch.float32))
        assert all((t.grad is not None) == t.requires_grad for t in itertools.chain(*groups.values()))
        return [t.grad for t in sources]

    agree(twins(cell, 3, 5, 2, bidirectional=True, device=device_of(backend)), gradients)


@cells
def test_only_some_outputs_used(cell, backend):
    """A gradient may come from the last state alone, or from the output alone."""
    modules, x = twins(cell, 3, 5, bidirectional=True, device=device_of(backend)), torch.randn(4, 2, 3)

    def gradients(module, used):
        x_ = like(module, x)
        output = tensors(module(x_))[used]
        return torch.autograd.grad([output], [x_, module.weight_hh_l0], cotangents([output], x.dtype))

    for used in range(1 + cell.states):
        agree(modules, functools.partial(gradients, used=used))


@pairs(cell=CELLS.values(), backend=available(), packed=[False, True], dtype=DTYPES)
def test_second_backward_is_the_first(cell, backend, packed, dtype):
    """Saved tensors survive a backward: with retain_graph the second gives the same bits."""
    module = build(fastrnn, cell, 3, 17, 2, bidirectional=True, device=device_of(backend), dtype=dtype)
    x = like(module, torch.randn(5, 3, 3))
    input = torch.nn.utils.rnn.pack_padded_sequence(x, [5, 3, 2]) if packed else x
    outputs = tensors(module(input))
    sources = [x, *module.parameters()]
    first, second = (
        torch.autograd.grad(outputs, sources, cotangents(outputs, dtype), retain_graph=again) for again in (True, False)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@cells
def test_without_gradient_the_same_numbers(cell, backend):
    """no_grad and inference_mode take a path that saves nothing: it must agree to the budget of one rounding."""
    modules = twins(cell, 3, 17, 2, bidirectional=True, device=device_of(backend))
    x = torch.randn(5, 3, 3, device=device_of(backend))
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            agree(modules, lambda module: module(x.to(module.weight_hh_l0)))
            assert not any(t.requires_grad for t in tensors(modules[0](x)))
