"""NaN, infinities and the negative zero stand where torch.nn has them: on every backend and instruction set.

What torch.nn gives counts as defined where its layer with oneDNN, without it and in float64 agree. Of a GRU's infinite
gradients only that they are not finite is: torch's layer on the CPU computes grad - grad z in the place of
grad (1 - z), which makes infinity NaN.
"""

from __future__ import annotations

import math

import pytest
import torch
from support import DTYPES, ISAS, KERNELS, dtypes, pairs, tensors, twins, using

import fastrnn
from fastrnn.registry import CELLS

# T B I H: a remainder alone; full vectors with a remainder, several rows; full vectors, more rows than a tile.
SHAPES = [(1, 1, 3, 7), (3, 5, 5, 35), (2, 19, 2, 32)]
VALUES = (math.nan, math.inf, -math.inf)


def implementations():
    """The name of every backend, and of the compiled one with every instruction set of this machine, in use."""
    for backend in ("reference", "aten"):
        with fastrnn.backend(backend):
            yield backend
    for isa in ISAS if KERNELS else []:
        with using(isa), fastrnn.backend("cpu"):
            yield f"cpu {isa}"


def arguments(cell, dtype, shape, seed=1):
    """x, the initial states and the gradients of the output and of the final states, by name."""
    T, B, I, H = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = {"x": (T, B, I), "grad output": (T, B, H)}
    for state in "hc"[: cell.states]:
        sizes |= {state: (1, B, H), f"grad {state}": (1, B, H)}
    return {name: torch.randn(size, generator=generator).to(dtype) for name, size in sizes.items()}


def run(module, given):
    """The results of a layer and all gradients, by name."""
    parameters = dict(module.named_parameters())
    weight = next(iter(parameters.values()))
    given = {name: t.detach().to(weight.dtype) for name, t in given.items()}
    inputs = {name: given[name].requires_grad_() for name in "xhc" if name in given}
    x, *states = inputs.values()
    outputs = tensors(module(x, tuple(states) if len(states) == 2 else states[0]))
    grads = [given[f"grad {name}"] for name in ("output", "h", "c") if f"grad {name}" in given]
    sources = inputs | parameters
    results = torch.autograd.grad(outputs, list(sources.values()), grads)
    return dict(zip(["output", "final h", "final c"], outputs)) | {f"grad {n}": g for n, g in zip(sources, results)}


def kinds(t):
    return torch.where(t.isnan(), 2.0, torch.where(t.isinf(), t.sign().double(), 0.0))


def expected(theirs, truth, given, vague):
    """What torch gives, and for each result its kinds where they are defined, -2 where no more is known than that it
    is not finite, as everywhere if ``vague``, and -3 elsewhere."""
    variants = [run(theirs, given), run(truth, given)]
    with torch.backends.mkldnn.flags(enabled=False):
        variants.append(run(theirs, given))
    found = {}
    for name, value in variants[0].items():
        each = torch.stack([kinds(result[name]) for result in variants])
        known = (each == each[0]).all(0) & ((each[0] == 0) | (not vague))
        found[name] = value, torch.where(known, each[0], torch.where((each != 0).all(0), -2.0, -3.0))
    return found


def check(got, wanted, what):
    for name, (value, kind) in wanted.items():
        have, finite = kinds(got[name]), kind == 0
        wrong = ((have != kind) & (kind > -2)) | ((have == 0) & (kind == -2))
        assert not wrong.any(), f"{what}: {name}: got {got[name][wrong][:4]}, expected {value[wrong][:4]}"
        if value.dtype.itemsize >= 4:  # in 16 bits it is a matter of luck which sums a relu finds above 0
            torch.testing.assert_close(got[name][finite], value[finite], rtol=1e-3, atol=1e-4, msg=f"{what}: {name}")


def places(cell, shape):
    """(name, index): where a value is put."""
    T, _, _, H = shape
    yield from (("x", (T // 2, -1, -1)), ("grad output", (T - 1, -1)), ("grad output", (0, 0, H - 1)))
    for state in "hc"[: cell.states]:
        yield from ((state, (0, -1, -1)), (f"grad {state}", (0, 0)))
    last_unit = slice(H - 1, None, H)  # in all gates
    yield from ((name, (last_unit,)) for name in ("weight_ih_l0", "weight_hh_l0", "bias_hh_l0"))
    yield from (("bias_ih_l0", (gate * H + H - 1,)) for gate in range(cell.gates))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of torch, when oneDNN is switched
@pairs(cell=CELLS.values(), dtype=DTYPES, shape=SHAPES)
def test_what_is_not_finite_stands_where_torch_has_it(cell, dtype, shape):
    defined = total = 0
    for name, index in places(cell, shape):
        for value in VALUES:
            ours, theirs, truth = twins(cell, *shape[2:], dtype=dtype)
            given = arguments(cell, dtype, shape)
            with torch.no_grad():
                for module in (ours, theirs, truth):
                    (given | dict(module.named_parameters()))[name][index] = value
            vague = cell.mode == "GRU" and name.startswith("grad")
            wanted = expected(theirs, truth, given, vague)
            defined += sum((kind > -3).sum().item() for _, kind in wanted.values())
            total += sum(kind.numel() for _, kind in wanted.values())
            for implementation in implementations():
                check(run(ours, given), wanted, f"{implementation}, {value} at {name}{list(index)}")
    assert defined > 0.98 * total, (defined, total)


@dtypes
@pytest.mark.parametrize("H", [1, 19, 32])
@pytest.mark.parametrize("T", [1, 3])
def test_relu_passes_gradients_at_nan_and_none_at_zero(dtype, T, H):
    """A slope of 1 where the output is NaN, of 0 where it is 0; there an infinite gradient or NaN ends, too."""
    for value in (1.0, *VALUES):
        ours, theirs, _ = twins(CELLS["RNN_RELU"], 1, H, dtype=dtype)
        for module in (ours, theirs):
            with torch.no_grad():
                for p in module.parameters():
                    p.zero_()
                module.weight_ih_l0[::3] = 1
                module.bias_ih_l0[1::3] = -1  # and 0 stays 0 in every third
        given = {name: t.fill_(1) for name, t in arguments(CELLS["RNN_RELU"], dtype, (T, 2, 1, H)).items()}
        given["x"][-1, 1] = math.nan
        given["grad output"][:, :, 1:] = value  # to unit 0, which is above zero, comes 1
        expected = run(theirs, given)
        for implementation in implementations():
            for name, got in run(ours, given).items():
                torch.testing.assert_close(
                    got, expected[name], equal_nan=True, msg=f"{implementation}, {value}: {name}: {got}"
                )


@dtypes
@pytest.mark.parametrize("H", [1, 7, 19, 32])
def test_a_negative_zero_keeps_its_sign(dtype, H):
    """c = f c - 0 is one where c is, and so is h = o tanh(c)."""
    ours, theirs, truth = twins(CELLS["LSTM"], 1, H, dtype=dtype)
    for module in (ours, theirs, truth):
        with torch.no_grad():
            for p in module.parameters():
                p.zero_()
            module.bias_ih_l0[:H] = -1000  # i = 0
            module.bias_ih_l0[2 * H : 3 * H] = -1  # g < 0
    for T in (1, 3):
        given = arguments(CELLS["LSTM"], dtype, (T, 2, 1, H))
        given["x"].fill_(0)
        for state in "hc":
            given[state].fill_(0)[:, 1] = -0.0
        expected = run(theirs, given)
        assert expected["output"][:, 1].signbit().all() and not expected["output"][:, 0].signbit().any()
        for implementation in implementations():
            got = run(ours, given)
            for name in ("output", "final h", "final c"):
                assert not got[name].any(), (implementation, name)
                assert torch.equal(got[name].signbit(), expected[name].signbit()), (implementation, name)
