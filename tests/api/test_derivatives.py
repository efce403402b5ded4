"""Derivatives beyond a first backward in training: eval mode, second order, forward mode, torch.func, checkpointing."""

from __future__ import annotations

import functools

import pytest
import torch
from support import (
    OWN_BACKENDS,
    agree,
    build,
    cells,
    check,
    check_all,
    device_of,
    evaluate,
    forward_arguments,
    given,
    like,
    pairs,
    tensors,
    twins,
)
from torch.autograd import forward_ad, graph
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import fastrnn
from fastrnn.registry import CELLS

packed_or_not = pytest.mark.parametrize("batch_sizes", [None, [3, 3, 2, 1, 1]], ids=["padded", "packed"])
STACK = {"num_layers": 2, "bidirectional": True}


def as_input(x, batch_sizes):
    """``x`` (T, B, I) as it is, or its first rows as packed ones: torch cannot transform the packing itself."""
    if batch_sizes is None:
        return x
    return PackedSequence(x.flatten(0, 1)[: sum(batch_sizes)], torch.tensor(batch_sizes))


@cells
@pytest.mark.parametrize("lengths", [None, [2, 5, 3]], ids=["padded", "packed"])
def test_backward_in_eval_mode(cell, lengths, any_backend):
    modules = twins(cell, 4, 6, 2, bidirectional=True, dropout=0.5, device=device_of(any_backend))
    x = torch.randn(5, 3, 4)
    check_all(*(evaluate(module.eval(), x, lengths=lengths) for module in modules))


@cells
@pytest.mark.parametrize("dtype, B", [(torch.float64, 3), (torch.float32, 3), (torch.float32, 20)], ids=str)
def test_second_order(cell, any_backend, dtype, B):
    """A gradient's norm in the loss. gradgradcheck needs float64: torch has kernels for float32 alone, too."""
    modules = twins(cell, 4, 6, **STACK, device=device_of(any_backend), dtype=dtype)
    start = torch.randn(5, B, 4)

    def second(module):
        x = like(module, start)
        (slope,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        found = torch.autograd.grad(slope.square().sum(), [x, *module.parameters()], allow_unused=True)
        return [g for g in found if g is not None]

    agree(modules, second)


@cells
@packed_or_not
def test_dual_tensors(cell, batch_sizes):
    """Forward mode on the module itself: the directional derivative is that of a reverse-mode Jacobian."""
    ours, theirs, truth = twins(cell, 4, 6, **STACK)
    x, tangent = torch.randn(5, 3, 4), torch.randn(5, 3, 4)

    def outputs(module, x):
        return tensors(module(as_input(x, batch_sizes)))

    with forward_ad.dual_level():
        mine = [forward_ad.unpack_dual(o).tangent for o in outputs(ours, forward_ad.make_dual(x, tangent))]
    expected = []
    for module in (theirs, truth):
        point = x.to(module.weight_hh_l0)
        jacobians = torch.autograd.functional.jacobian(lambda x, m=module: tuple(outputs(m, x)), point)
        expected.append([torch.tensordot(j, tangent.to(j), 3) for j in jacobians])
    for triple in zip(mine, *expected, strict=True):
        check(*triple)


@cells
def test_weight_jacobians_forward_and_reverse(cell):
    ours, theirs, truth = twins(cell, 3, 4)
    x = torch.randn(4, 2, 3)

    def of_weights(module, parameters):
        return functional_call(module, parameters, (x.to(parameters["weight_hh_l0"]),))[0].sum((0, 1))

    found = []
    for transform in (jacrev, jacfwd):
        parameters = {name: p.detach() for name, p in ours.named_parameters()}
        found.append(transform(functools.partial(of_weights, ours))(parameters))
    expected = []
    for module in (theirs, truth):
        rows = of_weights(module, dict(module.named_parameters()))
        grads = [torch.autograd.grad(row, list(module.parameters()), retain_graph=True) for row in rows]
        expected.append({name: torch.stack(g) for (name, _), g in zip(module.named_parameters(), zip(*grads))})
    for jacobian in found:
        for name in jacobian:
            check(jacobian[name], expected[0][name], expected[1][name], name)


@cells
@packed_or_not
def test_per_sample_gradients_of_a_stack(cell, batch_sizes):
    """vmap(grad) over a leading axis of minibatches, packed alike, against a loop over torch's gradients."""
    ours, theirs, truth = twins(cell, 4, 6, **STACK)
    batches = torch.randn(3, 5, 3, 4)
    parameters = {name: p.detach() for name, p in ours.named_parameters()}

    def loss(module, parameters, x):
        outputs = tensors(functional_call(module, parameters, (as_input(x, batch_sizes),)))
        return sum(t.square().sum() for t in outputs)

    mine = vmap(grad(functools.partial(loss, ours)), in_dims=(None, 0))(parameters, batches)
    for i, x in enumerate(batches):
        expected = []
        for module in (theirs, truth):
            leaves = dict(module.named_parameters())
            value = loss(module, leaves, x.to(leaves["weight_hh_l0"]))
            expected.append(dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())))))
        names = list(parameters)
        check_all(*({f"gradient of {n}": g[n] for n in names} for g in ({n: mine[n][i] for n in names}, *expected)))


@cells
def test_an_ensemble_of_modules(cell):
    """vmap over stacked parameters."""
    members = [twins(cell, 4, 6, **STACK) for _ in range(3)]
    parameters, buffers = stack_module_state([ours for ours, *_ in members])
    x = torch.randn(5, 2, 4)
    outputs = vmap(lambda p, b: functional_call(members[0][0], (p, b), (x,))[0])(parameters, buffers)
    for mine, (_, theirs, truth) in zip(outputs, members):
        check(mine, theirs(x)[0], truth(x.double())[0])


def test_dropout_under_vmap_is_as_random_as_vmap_is_told():
    module, x = fastrnn.GRU(4, 6, 3, dropout=0.5), torch.randn(5, 2, 4)
    batch = x.expand(3, 5, 2, 4)

    def run(x):
        return module(x)[0]

    same = vmap(run, randomness="same")(batch)
    assert torch.equal(same[0], same[1])
    different = vmap(run, randomness="different")(batch)
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(run)(batch)


@cells
def test_jvp_of_a_gradient(cell):
    """A Hessian-vector product, forward over reverse, against torch's double backward."""
    ours, theirs, truth = twins(cell, 4, 6)
    x, direction = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    _, mine = jvp(grad(lambda x: ours(x)[0].square().sum()), (x,), (direction,))
    expected = []
    for module in (theirs, truth):
        point = x.to(module.weight_hh_l0).requires_grad_()
        (slope,) = torch.autograd.grad(module(point)[0].square().sum(), point, create_graph=True)
        expected.append(torch.autograd.grad(slope, point, direction.to(slope))[0])
    check(mine, *expected)


def gradients(module, run, x):
    x = x.clone().requires_grad_()
    torch.manual_seed(11)
    loss = sum(t.square().sum() for t in run(x))
    module.zero_grad()
    loss.backward()
    return [x.grad, *(p.grad for p in module.parameters())]


def layer_on(cell, backend, lengths):
    """A layer with dropout, as a function of its padded input."""
    module = build(fastrnn, cell, 4, 6, 3, bidirectional=True, dropout=0.5, device=device_of(backend))
    x = torch.randn(5, 3, 4, device=device_of(backend))

    def run(x):
        return tuple(tensors(module(x if lengths is None else pack_padded_sequence(x, lengths))))

    return module, run, x


def has_the_same_bits_without_gradients(run, x):
    """Reentrant checkpointing runs forward under no_grad, where torch's own LSTM rounds otherwise on some CPUs."""
    results = []
    for recording in (True, False):
        torch.manual_seed(3)
        with torch.set_grad_enabled(recording):
            results.append(run(x))
    return all(map(torch.equal, *results))


@cells
@pytest.mark.parametrize("lengths", [None, [5, 3, 2]], ids=["padded", "packed"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_checkpointing_gives_the_same_bits(cell, lengths, reentrant, any_backend):
    """Dropout included: the masks are drawn from torch's generator, whose state checkpointing restores."""
    module, run, x = layer_on(cell, any_backend, lengths)
    plain = gradients(module, run, x)
    again = gradients(module, lambda x: checkpoint(run, x, use_reentrant=reentrant), x)
    ours = any_backend in ("reference", "cpu", "cuda")
    exact = ours or not reentrant or has_the_same_bits_without_gradients(run, x)
    assert all(map(torch.equal if exact else functools.partial(torch.allclose, rtol=1e-5, atol=1e-6), plain, again))


@cells
def test_selective_checkpointing_can_keep_the_layer(cell):
    """A policy sees the operator, and may keep its results where all else is computed again."""
    module, run, x = layer_on(cell, "automatic", None)
    plain, called = gradients(module, run, x), []

    def policy(context, operator, *args, **options):
        if operator is torch.ops.fastrnn.layer_forward.default:
            called.append(context.is_recompute)
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    again = gradients(module, lambda x: checkpoint(run, x, use_reentrant=False, context_fn=contexts), x)
    torch.testing.assert_close(again, plain)
    assert called.count(False) == 3


@cells
def test_saved_tensors_can_be_moved_away(cell, backend):
    """Saved-tensor hooks (``save_on_cpu`` and its like) see everything that is kept, and may replace it."""
    module, run, x = layer_on(cell, backend, None)
    plain = gradients(module, run, x)

    def kept(x):
        with graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
            return run(x)

    assert all(map(torch.equal, plain, gradients(module, kept, x)))


ASKED = [{}, {"lengths": [5, 2, 3]}, {"checkpoint_chunks": 2}, {"save": "states"}]


@pairs(cell=CELLS.values(), asked={str(asked): asked for asked in ASKED}, own_backend=[None, *OWN_BACKENDS])
def test_gradients_of_many_directions_at_once(cell, asked, own_backend):
    """A batch of gradients goes back like each of them alone: is_grads_batched, vmap over a vjp."""
    module, x = build(fastrnn, cell, 4, 6, 2, bidirectional=True), torch.randn(5, 3, 4, requires_grad=True)
    leaves, directions = [x, *module.parameters()], torch.randn(7, 5, 3, 12)
    output = module(x, **asked)[0]
    alone = [torch.autograd.grad(output, leaves, d, retain_graph=True) for d in directions]
    alone = [torch.stack(grads) for grads in zip(*alone)]
    batched = torch.autograd.grad(output, leaves, directions, is_grads_batched=True, retain_graph=True)
    mapped = vmap(lambda d: torch.autograd.grad(output, leaves, d, retain_graph=True))(directions)
    for found in (batched, mapped):
        torch.testing.assert_close(list(found), alone, rtol=1e-4, atol=1e-5)
    # Under the reversed roles: a batch of gradients that are differentiated again.
    slopes = torch.autograd.grad(output, x, directions, is_grads_batched=True, create_graph=True)[0]
    (again,) = torch.autograd.grad(slopes.square().sum(), x)
    expected = torch.zeros_like(x)
    for d in directions:
        (slope,) = torch.autograd.grad(module(x, **asked)[0], x, d, create_graph=True)
        expected += torch.autograd.grad(slope.square().sum(), x)[0]
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)


@cells
@pytest.mark.parametrize("form", ["padded", "packed", "given states", "frozen input"])
def test_per_sample_gradients_by_expanded_weights(cell, form):
    """``torch.nn.utils``' own per-sample gradients: weights of a class that sees functions."""
    results = []
    for module in twins(cell, 4, 6, 2, bidirectional=True, batch_first=True):
        x = like(module, torch.linspace(-1, 1, 60).view(3, 5, 4))
        x.requires_grad_(form != "frozen input" or cell.states == 2)
        input = (x,)
        if form == "packed":
            input = (pack_padded_sequence(x, [5, 4, 2], batch_first=True),)
        elif form == "given states":
            h = torch.linspace(-1, 1, 72).view(4, 3, 6).to(x)
            input = (x, given([h, h.flip(0)][: cell.states]))
        output = call_for_per_sample_grads(module, batch_size=3, loss_reduction="sum")(*input)[0]
        tensors(output)[0].square().sum().backward()
        found = {f"gradient of {name}": p.grad_sample for name, p in module.named_parameters()}
        assert all(grad.shape == (3, *p.shape) for grad, p in zip(found.values(), module.parameters()))
        results.append(found if x.grad is None else found | {"gradient of x": x.grad})
    check_all(*results)


def test_batched_gradients_of_a_compiled_layer():
    """The operator's backward: the same look at the gradients that come in."""
    module, x = fastrnn.GRU(4, 6), torch.randn(5, 3, 4, requires_grad=True)
    call = forward_arguments(CELLS["GRU"].index, x, None, [torch.zeros(1, 3, 6)], list(module.parameters()))
    output, _, _ = torch.ops.fastrnn.layer_forward(*call)
    directions = torch.randn(7, 5, 3, 6)
    (found,) = torch.autograd.grad(output, x, directions, is_grads_batched=True, retain_graph=True)
    for d, slope in zip(directions, found):
        torch.testing.assert_close(slope, torch.autograd.grad(output, x, d, retain_graph=True)[0], rtol=1e-4, atol=1e-6)
