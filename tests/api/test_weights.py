"""Weights are read anew at every call: replaced, computed or moved ones are used, and they get the gradients."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from support import agree, build, cells, cotangents, device_of, given, one_step, sample, tensors, twins
from test_dropping import HEADED
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.modules import _CHECKS
from fastrnn.registry import ALL_CELLS

SAMPLE = torch.full((2, 3, 4), 0.5)


@cells
@one_step
def test_functional_call(cell, step, backend):
    """Other weights for one call: used for the values, and it is they that get the gradients."""
    modules, x = twins(cell, 4, 6, step=step, device=device_of(backend)), sample(step)
    start = {name: torch.randn(p.shape) for name, p in modules[0].named_parameters()}

    def call(module):
        weight = next(module.parameters())
        weights = {name: p.to(weight, copy=True).requires_grad_() for name, p in start.items()}
        outputs = tensors(torch.func.functional_call(module, weights, (x.to(weight),)))
        grads = torch.autograd.grad(outputs, list(weights.values()), cotangents(outputs, torch.float32))
        assert all(p.grad is None for p in module.parameters())
        return [*outputs, *grads]

    agree(modules, call)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@cells
@pytest.mark.parametrize("how", ["weight_norm", "parametrization"])
def test_parametrizations(cell, how, backend):
    """The weight is computed anew for every call, and gradients reach what it is computed from."""

    def call(module):
        if how == "weight_norm":
            parametrizations.weight_norm(module, "weight_hh_l0")
        else:
            parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
        sources, x = list(module.parameters()), SAMPLE.to(module.weight_ih_l0)
        assert any("parametrizations" in name for name, _ in module.named_parameters())
        for _ in range(2):  # a cached weight would show in the second round
            module(x)
            with torch.no_grad():
                sources[-1].mul_(1.5)
        outputs = tensors(module(x))
        return [*outputs, *torch.autograd.grad(outputs, sources, cotangents(outputs, torch.float32))]

    agree(twins(cell, 4, 6, device=device_of(backend)), call)


@cells
def test_weight_replaced_by_a_tensor(cell, backend):

    def call(module):
        raw = module.weight_hh_l0.detach().clone().requires_grad_()
        del module.weight_hh_l0
        module.weight_hh_l0 = raw * 2
        outputs = tensors(module(SAMPLE.to(raw)))
        return [*outputs, *torch.autograd.grad(outputs, [raw], cotangents(outputs, torch.float32))]

    agree(twins(cell, 4, 6, device=device_of(backend)), call)


@cells
def test_weights_changed_in_place_and_moved(cell):
    (module, theirs, _), x = twins(cell, 4, 6), sample(False)
    module(x)
    for change in (lambda w: w.zero_(), lambda w: setattr(w, "data", torch.ones_like(w))):
        with torch.no_grad():
            change(module.weight_hh_l0)
        theirs.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(x)[0], theirs(x)[0])
    assert module.double()(x.double())[0].dtype == torch.float64
    assert module.half().to("meta").weight_hh_l0.is_meta


@cells
def test_assigned_flat_weights(cell, backend):
    """What a hypernetwork does: other tensors for _flat_weights, used and trained until weights are exchanged again."""

    def call(module):
        made = [(0.5 * w).detach().requires_grad_() for w in module._flat_weights]
        module._flat_weights, x = list(made), SAMPLE.to(made[0])
        outputs = tensors(module(x))
        found = [*outputs, *torch.autograd.grad(outputs, made, cotangents(outputs, torch.float32))]
        other = {name: 2 * w.detach() for name, w in module.named_parameters()}
        found += tensors(torch.func.functional_call(module, other, (x,)))
        found += tensors(module(x))  # the parameters are back
        module.weight_hh_l0 = nn.Parameter(0.5 * made[1].detach())  # and another one, which functional_call replaces
        return found + tensors(torch.func.functional_call(module, other, (x,)))

    agree(twins(cell, 4, 6, 2, bidirectional=True, device=device_of(backend)), call)


@cells
def test_deleted_weights(cell, backend):
    """With its attribute gone, a weight is still in _flat_weights, and others may be assigned there."""

    def call(module):
        weight, x = module.weight_hh_l0, SAMPLE.to(module.weight_hh_l0)
        del module.weight_hh_l0
        outputs = tensors(module(x))
        module._flat_weights = [(0.5 * w).detach() for w in module._flat_weights]
        outputs += tensors(module(x))
        assert not any((module._flat_weights[1] is weight, hasattr(module, "weight_hh_l0")))
        return outputs

    agree(twins(cell, 4, 6, device=device_of(backend)), call)


@cells
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_overridden_check(cell, batch_first):
    """A subclass's check_forward_args stands for torch's checks, and sees what torch's forward shows it."""
    seen = []
    for space in (nn, fastrnn):
        base = getattr(space, cell.layer)

        class Lenient(base):
            def check_forward_args(self, input, hidden, batch_sizes):
                seen.append([input.shape, [h.shape for h in tensors(hidden)], batch_sizes])

        module = build(SimpleNamespace(**{cell.layer: Lenient}), cell, 4, 6, batch_first=batch_first)
        x = torch.randn(2, 3, 4)
        module(x)
        module(x[0])
        if cell.mode != "LSTM":  # torch checks no packed LSTM
            module(pack_padded_sequence(x, [3, 1] if batch_first else [2, 2, 1], batch_first))
        module(x, given([torch.zeros(1, 2 if batch_first else 3, 6)] * cell.states))
    half = len(seen) // 2
    assert half == 4 - (cell.mode == "LSTM") and str(seen[:half]) == str(seen[half:])


@cells
@pytest.mark.parametrize("name", _CHECKS)
def test_overridden_methods_that_check_are_called_as_torch_calls_them(cell, name):
    seen, x = {}, torch.randn(5, 3, 4)
    for space in (nn, fastrnn):
        base, calls = getattr(space, cell.layer), seen.setdefault(space, [])
        method = getattr(base, name, None)

        def noted(self, *arguments, method=method, calls=calls):
            calls.append(str(arguments))
            return method(self, *arguments)

        module = build(SimpleNamespace(**{cell.layer: type("Noting", (base,), {name: noted})}), cell, 4, 6)
        module(x)
        module(x, given([torch.zeros(1, 3, 6)] * cell.states))
    assert seen[nn] == seen[fastrnn] and bool(seen[nn]) == hasattr(nn.LSTM if cell.mode == "LSTM" else nn.GRU, name)


def test_a_parametrized_weight_is_computed_once_a_call():
    """torch.nn's layers compute it twice (docs/differences.md), which a state of the parametrization tells."""

    class Counting(nn.Module):
        calls = 0

        def forward(self, weight):
            self.calls += 1
            return weight

    counted = {}
    for space in (fastrnn, nn):
        layer, counting = space.GRU(3, 4), Counting()
        parametrize.register_parametrization(layer, "weight_hh_l0", counting)
        before = counting.calls
        layer(torch.randn(2, 3))
        counted[space] = counting.calls - before
    assert counted[fastrnn] == 1 < counted[nn]


FORMS = {"layer": {"num_layers": 2, "bidirectional": True}, "step": {}}
FORMS["heads"] = FORMS["layer"] | {"num_heads": 2}
BY_KIND = {cell.layer: cell for cell in ALL_CELLS.values() if cell.step}
SHAPED = [(kind, form) for kind, cell in BY_KIND.items() for form in FORMS if form != "heads" or cell in HEADED]


@pytest.mark.parametrize("kind, form", SHAPED)
@pytest.mark.parametrize("grown", [0, -1], ids=["first", "last"])
def test_a_weight_of_the_wrong_shape_goes_by_its_name(kind, form, grown):
    make = functools.partial(getattr(fastrnn, BY_KIND[kind].step if form == "step" else kind), 4, 6, **FORMS[form])
    for name, weight in make().named_parameters():
        module, size = make(), list(weight.shape)
        size[grown] += 2  # of the first of heads' recurrent weights: four of the right size
        setattr(module, name, nn.Parameter(torch.randn(size)))
        with pytest.raises(RuntimeError) as info:
            module(sample(form == "step"))
        owner, _, text = str(info.value).partition(": ")
        assert text == f"{name} must have shape {tuple(weight.shape)}, got {tuple(size)}"
        assert owner.lower() == f"fastrnn.{type(module).__name__}".lower()
