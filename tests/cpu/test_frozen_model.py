"""freeze and unfreeze: what becomes of a model, what a frozen layer keeps and refuses."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from emulator import oracle
from support import build, compiled, name_of, pairs, tensors
from torch import nn
from torch.export import Dim, export, load, save
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import ConversionReport, inference
from fastrnn.registry import CELLS, OWN_CELLS

WEIGHTS = [None, torch.bfloat16, pytest.param(torch.int8, marks=compiled)]
weights = pytest.mark.parametrize("weights", WEIGHTS, ids=str)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({cell.mode: build(nn, cell, 4, 4) for cell in CELLS.values()})
        self.again = self.layers["LSTM"]
        self.ours = fastrnn.GRU(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for layer in (*self.layers.values(), self.again, self.ours):
            layer.flatten_parameters()
            x = layer(x)[0]
        return self.head(x)


def test_freeze_a_model():
    model = Model().eval()
    x, report = torch.randn(3, 2, 4), ConversionReport()
    with torch.no_grad():
        expected = model(x)
        frozen = fastrnn.freeze(model, report=report)
        torch.testing.assert_close(frozen(x), expected, rtol=1e-5, atol=1e-6)
    assert report.converted == [f"layers.{mode}" for mode in CELLS] + ["ours"] and report.skipped == {}
    assert isinstance(frozen.layers["GRU"], fastrnn.FrozenLayer) and frozen.again is frozen.layers["LSTM"]
    assert type(model.layers["GRU"]) is nn.GRU and type(frozen.head) is nn.Linear
    assert fastrnn.freeze(model, inplace=True) is model and isinstance(model.ours, fastrnn.FrozenLayer)

    back = fastrnn.unfreeze(frozen)
    assert {n: type(m) for n, m in back.named_modules()} == {n: type(m) for n, m in Model().named_modules()}
    assert back.again is back.layers["LSTM"]
    back.train()
    torch.testing.assert_close(back(x), expected)
    back(x).sum().backward()
    assert back.ours.weight_hh_l0.grad is not None


def test_a_root_layer_and_what_is_frozen_already():
    layer = nn.LSTM(3, 5)
    frozen = fastrnn.freeze(layer)
    assert isinstance(frozen, fastrnn.FrozenLayer) and fastrnn.freeze(layer, inplace=True) is not layer
    assert repr(frozen) == "FrozenLayer(LSTM, 3, 5, weights=float32)"
    with pytest.warns(UserWarning, match="changed: nothing"):
        assert fastrnn.freeze(frozen, inplace=True) is frozen


@compiled
def test_what_is_left_alone():
    class Own(nn.LSTM):
        pass

    model = nn.ModuleDict(
        {
            "wide": nn.GRU(2, 3).double(),
            "own": Own(2, 3),
            "parametrized": parametrizations.weight_norm(nn.LSTM(2, 3), "weight_hh_l0"),
            "hooked": nn.GRU(2, 3),
            "relu": nn.RNN(2, 3, nonlinearity="relu"),
            "projected": nn.LSTM(2, 3, proj_size=2),
            "fine": nn.GRU(2, 3),
        }
    )
    model["hooked"].register_forward_pre_hook(lambda *_: None)
    report = ConversionReport()
    fastrnn.freeze(model, torch.int8, report=report)
    assert report.converted == ["fine"]
    words = {
        "wide": "torch.float64", "own": "a subclass", "parametrized": "parametrized", "hooked": "hooks",
        "relu": "int8 is for", "projected": "int8 is for",
    }  # fmt: skip
    assert list(report.skipped) == list(words)
    assert all(words[name] in reason for name, reason in report.skipped.items())
    with pytest.warns(UserWarning, match="skipped own: a subclass"):
        fastrnn.freeze(model)


@weights
def test_copies_and_state_dicts(weights):
    layer = fastrnn.GRU(6, 9, 2, bidirectional=True)
    frozen = fastrnn.freeze(layer, weights)
    x = torch.randn(4, 3, 6)
    expected = frozen(x)[0]
    state = frozen.state_dict()
    names = [n for n in state if not n.endswith("_scale")]
    assert names == list(layer.state_dict())
    assert [n for n in state if n.endswith("_scale")] == [
        f"{n}_scale" for n in names if n.startswith("weight") and weights == torch.int8
    ]
    assert list(frozen.parameters()) == []
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x)[0], expected)
    fresh = fastrnn.freeze(fastrnn.GRU(6, 9, 2, bidirectional=True), weights)
    assert not torch.equal(fresh(x)[0], expected)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x)[0], expected)


@weights
def test_unfreeze_has_the_rounded_weights(weights):
    layer = nn.LSTM(7, 11)
    back = fastrnn.unfreeze(fastrnn.freeze(layer, weights))
    assert type(back) is nn.LSTM and not back.training
    for (name, got), p in zip(back.named_parameters(), layer.parameters(), strict=True):
        assert got.requires_grad
        if weights is None or name.startswith("bias"):
            assert torch.equal(got, p)
        elif weights == torch.bfloat16:
            assert torch.equal(got, p.bfloat16().float())
        else:
            step = p.abs().amax(1, keepdim=True) / 127
            assert ((got - p).abs() <= step * 0.5001).all() and not torch.equal(got, p)


def test_a_snapshot():
    layer = nn.GRU(3, 4)
    frozen = fastrnn.freeze(layer)
    x = torch.randn(2, 1, 3)
    before = frozen(x)[0]
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    assert torch.equal(frozen(x)[0], before)


@pytest.mark.parametrize("mode", OWN_CELLS)
@pytest.mark.parametrize("weights", [None, torch.bfloat16], ids=str)
def test_other_cells(mode, weights):
    """They are computed as the layer would be: by the formulas, with the matrices rounded."""
    cell = OWN_CELLS[mode]
    layer = getattr(fastrnn, cell.layer)(5, 6, 2, **({"forget_gate": "exp"} if mode == "SLSTM_EXP" else {})).eval()
    frozen, exact = fastrnn.freeze(layer, weights), copy.deepcopy(layer).double()
    x, hx = torch.randn(4, 3, 5), [torch.full((2, 3, 6), value, dtype=torch.float64) for value in cell.initial]
    with torch.no_grad():
        for name, weight in exact.named_parameters():
            if weights and name.startswith(("weight_ih", "weight_hh")):
                weight.copy_(weight.to(weights))
        output, final, _ = oracle.stack(exact, x.double(), hx)
        torch.testing.assert_close(tensors(frozen(x)), [t.float() for t in (output, *final)])
        lengths = torch.tensor([4, 0, 2])
        expected = oracle.stack(exact, x.double(), hx, lengths)[0].float()
        torch.testing.assert_close(frozen(x, lengths=lengths)[0], expected)
        stream, state = frozen.stream(3), frozen.initial_state(3)
        torch.testing.assert_close(torch.cat([stream(x[:1]), stream(x[1:])]), output.float())
        torch.testing.assert_close(torch.stack([frozen.step(step, state) for step in x]), output.float())
    back = fastrnn.unfreeze(frozen)
    assert type(back) is type(layer)
    assert all(map(torch.equal, back.parameters(), (p.float() for p in exact.parameters())))


@pytest.mark.parametrize("cell", CELLS.values(), ids=name_of)
def test_without_the_extension(cell, monkeypatch):
    layer = build(nn, cell, 4, 5, 2, batch_first=True)
    x = torch.randn(3, 6, 4)
    expected = layer(x)[0].detach()
    with monkeypatch.context() as patch:
        patch.setattr(inference.ext, "load", lambda: None)
        frozen = fastrnn.freeze(layer)
        stream, state = frozen.stream(3), frozen.initial_state(3)
        torch.testing.assert_close(frozen(x)[0], expected)
        torch.testing.assert_close(torch.cat([stream(x[:, :2]), stream(x[:, 2:])], 1), expected)
        steps = [frozen.step(x[:, t], state) for t in range(6)]
        torch.testing.assert_close(torch.stack(steps, 1), expected)
        with pytest.raises(RuntimeError, match="int8 weights need the compiled extension"):
            fastrnn.freeze(nn.GRU(2, 2), torch.int8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_types(dtype):
    """A layer in a 16-bit type takes and returns it; between steps its state is float32."""
    layer = nn.LSTM(6, 8).to(dtype)
    frozen = fastrnn.freeze(layer)
    x = torch.randn(5, 2, 6, dtype=dtype)
    exact = copy.deepcopy(layer).double()(x.double())
    for got, true in zip(tensors(frozen(x)), tensors(exact), strict=True):
        assert got.dtype == dtype
        assert (got.double() - true).abs().max() < 1e-2
    stream = frozen.stream(2)
    assert stream(x).dtype == dtype and stream.state[1].dtype == torch.float32
    assert fastrnn.unfreeze(frozen).weight_ih_l0.dtype == dtype


def test_autocast_takes_either_type():
    frozen = fastrnn.freeze(nn.GRU(3, 4))
    x = torch.randn(2, 1, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frozen(x)[0], frozen(x.float())[0])


@pytest.mark.parametrize("make", [nn.GRU, fastrnn.LayerNormGRU], ids=["kernels", "other cell"])
def test_autocast_of_steps_and_states(make):
    """What a linear layer gives under autocast, as torch.nn's layers take it; computed as without autocast."""
    layer = make(3, 4)
    frozen, x, h = fastrnn.freeze(layer), torch.randn(2, 1, 3).bfloat16(), torch.randn(1, 1, 4).bfloat16()
    expected, final = layer(x.float(), h.float())
    with torch.autocast("cpu", torch.bfloat16):
        stream, state = frozen.stream(), h.float()
        for got in (frozen(x, h)[0], torch.stack([frozen.step(step, state) for step in x])):
            torch.testing.assert_close(got, expected.detach())
        torch.testing.assert_close(state, final.detach())
        assert stream(x).dtype == torch.float32


@compiled
def test_loading_leaves_types_and_scales_as_they_are():
    x, new = torch.randn(4, 2, 3), nn.LSTM(3, 4).double()
    frozen = fastrnn.freeze(nn.LSTM(3, 4))
    frozen.load_state_dict(new.state_dict(), assign=True)
    torch.testing.assert_close(frozen(x)[0], new(x.double())[0].float().detach())
    small = fastrnn.freeze(nn.LSTM(3, 4), torch.int8)
    for holder, given in ((small, new), (small, frozen), (frozen, small)):
        before = holder(x)[0]
        with pytest.raises(RuntimeError, match="weight_ih_l0 of the frozen layer is"):
            holder.load_state_dict(given.state_dict(), strict=False)
        assert torch.equal(holder(x)[0], before)


def test_weights_that_are_no_parameters_are_left_alone():
    some, all_of_them = nn.LSTM(3, 4), nn.GRU(3, 4)
    for layer, names in ((some, ["weight_hh_l0"]), (all_of_them, list(all_of_them._parameters))):
        for name in names:
            setattr(layer, name, layer._parameters.pop(name).detach())
        with pytest.warns(UserWarning, match=f"{names[0]} is no parameter"):
            assert type(fastrnn.freeze(layer)) is type(layer)


@compiled
@pytest.mark.parametrize(
    "attempt, error, text",
    [
        (lambda f, x: f(x.requires_grad_()), RuntimeError, "fastrnn.unfreeze"),
        (lambda f, x: f(x, (torch.zeros(1, 2, 4, requires_grad=True), torch.zeros(1, 2, 4))), RuntimeError, "unfreeze"),
        (lambda f, x: f.train(), RuntimeError, "cannot be trained: fastrnn.unfreeze"),
        (lambda f, x: f.double(), TypeError, "weight_ih_l0 torch.float64 on cpu: fastrnn.unfreeze"),
        (lambda f, x: f.to("meta"), TypeError, "on meta: fastrnn.unfreeze"),
        (lambda f, x: f(x.double()), ValueError, "expected torch.float32, got torch.float64"),
        (lambda f, x: f(x[..., :2]), RuntimeError, "Expected 3, got 2"),
        (lambda f, x: f(x[0, 0]), ValueError, "Expected input to be 2D or 3D, got 1D"),
        (lambda f, x: f(x[:0]), RuntimeError, "sequence length to be larger than 0"),
        (
            lambda f, x: f(x, (torch.zeros(1, 3, 4), torch.zeros(1, 2, 4))),
            RuntimeError,
            r"hidden\[0\] size \[1, 2, 4\]",
        ),
        (lambda f, x: f(x, torch.zeros(1, 2, 4)), TypeError, "tuple of 2 tensors"),
        (lambda f, x: f(x, lengths=torch.tensor([1, 9])), ValueError, "within 0 .. T = 3, got 9 at index 1"),
        (lambda f, x: f(x, lengths=torch.tensor([1])), ValueError, r"shape \(B,\) = \(2,\)"),
        (lambda f, x: f(pack_padded_sequence(x, [3, 2]), lengths=torch.tensor([3, 2])), ValueError, "padded input"),
        (lambda f, x: f.step(x, f.initial_state(2)), ValueError, r"expected x of shape \(B, I\)"),
        (lambda f, x: f.step(x[0], f.initial_state(3)), RuntimeError, r"hidden\[0\] size"),
        (lambda f, x: f.step(x[0], f.initial_state(2), torch.empty(2, 5)), RuntimeError, "out must be contiguous"),
        (lambda f, x: f.step(x[0], tuple(h.double() for h in f.initial_state(2))), ValueError, "float32"),
        (lambda f, x: f.stream(0), ValueError, "positive integer"),
        (lambda f, x: f.stream(True), ValueError, "positive integer, got True"),
        (lambda f, x: f.stream(2)(x[0]), ValueError, "3 dimensions with batch = 2"),
        (lambda f, x: f(x.to_sparse()), RuntimeError, "ordinary strided tensor"),
        (lambda f, x: fastrnn.freeze(f, torch.float16), ValueError, "torch.bfloat16 or torch.int8, got torch.float16"),
        (lambda f, x: fastrnn.freeze("model"), TypeError, "expected a torch.nn.Module"),
        (lambda f, x: fastrnn.unfreeze(3), TypeError, "expected a torch.nn.Module"),
    ],
)
def test_errors(attempt, error, text):
    with pytest.raises(error, match=text):
        attempt(fastrnn.freeze(nn.LSTM(3, 4)), torch.randn(3, 2, 3))


@compiled
def test_more_errors():
    both = fastrnn.freeze(nn.GRU(3, 4, bidirectional=True))
    for attempt in (both.stream, lambda: both.step(torch.zeros(1, 3), both.initial_state(1))):
        with pytest.raises(ValueError, match="bidirectional"):
            attempt()
    for cell in (nn.GRU, nn.LSTM):
        frozen = fastrnn.freeze(cell(3, 4), torch.int8)
        state = frozen.initial_state(1)
        tensors(state)[0][0, 0, 2] = -1.5
        with pytest.raises(ValueError, match=r"within -1 .. 1.*got 1.5"):
            frozen(torch.zeros(1, 1, 3), state)
    frozen = fastrnn.freeze(nn.GRU(3, 4))
    assert frozen.eval() is frozen and frozen.to("cpu") is frozen and frozen.float() is frozen
    with torch.no_grad():
        frozen(torch.zeros(1, 1, 3, requires_grad=True))


@compiled
@pairs(weights=[None, torch.bfloat16, torch.int8], strict=[False, True], batch_first=[False, True])
def test_export(weights, strict, batch_first):
    """One operator, whose length and batch stay open."""
    model = nn.Sequential(nn.LSTM(4, 6, 2, bidirectional=not batch_first, batch_first=batch_first)).eval()
    frozen, any_size = fastrnn.freeze(model, weights), {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    program = export(frozen, (torch.randn(5, 3, 4),), dynamic_shapes=(any_size,), strict=strict)
    program = program.run_decompositions()
    found = [str(n.target) for n in program.graph.nodes if n.op == "call_function" and "fastrnn" in str(n.target)]
    assert found == ["fastrnn.frozen.default"]
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    for again in (program, load(file)):
        for sizes in ((5, 3), (2, 9)):
            x = torch.randn(*sizes, 4)
            for got, want in zip(tensors(again.module()(x)), tensors(frozen(x)), strict=True):
                assert torch.equal(got, want)


@compiled
@pytest.mark.parametrize("weights", [None, torch.bfloat16, torch.int8], ids=str)
def test_packed_weights_may_lie_anywhere(weights):
    """AOTInductor puts constants where the C library's malloc does."""
    frozen = fastrnn.freeze(nn.LSTM(20, 37, 2), weights)
    memory = torch.empty(frozen._packed.numel() + 128, dtype=torch.uint8)
    x, initial = torch.randn(5, 3, 20), frozen._initial(3)
    expected = torch.ops.fastrnn.frozen(frozen._packed, x, initial, None, False, 1)
    for offset in (4, 16, 60):
        first = -memory.data_ptr() % 64 + offset
        packed = memory[first : first + frozen._packed.numel()].copy_(frozen._packed)
        assert packed.data_ptr() % 64 == offset
        found = torch.ops.fastrnn.frozen(packed, x, initial, None, False, 1)
        assert all(map(torch.equal, found, expected))
    with pytest.raises(RuntimeError, match="expected the weights that pack_frozen returned"):
        packed = memory[first + 1 : first + 1 + frozen._packed.numel()].copy_(frozen._packed)
        torch.ops.fastrnn.frozen(packed, x, initial, None, False, 1)


@compiled
def test_the_operator():
    frozen = fastrnn.freeze(nn.GRU(4, 6, bidirectional=True))
    hx, lengths = [torch.randn(2, 3, 6)], torch.tensor([2, 5, 0])
    torch.library.opcheck(
        torch.ops.fastrnn.frozen.default, (frozen._packed, torch.randn(5, 3, 4), hx, lengths, False, 2)
    )


@weights
def test_given_states_are_left_as_they_are(weights):
    frozen = fastrnn.freeze(nn.LSTM(4, 6), weights)
    given = torch.rand(1, 2, 6), torch.rand(1, 2, 6)
    before = [h.clone() for h in given]
    _, final = frozen(torch.randn(3, 2, 4), given)
    assert all(map(torch.equal, given, before)) and not any(map(torch.equal, final, before))


@pytest.mark.parametrize("weights", [None, torch.bfloat16])
def test_zoneout_keeps_its_mean_and_the_other_options_are_off(weights):
    layer = fastrnn.LSTM(5, 7, 2, zoneout=(0.3, 0.5), recurrent_dropout=0.5, weight_dropout=0.5).eval()
    x = torch.randn(6, 3, 5)
    frozen = fastrnn.freeze(layer, weights=weights)
    output, (h, c) = frozen(x)
    with torch.no_grad():
        wanted, (wanted_h, wanted_c) = layer(x)
        plain = fastrnn.LSTM(5, 7, 2)
        plain.load_state_dict(layer.state_dict())
        assert (wanted - plain(x)[0]).abs().max() > 1e-2  # zoneout counts in evaluation
    tolerance = 1e-6 if weights is None else 1e-2
    for got, want in ((output, wanted), (h, wanted_h), (c, wanted_c)):
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
    assert fastrnn.unfreeze(frozen).zoneout == (0.3, 0.5)


def test_int8_and_zoneout_are_left_alone_with_the_reason():
    report = fastrnn.ConversionReport()
    layer = fastrnn.GRU(5, 7, zoneout=0.1)
    assert type(fastrnn.freeze(layer, weights=torch.int8, report=report)) is fastrnn.GRU
    assert report.skipped == {"": "int8 is for LSTM and GRU without a projection, zoneout or heads"}
