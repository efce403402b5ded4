"""The operations registered with torch: schema, fake kernels, autograd and compilation agree with what they compute."""

from __future__ import annotations

import pytest
import torch

from fastrnn import _ops, reference
from fastrnn.registry import CELLS

pytestmark = pytest.mark.skipif(
    _ops.missing("cpu") is not None, reason=f"no compiled CPU operations: {_ops.missing('cpu')}"
)


def arguments(mode: str, directions: int, packed: bool, projected: bool, dtype=torch.float64, grad: bool = True):
    """Arguments of fastrnn::layer_forward, all but the last."""
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
def test_opcheck_forward(mode, directions, packed, projected):
    args = (*arguments(mode, directions, packed, projected), True)
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, args)


def backward_arguments(mode, directions, packed, projected, needs):
    cell, x, batch_sizes, hx, weights = arguments(mode, directions, packed, projected, grad=False)
    output, hn, saved = torch.ops.fastrnn.layer_forward(cell, x, batch_sizes, hx, weights, True)
    return cell, output.cos(), [h.sin() for h in hn], x, batch_sizes, hx, weights, output, saved, needs


@pytest.mark.parametrize("mode, directions, packed, projected", LAYERS)
def test_opcheck_backward(mode, directions, packed, projected):
    args = backward_arguments(mode, directions, packed, projected, [True, True, True])
    torch.library.opcheck(torch.ops.fastrnn.layer_backward.default, args)


@pytest.mark.parametrize("needs", [[True, False, False], [False, True, False], [False, False, True]])
@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_opcheck_backward_of_some_inputs(mode, needs):
    args = backward_arguments(mode, 2, False, False, needs)
    torch.library.opcheck(torch.ops.fastrnn.layer_backward.default, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", CELLS)
def test_fake_kernel_knows_the_saved_types(mode, dtype):
    args = (*arguments(mode, 1, False, mode == "LSTM", dtype, grad=False), True)
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, args, test_utils="test_faketensor")


@pytest.mark.parametrize("mode", CELLS)
def test_gradients_of_the_op_are_those_of_the_reference(mode):
    cell, x, batch_sizes, hx, weights = arguments(mode, 2, True, False)
    output, hn, _ = torch.ops.fastrnn.layer_forward(cell, x, batch_sizes, hx, weights, True)
    expected, expected_hn = reference.scan(cell, x, batch_sizes, hx, weights)
    sources = [x, *hx, *weights]
    grads = torch.autograd.grad([output.sin().sum(), *(h.cos().sum() for h in hn)], sources)
    truth = torch.autograd.grad([expected.sin().sum(), *(h.cos().sum() for h in expected_hn)], sources)
    torch.testing.assert_close(grads, truth, rtol=1e-12, atol=1e-12)


def test_gradient_without_saved_tensors_is_refused():
    output, _, _ = torch.ops.fastrnn.layer_forward(*arguments("GRU", 1, False, False), False)
    with pytest.raises(RuntimeError, match="expected save=True"):
        output.sum().backward()


def test_op_compiles_without_a_graph_break():
    cell, x, _, hx, weights = arguments("LSTM", 1, False, False)

    def loss(x):
        output, _, _ = torch.ops.fastrnn.layer_forward(cell, x, None, hx, weights, True)
        return output.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(loss(x), x))
