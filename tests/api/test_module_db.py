"""Every sample that torch's own test suite has for its recurrent modules, given to torch's and to ours.

The samples draw from [-9, 9], which saturates the gates: where tanh is near 1, one rounding of it changes its slope by
many units, up or down, in torch's kernels and in ours alike. So there is one error budget for all samples of a module.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
from support import available, cotangents, device_of, pairs, tensors
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import fastrnn
from fastrnn.bench.gate import FACTOR, FLOOR, deviation
from fastrnn.registry import CELLS

NAMES = sorted({name for cell in CELLS.values() for name in (cell.layer, cell.step)})
ENTRIES = {info.module_cls.__name__: info for info in module_db if info.module_cls.__module__ == "torch.nn.modules.rnn"}
assert sorted(ENTRIES) == NAMES
PACKED = {"with_packed_sequence": True}  # only the generator of RNN and GRU reads it


def samples(name, dtype, device, training):
    info = ENTRIES[name]
    torch.manual_seed(11)
    options = PACKED if name in ("RNN", "GRU") else {}
    return info.module_inputs_func(
        info, device=device, dtype=dtype, requires_grad=True, training=training, **options
    )  # fmt: skip


def construct(space, name, sample, dtype, device, training):
    torch.manual_seed(5)
    given = sample.constructor_input
    return getattr(space, name)(*given.args, **given.kwargs, device=device, dtype=dtype).train(training)


def cast(value, dtype, device):
    """A leaf of the other type, as it stands in a sample's arguments."""
    if isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence):
        return tuple(cast(part, dtype, device) for part in value)
    if isinstance(value, PackedSequence):
        data = value.data.detach().to(device, dtype).requires_grad_()
        return PackedSequence(data, value.batch_sizes, value.sorted_indices, value.unsorted_indices)
    return value.detach().to(device, dtype).requires_grad_()


def evaluate(module, args, tested):
    outputs = tensors(module(*args))
    sources = {f"argument {i}": t for i, t in enumerate(tensors(args))} | dict(module.named_parameters())
    grads = torch.autograd.grad(outputs, list(sources.values()), cotangents(outputs, tested))
    result = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    return result | {f"gradient of {key}": g for key, g in zip(sources, grads)}


@pairs(name=NAMES, training=[True, False], dtype=[torch.float32, torch.float64], any_backend=[None, *available()])
def test_samples(name, training, dtype, any_backend):
    device, worst = device_of(any_backend), []
    for sample in samples(name, dtype, device, training):
        ours, theirs = (construct(space, name, sample, dtype, device, training) for space in (fastrnn, nn))
        for (key, mine), torchs in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine, torchs), key
        truth = copy.deepcopy(theirs).cpu().double()
        args = sample.forward_input.args
        forms = (ours, dtype, device), (theirs, dtype, device), (truth, torch.float64, "cpu")
        results = [evaluate(module, cast(args, *there), dtype) for module, *there in forms]
        worst += [[deviation(result[key], results[2][key]) for result in results[:2]] for key in results[0]]
    assert len(worst) >= 10
    # In float64 torch's own result is the truth, so what saturation does to its slopes has to be allowed for.
    floor = torch.finfo(dtype).eps * FLOOR[dtype] * (4 if dtype == torch.float64 else 1)
    assert max(mine for mine, _ in worst) <= FACTOR * max(torchs for _, torchs in worst) + floor


@pytest.mark.parametrize("name", NAMES)
def test_error_samples(name):
    """torch's own list of misuses: its types, its texts."""
    info = ENTRIES[name]
    rows = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
    assert rows
    for row in rows:
        sample = row.module_error_input
        given = sample.constructor_input

        def action(space, given=given, sample=sample, row=row):
            module = getattr(space, name)(*given.args, **given.kwargs)
            if row.error_on == ModuleErrorEnum.FORWARD_ERROR:
                module(*sample.forward_input.args, **sample.forward_input.kwargs)

        caught = []
        for space in (fastrnn, nn):
            with pytest.raises(row.error_type) as raised:
                action(space)
            caught.append((raised.type, str(raised.value)))
        assert caught[0] == caught[1] and re.search(row.error_regex, caught[0][1])
