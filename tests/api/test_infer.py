"""Plain calls without gradients go to the CPU kernels in one step from Python; all others take the longer way."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from support import compiled, given, tensors
from test_dropping import layer
from test_own_cells import states_of
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from fastrnn._kernels import frozen, ops
from fastrnn.registry import CELLS, OWN_CELLS

pytestmark = compiled
each_cell = pytest.mark.parametrize("cell", [*CELLS.values(), *OWN_CELLS.values()], ids=lambda cell: cell.mode)


def watch(monkeypatch, owner, *names):
    """Whether each call that reached these entries was served by them."""
    found = []

    def watched(entry):
        def call(*arguments):
            result = entry(*arguments)
            found.append(result is not None)
            return result

        return call

    for name in names:
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    return found


@pytest.fixture
def served(monkeypatch):
    return watch(monkeypatch, ops, "infer")


@pytest.fixture
def frozen_served(monkeypatch):
    return watch(monkeypatch, frozen, "call_plain", "step_plain")


def longer(monkeypatch, module, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(ops, "infer", None)
        return tensors(module(*arguments))


@each_cell
@pytest.mark.parametrize("layers, directions, bias", [(1, 1, True), (1, 2, False), (3, 2, True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_serves_plain_calls_with_the_same_bits(monkeypatch, served, cell, layers, directions, bias, dtype):
    module = layer(cell, 5, 17, layers, directions, bias=bias).to(dtype)
    x, hx = torch.randn(4, 3, 5, dtype=dtype), states_of(cell, layers * directions, 3, 17, dtype)
    with torch.no_grad():
        for arguments in ((x,), (x, given(hx))):
            found = tensors(module(*arguments))
            assert all(map(torch.equal, found, longer(monkeypatch, module, *arguments)))
    assert served == [True, True]


@each_cell
def test_it_serves_single_steps(monkeypatch, served, cell):
    step = getattr(fastrnn, cell.step)(5, 17, **({"nonlinearity": cell.nonlinearity} if cell.nonlinearity else {}))
    with torch.no_grad():
        x = torch.randn(3, 5)
        assert all(map(torch.equal, tensors((step(x),)), longer(monkeypatch, lambda x: (step(x),), x)))
        assert step(x[0])[0].shape == (17,) if cell.states > 1 else step(x[0]).shape == (17,)
    assert served == [True, True]


def check_that_a_plain_call_is_served(served, call):
    """Else that none is would say nothing."""
    with torch.no_grad():
        call()
    assert served == [True]
    served.clear()


LONGER = {
    "gradients": lambda m, x: m(x),
    "a state's gradient": lambda m, x: m.requires_grad_(False)(
        x, (torch.zeros(1, 3, 6).requires_grad_(), torch.zeros(1, 3, 6))
    ),
    "packed": lambda m, x: torch.no_grad()(m)(pack_padded_sequence(x, [4, 2, 1])),
    "lengths": lambda m, x: torch.no_grad()(m)(x, lengths=[4, 2, 1]),
    "heads": lambda m, x: torch.no_grad()(fastrnn.LSTM(5, 6, num_heads=2))(x),
    "zoneout": lambda m, x: torch.no_grad()(fastrnn.LSTM(5, 6, zoneout=0.1))(x),
    "dropout": lambda m, x: torch.no_grad()(fastrnn.LSTM(5, 6, 2, dropout=0.5))(x),
    "reference": lambda m, x: fastrnn.backend("reference")(torch.no_grad()(m))(x),
    "vmap": lambda m, x: torch.no_grad()(torch.vmap(lambda x: m(x)[0]))(x[None]),
    "projection": lambda m, x: torch.no_grad()(fastrnn.LSTM(5, 6, proj_size=3))(x),
    "no rows": lambda m, x: torch.no_grad()(m)(x[:, :0]),
}


@pytest.mark.parametrize("call", LONGER.values(), ids=LONGER)
def test_other_calls_take_the_longer_way(served, call):
    module, x = fastrnn.LSTM(5, 6), torch.randn(4, 3, 5)
    check_that_a_plain_call_is_served(served, lambda: module(x))
    call(module, x)
    assert not any(served)


@pytest.mark.parametrize("mode", [forward_ad.dual_level, lambda: FlopCounterMode(display=False)], ids=["dual", "flops"])
def test_who_looks_on_is_shown_operators(served, mode):
    module, x = fastrnn.LSTM(5, 6), torch.randn(4, 3, 5)
    check_that_a_plain_call_is_served(served, lambda: module(x))
    with torch.no_grad(), mode():
        module(x)
    assert not any(served)


@pytest.mark.parametrize("what", ["features", "hidden", "dtype", "weight", "complex"])
def test_errors_are_those_of_the_longer_way(monkeypatch, what):
    module, x = fastrnn.GRU(5, 6), torch.randn(4, 3, 5)
    arguments = {
        "features": (torch.randn(4, 3, 7),),
        "hidden": (x, torch.zeros(1, 3, 7)),
        "dtype": (x.double(),),
        "weight": (x,),
        "complex": (x.to(torch.complex64),),
    }[what]
    if what == "weight":
        module.weight_hh_l0 = nn.Parameter(torch.zeros(18, 7))
    texts = []
    for call in (module, functools.partial(longer, monkeypatch, module)):
        with torch.no_grad(), pytest.raises((RuntimeError, ValueError)) as error:
            call(*arguments)
        texts.append(str(error.value))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", [20, 100, 300])  # weights by distance: the bounds of rows that are not packed differ
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 24, 25, 48, 49])
def test_rows_on_both_sides_of_packing(dtype, hidden, rows):
    module = fastrnn.LSTM(80, hidden).to(dtype)
    truth = copy.deepcopy(module).double()
    truth.__class__ = nn.LSTM
    x = torch.randn(1, rows, 80).to(dtype)
    with torch.no_grad():
        found, expected = tensors(module(x)), tensors(truth(x.double()))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close([t.double() for t in found], expected, rtol=tolerance, atol=tolerance)


def frozen_longer(monkeypatch, call, *arguments):
    with monkeypatch.context() as patch:
        for name in ("call_plain", "step_plain"):
            patch.setattr(frozen, name, lambda *_: None)
        return call(*arguments)


@pytest.mark.parametrize("cell", CELLS.values(), ids=lambda cell: cell.mode)
@pytest.mark.parametrize("weights", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_frozen_calls_have_the_same_bits(monkeypatch, frozen_served, cell, weights, batch_first):
    module = fastrnn.freeze(layer(cell, 5, 17, 2, 1, batch_first=batch_first).eval(), weights)
    rows = 4 if batch_first else 3
    x, hx = torch.randn(4, 3, 5), states_of(cell, 2, rows, 17)
    alone = [h[:, 0] for h in hx]
    for arguments in ((x,), (x, given(hx)), (x[0],), (x[0], given(alone))):
        found, expected = tensors(module(*arguments)), tensors(frozen_longer(monkeypatch, module, *arguments))
        assert all(map(torch.equal, found, expected)) and len(found) == 1 + cell.states
    for out in (None, torch.empty(3, 17)):
        moved = states_of(cell, 2, 3, 17)
        kept = [h.clone() for h in moved]
        found = module.step(x[0], given(moved), out)
        assert out is None or found is out
        expected = frozen_longer(monkeypatch, module.step, x[0], given(kept))
        assert all(map(torch.equal, (found, *moved), (expected, *kept)))
    assert frozen_served == [True] * 6


FROZEN_LONGER = {
    "a list": lambda m, x: m(x, list(m.initial_state(3))),
    "a tensor for two": lambda m, x: m(x, m.initial_state(3)[0]),
    "one state of two": lambda m, x: m(x, m.initial_state(3)[:1]),
    "a tuple for one": lambda m, x: fastrnn.freeze(nn.GRU(5, 6))(x, (torch.zeros(1, 3, 6),)),
    "a tuple for one step": lambda m, x: fastrnn.freeze(nn.GRU(5, 6)).step(x[0], (torch.zeros(1, 3, 6),)),
    "none for a step": lambda m, x: m.step(x[0], None),
    "an array": lambda m, x: m(x.numpy()),
    "features": lambda m, x: m(x[..., :4]),
    "double": lambda m, x: m(x.double()),
    "gradient": lambda m, x: m(x.requires_grad_()),
    "a state's gradient": lambda m, x: m(x, tuple(h.requires_grad_() for h in m.initial_state(3))),
    "out": lambda m, x: m.step(x[0], m.initial_state(3), torch.empty(3, 5)),
    "meta": lambda m, x: m(x.to("meta")),
    "vmap": lambda m, x: torch.vmap(lambda x: m(x)[0])(x[None]),
    "autocast": lambda m, x: torch.autocast("cpu")(m)(x),
    "bfloat16": lambda m, x: fastrnn.freeze(nn.LSTM(5, 6).bfloat16())(x),
}


@pytest.mark.parametrize("call", FROZEN_LONGER.values(), ids=FROZEN_LONGER)
def test_other_frozen_calls_take_the_longer_way(monkeypatch, frozen_served, call):
    module, x = fastrnn.freeze(nn.LSTM(5, 6)), torch.randn(4, 3, 5)

    def outcome():
        try:
            return [t.detach().clone() for t in tensors(call(module, x.clone()))]
        except Exception as error:
            return [type(error), str(error)]

    check_that_a_plain_call_is_served(frozen_served, lambda: module(x))
    found, expected = outcome(), frozen_longer(monkeypatch, outcome)
    assert not any(frozen_served)
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(found, expected, strict=True)
    )


RECORDERS = {
    "trace": lambda call, x: torch.jit.trace(call, (x,), check_trace=False),
    "make_fx": lambda call, x: make_fx(call)(x),
    "fake": lambda call, x: make_fx(call, tracing_mode="fake")(x),
}


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("record", RECORDERS.values(), ids=RECORDERS)
def test_a_graph_holds_no_frozen_call_without_an_operator(record, bfloat16):
    """It would hold the result as a constant. torch.compile leaves its graph for such a call."""
    frozen, x = fastrnn.freeze(nn.GRU(5, 6).bfloat16() if bfloat16 else nn.GRU(5, 6)), torch.randn(4, 3, 5)
    x, stream = x.to(frozen.dtype), frozen.stream(3)
    state = stream.state
    for call in (
        lambda x: stream(x),
        lambda x: frozen.step(x[0], state),
        lambda x: frozen(pack_padded_sequence(x, [4, 2, 2]))[0].data,
    ):
        with pytest.raises(RuntimeError, match=r"cannot be traced or exported: call the layer with .*lengths="):
            record(call, x)
        assert not state.any()  # nothing was computed
        expected = call(x)
        stream.reset()
        assert torch.equal(torch.compile(call, backend="eager")(x), expected)
        stream.reset()
