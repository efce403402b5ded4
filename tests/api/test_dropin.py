"""A model, a checkpoint, an optimizer or a reader of attributes cannot tell our modules from torch's."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from support import agree, build, cells, device_of, given, like, one_step, sample, tensors, twins
from torch import nn

import fastrnn
from fastrnn.registry import CELLS, OWN_CELLS

NAMES = sorted({name for cell in CELLS.values() for name in (cell.layer, cell.step)})
FULL = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.25}


def pair(cell, step, **options):
    """Torch's and ours from the same seed."""
    modules = []
    for space in (nn, fastrnn):
        torch.manual_seed(9)
        modules.append(build(space, cell, 4, 6, step=step, **options))
    return modules


@cells
@one_step
def test_same_seed_same_bits(cell, step):
    for options in ({}, {"bias": False}, {} if step else FULL, {"dtype": torch.float64}):
        theirs, ours = pair(cell, step, **options)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        state = torch.get_rng_state()
        torch.manual_seed(9)
        build(nn, cell, 4, 6, step=step, **options)
        assert torch.equal(state, torch.get_rng_state())  # as many numbers drawn


@cells
@one_step
def test_is_torchs_class(cell, step):
    theirs, ours = pair(cell, step)
    assert isinstance(ours, type(theirs)) and type(ours).__name__ == type(theirs).__name__
    assert isinstance(ours, nn.RNNCellBase if step else nn.RNNBase)


@pytest.mark.parametrize("name", [*NAMES, *sorted({name for c in OWN_CELLS.values() for name in (c.layer, c.step)})])
def test_signature_is_explicit(name):
    """skip_init and others look for `device` in the signature, which torch's *args would hide."""
    parameters = inspect.signature(getattr(fastrnn, name)).parameters
    assert {"input_size", "hidden_size", "bias", "device", "dtype"} <= set(parameters)
    assert not any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    module = nn.utils.skip_init(getattr(fastrnn, name), 3, 5, dtype=torch.float64)
    assert type(module) is getattr(fastrnn, name) and next(module.parameters()).dtype == torch.float64


@pytest.mark.parametrize(
    "name, args",
    [
        ("LSTM", (3, 5, 2, False, True, 0.5, True, 2, "cpu", torch.float64)),
        ("GRU", (3, 5, 2, False, True, 0.5, True)),
        ("RNN", (3, 5, 2, "relu", False, True, 0.5, True)),
        ("RNN", (3, 5, 1, "tanh")),
        ("LSTMCell", (3, 5, False, "cpu", torch.float64)),
        ("GRUCell", (3, 5, False, "cpu", torch.float64)),
        ("RNNCell", (3, 5, False, "relu", "cpu", torch.float64)),
    ],
)
def test_positional_arguments(name, args):
    ours, theirs = (getattr(space, name)(*args) for space in (fastrnn, nn))
    assert repr(ours) == repr(theirs) and getattr(ours, "mode", None) == getattr(theirs, "mode", None)
    assert [(k, p.shape, p.dtype) for k, p in ours.named_parameters()] == [
        (k, p.shape, p.dtype) for k, p in theirs.named_parameters()
    ]


METHODS = [
    "__setstate__",
    "reset_parameters",
    "check_input",
    "check_hidden_size",
    "check_forward_args",
    "get_expected_hidden_size",
    "permute_hidden",
]


@cells
def test_attributes_and_methods(cell):
    theirs, ours = pair(cell, False, **FULL)
    attributes = [name for name in vars(theirs) if not name.startswith("_")] + ["_flat_weights_names", "_all_weights"]
    assert {name: getattr(ours, name) for name in attributes} == {name: getattr(theirs, name) for name in attributes}
    assert getattr(ours, "nonlinearity", None) == getattr(theirs, "nonlinearity", None)
    assert set(vars(ours)) == set(vars(theirs))
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert [[tuple(w.shape) for w in g] for g in ours.all_weights] == [
        [tuple(w.shape) for w in g] for g in theirs.all_weights
    ]
    for name in METHODS:
        assert getattr(type(ours), name) is getattr(type(theirs), name), f"{name} is not torch's"
    if cell.states == 2:
        assert ours.get_expected_cell_size(sample(False), None) == theirs.get_expected_cell_size(sample(False), None)
    assert repr(ours) == repr(theirs) and ours.extra_repr() == theirs.extra_repr()
    ours.flatten_parameters()


def save_and_load(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": save_and_load}


@cells
@one_step
@pytest.mark.parametrize("how", COPIES)
def test_copies(cell, step, how):
    """A copy is equal, has parameters of its own and computes the same; changing it leaves the original alone."""
    _, module = pair(cell, step)
    x = sample(step)
    before = [t.detach().clone() for t in tensors(module(x))]
    twin = COPIES[how](module)
    assert type(twin) is type(module) and repr(twin) == repr(module)
    assert all(torch.equal(a, b) for a, b in zip(tensors(twin(x)), before))
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(tensors(module(x)), before))
    assert not torch.equal(tensors(twin(x))[0], before[0])


@cells
@one_step
def test_meta_device(cell, step, backend):
    """Built without memory, shapes inferred, then materialised and initialised."""
    module = build(fastrnn, cell, 4, 6, step=step, device="meta")
    if backend in ("aten", "reference"):
        outputs = tensors(module(sample(step).to("meta")))
        assert all(o.is_meta for o in outputs) and outputs[0].shape[-1] == 6
    theirs, _ = pair(cell, step, device=device_of(backend))
    torch.manual_seed(9)
    module.to_empty(device=device_of(backend)).reset_parameters()
    x = sample(step).to(device_of(backend))
    torch.testing.assert_close(tensors(module(x)), tensors(theirs(x)))


def strided(value):
    """The same numbers at every other place of a transposed buffer."""
    if not isinstance(value, torch.Tensor):
        return tuple(strided(t) for t in value)
    wide = torch.empty(*value.shape[:-2], value.size(-1), 2 * value.size(-2), dtype=value.dtype)
    result = wide.transpose(-1, -2)[..., ::2, :]
    return result.copy_(value)


@cells
@one_step
def test_non_contiguous_arguments(cell, step, backend):
    ours, theirs, truth = twins(cell, 4, 6, step=step, device=device_of(backend))
    x = sample(step)
    hx = given([torch.randn((2, 6) if step else (1, 3, 6)) for _ in range(cell.states)])
    assert not strided(x).is_contiguous()
    arguments = {ours: (strided(x), strided(hx)), theirs: (x, hx), truth: (x, hx)}
    agree(arguments, lambda module: module(*like(module, arguments[module])))


@cells
def test_batch_first_is_a_view(cell, backend):
    module = build(fastrnn, cell, 4, 6, batch_first=True, device=device_of(backend))
    output = module(sample(False).to(device_of(backend)))[0]
    assert output.shape == (2, 3, 6) and output.transpose(0, 1).is_contiguous()


def test_quiet():
    """No warning of ours, and none of torch's passed on, in ordinary use."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cell in CELLS.values():
            module = build(fastrnn, cell, 4, 6, 2, bidirectional=True)
            module(sample(False))[0].sum().backward()
