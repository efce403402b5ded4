"""The operations registered with torch: schema, fake kernels, autograd and compilation agree with what they compute."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch
from support import LAYERS as LAYERS_OF_TORCH
from support import backward_arguments, compiled, flat, forward_arguments, given, name_of, random_states, tensors, twins
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from fastrnn import reference
from fastrnn._backends import dispatch, graph
from fastrnn._kernels import ops
from fastrnn._spec import SCHEMAS
from fastrnn.registry import CELLS


def arguments(mode: str, directions: int, packed: bool, projected: bool, dtype=torch.float64, grad: bool = True):
    """What forward_arguments() takes first."""
    generator = torch.Generator().manual_seed(3)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)

    cell, T, B, I, H = CELLS[mode], 4, 3, 5, 6
    R = 2 if projected else H
    weights = []
    for _ in range(directions):
        weights += [make(cell.gates * H, I), make(cell.gates * H, R), make(cell.gates * H), make(cell.gates * H)]
        weights += [make(R, H)] if projected else []
    hx = [make(directions, B, width) for width in (R, H)[: cell.states]]
    batch_sizes = torch.tensor([3, 3, 2, 1]) if packed else None
    return cell.index, make(9, I) if packed else make(T, B, I), batch_sizes, hx, weights


# (mode, directions, packed, projected): every cell plain, and with everything it has.
LAYERS = [(mode, 1, False, False) for mode in CELLS] + [(mode, 2, True, mode == "LSTM") for mode in CELLS]


@pytest.mark.parametrize("mode, directions, packed, projected", LAYERS)
def test_opcheck(mode, directions, packed, projected):
    args = forward_arguments(*arguments(mode, directions, packed, projected))
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, args)
    args = arguments_after(forward_arguments(*arguments(mode, directions, packed, projected, grad=False)))
    torch.library.opcheck(torch.ops.fastrnn.layer_backward.default, args)


def arguments_after(args, needs=(True, True, True)):
    """Of fastrnn::layer_backward after fastrnn::layer_forward with ``args``."""
    output, states, saved = torch.ops.fastrnn.layer_forward(*args)
    return backward_arguments(args, [output.cos(), *(h.sin() for h in states)], output, saved, needs)


@pytest.mark.parametrize("needs", [[True, False, False], [False, True, False], [False, False, True]])
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_opcheck_backward_of_some_inputs(mode, needs):
    args = arguments_after(forward_arguments(*arguments(mode, 2, False, False, grad=False)), needs)
    torch.library.opcheck(torch.ops.fastrnn.layer_backward.default, args, test_utils=("test_schema", "test_faketensor"))


@compiled
def test_states_of_an_empty_batch_do_not_fit_input_with_rows():
    args = forward_arguments(*arguments("LSTM", 1, False, False, grad=False))
    after = arguments_after(args)
    for operator, place, fitting in (("layer_forward", 2, args), ("layer_backward", 3, after)):
        states = [h[:, :0] for h in fitting[place]]
        with pytest.raises(RuntimeError, match="must have shape"):
            getattr(torch.ops.fastrnn, operator)(*fitting[:place], states, *fitting[place + 1 :])


def masked_arguments(mode, projected, grad=True, **named):
    """Those of arguments() for both directions, with what only some calls have."""
    resets = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0]]).bool()
    named = {"lengths": torch.tensor([2, 0, 4]), "resets": resets, "all_states": True} | named
    return forward_arguments(*arguments(mode, 2, False, projected, grad=grad), **named)


@pytest.mark.parametrize("mode, projected", [*((mode, False) for mode in CELLS), ("LSTM", True)])
def test_opcheck_with_lengths_and_resets(mode, projected):
    forward = torch.ops.fastrnn.layer_forward.default
    # What is saved has room for every row, and the kernels leave the room of rows without a step as it is, which a
    # comparison of all that is returned takes for a difference.
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(forward, masked_arguments(mode, projected), test_utils=checks)
    torch.library.opcheck(forward, masked_arguments(mode, projected, lengths=torch.tensor([4, 4, 4])))
    args = arguments_after(masked_arguments(mode, projected, grad=False))
    torch.library.opcheck(torch.ops.fastrnn.layer_backward.default, args)


def test_opcheck_of_a_reverse_direction():
    args = forward_arguments(*arguments("GRU", 1, True, False), forwards=0)
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, args)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", CELLS)
def test_fake_kernel_knows_the_saved_types(mode, dtype):
    args = forward_arguments(*arguments(mode, 1, False, mode == "LSTM", dtype, grad=False))
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, args, test_utils="test_faketensor")


def scanned(args):
    x, given, hx, weights, spec, _ = args
    return reference.scan(spec[1], x, reference.Schedule(*given), hx, weights, bool(spec[4]))


def sources(args):
    x, _, hx, weights, _, _ = args
    return [x, *hx, *(w for w in weights if w is not None)]


@pytest.mark.parametrize("part", ["x", "hx", "w_hr"])
def test_gradients_of_some_inputs_of_the_op(part):
    given = arguments("LSTM", 1, False, True, grad=False)
    _, x, _, hx, weights = given
    chosen = {"x": x, "hx": hx[1], "w_hr": weights[-1]}[part].requires_grad_()
    output, *_ = torch.ops.fastrnn.layer_forward(*forward_arguments(*given))
    expected, *_ = torch.lstm(x, hx, weights, True, 1, 0.0, False, False, False)
    grads = [torch.autograd.grad(result.sin().sum(), chosen)[0] for result in (output, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_gradient_without_saved_tensors_is_refused():
    output, _, _ = torch.ops.fastrnn.layer_forward(*forward_arguments(*arguments("GRU", 1, False, False), 0))
    with pytest.raises(RuntimeError, match="expected save > 0"):
        output.sum().backward()


@pytest.fixture
def pure():
    """The operators as they are without the extension, under another name: fastrnn_pure."""
    library = torch.library.Library("fastrnn_pure", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
    library.impl("layer_forward", graph._reference_forward, "CompositeExplicitAutograd")
    library.impl("layer_backward", graph._reference_backward, "CompositeExplicitAutograd")
    yield torch.ops.fastrnn_pure
    library._destroy()


def check_pure(pure, args):
    with torch.no_grad():
        output, hn, saved = pure.layer_forward(*args)
        grads = [output.cos(), *(h.sin() for h in hn)]
        found = pure.layer_backward(*backward_arguments(args, grads, output, saved))
    assert saved == []
    expected, expected_hn = scanned(args)
    torch.testing.assert_close([output, *hn], [expected, *expected_hn], rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad([expected, *expected_hn], sources(args), grads)
    torch.testing.assert_close(flat(found), list(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode, directions, packed, projected", LAYERS)
def test_without_kernels_the_operators_run_the_reference(pure, mode, directions, packed, projected):
    check_pure(pure, forward_arguments(*arguments(mode, directions, packed, projected)))
    check_pure(pure, masked_arguments(mode, projected))


def flops(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 3}], ids=str)
@pytest.mark.parametrize("cell", LAYERS_OF_TORCH, ids=name_of)
def test_flops_are_those_of_torch(cell, options, packed):
    """torch's layers are plain matrix products in float64 on the CPU, and those torch counts by itself."""
    if "proj_size" in options and cell.mode != "LSTM":
        pytest.skip("only an LSTM has projections")
    ours, theirs, _ = twins(cell, 5, 8, dtype=torch.float64, **options)
    x = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    rows = (2 if options.get("bidirectional") else 1) * options.get("num_layers", 1)
    hx = [h.double().requires_grad_() for h in tensors(random_states(cell, rows, 4, 8, options.get("proj_size", 0)))]

    def train(module):
        input = pack_padded_sequence(x, [6, 4, 4, 1]) if packed else x
        sum(t.sum() for t in tensors(module(input, given(hx)))).backward()

    def infer(module):
        with torch.no_grad():
            module(pack_padded_sequence(x, [6, 4, 4, 1]) if packed else x)

    assert flops(lambda: infer(ours)) == flops(lambda: infer(theirs)) > 0
    assert flops(lambda: train(ours)) == flops(lambda: train(theirs)) > 0


@compiled
def test_flops_of_a_backward_that_was_recorded_before():
    module, x = fastrnn.GRU(4, 6), torch.randn(5, 3, 4)
    loss = module(x)[0].sum()
    forward = flops(lambda: module(x))
    assert flops(loss.backward) == forward + 2 * 15 * 18 * 6  # dW_ih, dW_hh and the states'; nothing asks for dx


def test_flops_where_the_automatic_choice_is_torchs_fused_layer(monkeypatch):
    monkeypatch.setattr(dispatch, "ranking", lambda call: ("aten", "reference"))
    module, x = fastrnn.LSTM(4, 6), torch.randn(5, 20, 4)
    assert fastrnn.explain(module, x).backend == "aten"
    assert flops(lambda: module(x)) == 2 * 5 * 20 * 24 * (4 + 6)


@compiled
def test_an_empty_batch():
    cell, x, _, hx, weights = arguments("LSTM", 2, False, True)
    x, hx = x[:, :0], [h[:, :0] for h in hx]
    output, hn, _ = torch.ops.fastrnn.layer_forward(*forward_arguments(cell, x, None, hx, weights))
    assert output.shape == (4, 0, 4) and [h.shape for h in hn] == [h.shape for h in hx]
    grads = torch.autograd.grad(output.sum(), weights)
    assert all(g.shape == w.shape and not g.any() for g, w in zip(grads, weights))


IMPORT = """
import sys, types, torch
extension, info = types.ModuleType("fastrnn._C"), types.ModuleType("fastrnn._build_info")
extension.cpu, extension.cuda = types.SimpleNamespace(), types.SimpleNamespace(measured_capability=90)
extension.are_plain = None
info.python, info.torch, info.cuda, info.cuda_archs = sys.implementation.cache_tag, torch.__version__, None, "9.0"
info.why_no_extension = info.why_no_cuda = None
sys.modules |= {module.__name__: module for module in (extension, info)}

def refuse(*_, **__):
    raise AssertionError("CUDA was asked for something")

for name in ("get_device_capability", "get_device_properties", "is_available", "device_count", "_lazy_init"):
    setattr(torch.cuda, name, refuse)
import fastrnn
assert fastrnn._backends.graph.KERNELS == {"cpu", "cuda"}
"""


def test_the_import_leaves_cuda_alone(monkeypatch):
    """A process that has started CUDA forks none that can use it."""
    for name in ("FASTRNN_BACKEND", "FASTRNN_CUDA_TIER"):
        monkeypatch.delenv(name, raising=False)
    subprocess.run([sys.executable, "-c", IMPORT], check=True)


def test_the_reference_serves_operators_on_a_gpu_that_the_extension_was_not_built_for(monkeypatch):
    """By the GPU of the tensors: here the first is served, the second is not."""
    monkeypatch.setattr(graph, "KERNELS", frozenset({"cpu", "cuda"}))
    monkeypatch.setattr(graph, "missing", lambda backend, index: "too old" if index == 1 else None)
    found = [graph._has_kernels(types.SimpleNamespace(device=torch.device("cuda", index))) for index in (0, 1)]
    assert found == [True, False]
    monkeypatch.setattr(graph, "_has_kernels", lambda x: False)
    x, *rest = forward_arguments(*arguments("LSTM", 1, False, False))
    assert graph._fake_forward(x, *rest)[2] == []
    called = []
    for name in ("_reference_forward", "_reference_backward"):
        monkeypatch.setattr(graph, name, lambda *given, name=name: called.append(name))
    graph._forward("cuda")(x, *rest)
    graph._backward("cuda")([], x, *rest[:3], [], *rest[3:], [])
    assert called == ["_reference_forward", "_reference_backward"]


def test_fake_tensors_never_reach_the_kernels():
    with FakeTensorMode():
        module, x = fastrnn.LSTM(4, 6, 2), torch.randn(5, 3, 4)
        output, (h, c) = module(x)
    assert isinstance(output, FakeTensor) and output.shape == (5, 3, 6) and h.shape == c.shape == (2, 3, 6)
    assert isinstance(module(x)[0], FakeTensor)  # outside the mode the tensors themselves must be noticed
    if ops.missing("cpu") is None:
        with fastrnn.backend("cpu"), pytest.raises(RuntimeError, match="not an ordinary strided tensor"):
            module(x)
