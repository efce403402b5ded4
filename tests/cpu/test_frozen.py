"""What a frozen layer computes, on every instruction set: against torch.nn in float64, and int8 against numpy."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support import ISAS, KERNELS, build, cells, compiled, name_of, pairwise, random_states, tensors, using
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.registry import CELLS

pytestmark = compiled
gated = pytest.mark.parametrize("cell", [CELLS["LSTM"], CELLS["GRU"]], ids=name_of)

SIZES = (1, 3, 16, 17, 33, 65)
GRID = pairwise(
    {
        "T": (1, 2, 9, 70),
        "B": (1, 2, 3, 9),
        "I": SIZES,
        "H": SIZES,
        "layers": (1, 2, 3),
        "bidirectional": (False, True),
        "bias": (True, False),
        "batch_first": (False, True),
        "rows": ("whole", "packed", "lengths"),
        "projected": (False, True),
        "states": (True, False),
    }
)
# What is allowed beside twice torch's error, in units in the last place of 1: tanh is absolutely precise near 0.
UNITS = {torch.float32: 4, torch.bfloat16: 0.5}
# By how much sums of bfloat16 products may differ with their order: h is rounded after it.
BFLOAT16_ERROR = 4e-3

FORMS = [(isa, dot) for isa in ISAS for dot in ([False] if isa == "plain" else [False, True])]


@pytest.fixture(params=FORMS, ids=lambda form: form[0] + "-dot" * form[1], autouse=True)
def rounds_rows(request):
    """Every instruction set of this machine, with its dot products of bytes and bfloat16 and without, in use while the
    test runs. Whether bfloat16 products round both operands."""
    isa, dot = request.param
    with using(isa):
        KERNELS.use_dot_products(dot)
        yield dot and isa in ("avx512_bf16", "amx_bf16")
        KERNELS.use_dot_products(None)


def rounded(layer: nn.Module) -> nn.Module:
    """A copy whose matrices hold bfloat16 values."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.startswith("weight"):
                p.copy_(p.bfloat16())
    return layer


def to(dtype, hx):
    return tuple(h.to(dtype) for h in hx) if isinstance(hx, tuple) else hx if hx is None else hx.to(dtype)


def layer_of(cell, case, space=nn):
    options = {name: case[name] for name in ("bidirectional", "bias", "batch_first")}
    proj = (case["H"] + 1) // 2 if case["projected"] and cell.mode == "LSTM" and case["H"] > 1 else 0
    if proj:
        options["proj_size"] = proj
    return build(space, cell, case["I"], case["H"], case["layers"], **options), proj


def call(layer, case, x, hx, lengths):
    """The tensors of a call: output, then states; rows that do not exist are zero, as in a padded result."""
    x = x.transpose(0, 1) if case["batch_first"] else x
    if case["rows"] == "packed" or (case["rows"] == "lengths" and not isinstance(layer, fastrnn.FrozenLayer)):
        packed = pack_padded_sequence(x, lengths, case["batch_first"], enforce_sorted=False)
        output, final = layer(packed, hx)
        if case["rows"] == "lengths":
            total = case["T"]
            output = nn.utils.rnn.pad_packed_sequence(output, case["batch_first"], total_length=total)[0]
        return tensors((output, final))
    asked = {"lengths": lengths} if case["rows"] == "lengths" else {}
    return tensors(layer(x, hx, **asked))


@cells
@pytest.mark.parametrize("weights", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("part", range(4))
def test_error_budget(cell, weights, part, rounds_rows):
    """Any two values of any two factors meet in GRID. With bfloat16 weights the truth has them, too, and where rows are
    rounded as well, it is the error of torch.nn in bfloat16 that is allowed twice."""
    for case in GRID[part::4]:
        theirs, proj = layer_of(cell, case)
        theirs = rounded(theirs) if weights else theirs
        frozen = fastrnn.freeze(theirs, weights=weights)
        x = torch.randn(case["T"], case["B"], case["I"]) * min(1, case["H"] / case["I"]) ** 0.5
        directions = 2 if case["bidirectional"] else 1
        hx = random_states(cell, case["layers"] * directions, case["B"], case["H"], proj) if case["states"] else None
        lengths = torch.randint(1, case["T"] + 1, (case["B"],))
        lengths[-1] = case["T"]
        truth = copy.deepcopy(theirs).double()
        if weights and rounds_rows:
            theirs = theirs.bfloat16()
        dtype = next(theirs.parameters()).dtype
        with torch.no_grad():
            results = call(frozen, case, x, hx, lengths)
            expected = call(theirs, case, x.to(dtype), to(dtype, hx), lengths)
            exact = call(truth, case, x.double(), to(torch.float64, hx), lengths)
        for got, torchs, true in zip(results, expected, exact, strict=True):
            assert (got.dtype, got.shape) == (torch.float32, true.shape)
            error, theirs_error = ((t.double() - true).abs().max().item() for t in (got, torchs))
            budget = 2 * theirs_error + UNITS[dtype] * torch.finfo(dtype).eps * max(1.0, true.abs().max().item())
            assert error <= budget, f"{case}: error of {error:.1e}, torch's {theirs_error:.1e}, allowed {budget:.1e}"


def quantised_step(cell, x, h, c, layer):
    """One step of the arithmetic that docs/inference.md states, in numpy: everything but sums of integers is float."""
    gates = []
    for values, scale, weight, row_scale, bias in (
        (*by_largest(x), layer.weight_ih_l0, layer.weight_ih_l0_scale, layer.bias_ih_l0),
        (np.rint(np.clip(h * np.float32(127), -127, 127)), 1 / 127, layer.weight_hh_l0, layer.weight_hh_l0_scale,
         layer.bias_hh_l0),
    ):  # fmt: skip
        sums = values.astype(np.int64) @ weight.numpy().astype(np.int64).T
        gates.append(sums * (row_scale.numpy().astype(np.float64) * scale) + bias.numpy())
    H = h.shape[1]
    a, b = (np.split(g, range(H, cell.gates * H, H), axis=1) for g in gates)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    if cell.mode == "LSTM":
        i, f, o = (sigmoid(a[k] + b[k]) for k in (0, 1, 3))
        c = f * c + i * np.tanh(a[2] + b[2])
        return (o * np.tanh(c)).astype(np.float32), c
    r, z = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
    n = np.tanh(a[2] + r * b[2])
    return (n + z * (h - n)).astype(np.float32), c


def by_largest(x):
    largest = np.abs(x).max(1, keepdims=True)
    largest = np.where(largest > 0, largest, np.float32(1))
    return np.rint(x * (np.float32(127) / largest)), largest / 127


@gated
@pytest.mark.parametrize("sizes", [(1, 1), (3, 5), (16, 16), (37, 50), (130, 33)], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_int8_is_what_the_page_says(cell, sizes, batch):
    """A value of h near a boundary may round the other way: rare, so the mean error is small."""
    theirs = build(nn, cell, *sizes)
    frozen = fastrnn.freeze(theirs, weights=torch.int8)
    x, h = torch.randn(11, batch, sizes[0]), torch.rand(1, batch, sizes[1]) * 2 - 1
    x[3, 0] = 0
    c = torch.randn_like(h)
    output, final = frozen(x, (h, c) if cell.states == 2 else h)
    expected, state = [], (h[0].numpy(), c[0].numpy().astype(np.float64))
    for t in range(11):
        state = quantised_step(cell, x[t].numpy(), *state, frozen)
        expected.append(state[0])
    error = np.abs(output.numpy() - np.stack(expected))
    assert error.mean() < 2e-5 and error.max() < 5e-3
    assert torch.equal(tensors(final)[0][0], output[-1])
    with torch.no_grad():
        exact = copy.deepcopy(theirs).double()(x.double(), (h.double(), c.double()) if cell.states == 2 else h.double())
    assert (output - exact[0]).abs().max() < 0.03


@gated
def test_int8_stack(cell):
    """Layers, directions, lengths: each direction of each layer alone gives the same bits."""
    theirs = build(nn, cell, 19, 21, 2, bidirectional=True)
    frozen = fastrnn.freeze(theirs, weights=torch.int8)
    x, lengths = torch.randn(6, 5, 19), torch.tensor([6, 2, 0, 5, 1])
    output, final = frozen(x, lengths=lengths)
    weights = theirs.state_dict()
    for b in range(5):
        rows = x[: lengths[b], b : b + 1]
        for layer in range(2):
            if lengths[b] == 0:
                continue
            found = []
            for d, suffix in enumerate(("", "_reverse")):
                one = build(nn, cell, rows.size(2), 21)
                one.load_state_dict({n: weights[n.replace("_l0", f"_l{layer}{suffix}")] for n in one.state_dict()})
                way = rows.flip(0) if d else rows
                result, last = fastrnn.freeze(one, weights=torch.int8)(way)
                found.append(result.flip(0) if d else result)
                for whole, part in zip(tensors(final), tensors(last), strict=True):
                    assert torch.equal(whole[2 * layer + d, b], part[0, 0])
            rows = torch.cat(found, 2)
        if lengths[b]:
            assert torch.equal(output[: lengths[b], b : b + 1], rows)
        assert not output[lengths[b] :, b].any()


@cells
@pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.int8], ids=str)
def test_steps_and_chunks_are_the_sequence(cell, weights, rounds_rows):
    """int8 to the last bit; else products of other numbers of rows add up in another order."""
    if weights == torch.int8 and cell.mode not in ("LSTM", "GRU"):
        pytest.skip("int8 is for LSTM and GRU")
    for options in ({}, {"proj_size": 9}) if cell.mode == "LSTM" and weights != torch.int8 else ({},):
        frozen = fastrnn.freeze(build(nn, cell, 12, 35, 2, **options), weights=weights)
        x = torch.randn(13, 3, 12)
        whole, final = frozen(x)
        budget = 0 if weights == torch.int8 else BFLOAT16_ERROR if weights and rounds_rows else 1e-6
        budget *= max(1.0, whole.abs().max().item())

        state, out = frozen.initial_state(3), torch.empty(3, whole.size(2))
        steps = [frozen.step(x[t], state, out if t % 2 else None).clone() for t in range(13)]
        assert (torch.stack(steps) - whole).abs().max() <= budget
        stream = frozen.stream(3)
        chunks = [stream(part) for part in x.split([1, 5, 4, 3])]
        assert (torch.cat(chunks) - whole).abs().max() <= budget
        for stepped, streamed, last in zip(tensors(state), tensors(stream.state), tensors(final), strict=True):
            assert (stepped - last).abs().max() <= budget and (streamed - last).abs().max() <= budget

        before = [h.clone() for h in tensors(stream.state)]
        stream.reset([1])
        for h, old in zip(tensors(stream.state), before, strict=True):
            assert not h[:, 1].any() and torch.equal(h[:, [0, 2]], old[:, [0, 2]])
        stream.reset()
        assert (stream(x) - whole).abs().max() <= budget

        one = frozen.initial_state()
        first = frozen.step(x[0, 0], one)
        assert (first - whole[0, 0]).abs().max() <= budget


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "PeepholeLSTM"])
def test_calls_of_unusual_form(kind, batch_first):
    """One sequence with a length, with and without states, and a chunk of no step."""
    layer = getattr(fastrnn, kind)(4, 5, 2, batch_first=batch_first)
    frozen, x = fastrnn.freeze(layer), torch.randn(3, 4)
    with torch.no_grad():
        for hx in (None, layer(x)[1]):
            for got, want in zip(*(tensors(m(x, hx, lengths=[2])) for m in (frozen, layer)), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    stream = frozen.stream(2)
    before = [h.clone() for h in tensors(stream.state)]
    shape = (2, 0) if batch_first else (0, 2)
    assert stream(torch.randn(*shape, 4)).shape == (*shape, 5)
    assert all(map(torch.equal, tensors(stream.state), before))


_STEPPED = {
    "kernels": lambda: nn.LSTM(6, 6, 2),
    "bfloat16": lambda: nn.LSTM(6, 6, 2, dtype=torch.bfloat16),
    "zoneout": lambda: fastrnn.LSTM(6, 6, 2, zoneout=0.1),
}
stepped = pytest.mark.parametrize("make", _STEPPED.values(), ids=_STEPPED)


@stepped
def test_autograd_notices_what_a_step_wrote(make):
    """As it does of torch's operations in place: a gradient of values that are gone would be wrong."""
    frozen = fastrnn.freeze(make())
    x, out = torch.randn(2, 6, dtype=frozen.dtype), torch.empty(2, 6, dtype=frozen.dtype)
    state, weight = frozen.initial_state(2), torch.ones(6, requires_grad=True)
    for kept in (*state, out):
        frozen.step(x, state, out)
        product = kept * weight
        frozen.step(x, state, out)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()
    stream = frozen.stream(2)
    stream(x[None])
    product = stream.state[0] * weight
    stream(x[None])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@stepped
def test_what_a_step_writes_stands_apart(make):
    """States that share memory, as (zeros, zeros) do, would overwrite each other."""
    frozen = fastrnn.freeze(make())
    x, zeros = torch.randn(2, 6, dtype=frozen.dtype), torch.zeros(2, 2, 6)
    with pytest.raises(RuntimeError, match="must not share memory"):
        frozen.step(x, (zeros, zeros))
    memory = torch.zeros(5, 2, 6)
    with pytest.raises(RuntimeError, match="must not share memory"):
        frozen.step(x, (memory[:2], memory[1:3]))
    if frozen.dtype == torch.float32:
        with pytest.raises(RuntimeError, match="must not share memory"):
            frozen.step(x, (memory[:2], memory[2:4]), memory[3])
    for out in (torch.empty(5, 2, 6), torch.empty(2, 6, dtype=torch.float64), torch.empty(6, 2).T):
        with pytest.raises(RuntimeError, match="out must be contiguous"):
            frozen.step(x, (memory[:2], memory[2:4]), out.to(frozen.dtype) if out.dtype == torch.float32 else out)
    with pytest.raises(TypeError, match="out must be a tensor, got int"):
        frozen.step(x, (memory[:2], memory[2:4]), 3)
    assert not memory.any() and not zeros.any()


@stepped
def test_a_step_may_read_what_it_writes(make):
    layer = make().eval()
    frozen, x = fastrnn.freeze(layer), torch.randn(2, 6, dtype=next(layer.parameters()).dtype)
    memory = torch.zeros(5, 2, 6)
    state = memory[:2], memory[2:4]
    expected = layer(x[None])[0][0].detach()
    torch.testing.assert_close(
        frozen.step(x, state, x), expected, rtol=1e-2, atol=1e-2 if x.dtype != torch.float32 else 1e-6
    )
    if x.dtype == torch.float32:
        h, c = (s.clone() for s in state)
        expected = layer(h[1:], (h, c))[0][0].detach()
        torch.testing.assert_close(frozen.step(state[0][1], state), expected)


@gated
@pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.int8], ids=str)
def test_many_threads_at_once(cell, weights):
    """Of Python, sharing one layer: each gets the bits that it gets alone."""
    frozen = fastrnn.freeze(build(nn, cell, 20, 40, 2), weights=weights)
    inputs = [torch.randn(20 + i, 1 + i % 3, 20) for i in range(8)]
    alone = [tensors(frozen(x)) for x in inputs]

    def work(i):
        return all(all(map(torch.equal, tensors(frozen(inputs[i])), alone[i])) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


@cells
@pytest.mark.parametrize("shape", [(3, 1, 300), (4, 24, 130), (3, 5, 257)], ids=str)
def test_threads_of_a_call(cell, shape):
    """The division among threads changes nothing beyond rounding."""
    T, B, H = shape
    for options in ({}, {"bidirectional": True}, {"proj_size": 70} if cell.mode == "LSTM" else {}):
        frozen = fastrnn.freeze(build(nn, cell, 50, H, 2, **options))
        x = torch.randn(T, B, 50)
        expected = tensors(frozen(x))
        for threads in (2, 3):
            with using(threads=threads):
                results = tensors(frozen(x))
            for got, want in zip(results, expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@gated
@pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_rows_of_finite_input_stay_clean(cell, weights, value):
    frozen = fastrnn.freeze(build(nn, cell, 5, 19), weights=weights)
    x = torch.randn(4, 6, 5)
    clean = frozen(x)[0]
    x[1, 2, 3] = value
    output = frozen(x)[0]
    rows = [b for b in range(6) if b != 2]
    assert torch.equal(output[:, rows], clean[:, rows]) and torch.equal(output[0], clean[0])
    if value != value or weights == torch.int8:
        assert output[1:, 2].isnan().all()


@pytest.mark.parametrize("weights", [None, torch.bfloat16])
@pytest.mark.parametrize("kind, options", [(nn.LSTM, {}), (nn.GRU, {}), (nn.LSTM, {"proj_size": 7})])
def test_infinite_input(kind, options, weights):
    """H and R are odd, and products of bfloat16 read two values at a time."""
    layer, x = kind(5, 19, **options), torch.randn(4, 6, 5)
    x[1, 2, 3] = float("inf")
    output, expected = fastrnn.freeze(layer, weights=weights)(x)[0], layer(x)[0]
    assert torch.equal(output.isnan(), expected.isnan()) and not expected.isnan().all()


@cells
def test_strided_input(cell):
    """Rows may stand anywhere; only the features of a row stand together, or the input is copied."""
    frozen = fastrnn.freeze(build(nn, cell, 6, 10))
    x = torch.randn(8, 9, 12)
    for part in (x[::2, 1:4, :6], x[:, :, ::2], x.transpose(0, 1)[:, :, 6:]):
        for got, want in zip(tensors(frozen(part)), tensors(frozen(part.contiguous())), strict=True):
            assert torch.equal(got, want)
