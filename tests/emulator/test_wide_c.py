"""c_0 and c_n of 16-bit CUDA layers in float32, so that a sequence in parts is the sequence; in the emulator."""

import pytest
import torch
from support import forward_arguments

from emulator import build
from emulator.cases import KERNELS, MIXED, RESIDENT, Layer, prescribe

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")

FORMS = [name for name, _, precisions in KERNELS + RESIDENT if "bfloat16" in precisions]
each_form = pytest.mark.parametrize("form", FORMS)


@each_form
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_sequence_in_two_calls_has_the_bits_of_one(cuda, form, precision):
    prescribe(cuda, form)
    whole = Layer(0, precision, (6, 5, 3, 17))
    output, (h, c), _ = whole.forward(cuda)
    hx, parts = [whole.hx[0], whole.hx[1].float()], []
    for begin, end in ((0, 2), (2, 6)):
        part, hx, _ = cuda.layer_forward(*forward_arguments(0, whole.x[begin:end], None, hx, whole.weights))
        parts.append(part)
    assert hx[1].dtype == torch.float32 and not torch.equal(hx[1], c.float())
    assert torch.equal(torch.cat(parts), output) and torch.equal(hx[0], h) and torch.equal(hx[1].to(c.dtype), c)


@each_form
@pytest.mark.parametrize("lengths", [None, MIXED], ids=["full", "lengths"])
def test_the_gradients_are_those_of_the_narrow_call(cuda, form, lengths):
    prescribe(cuda, form)
    layer = Layer(0, "bfloat16", (4, 9, 2, 17), lengths=lengths)
    narrow = layer.backward(cuda, *layer.forward(cuda)[::2])
    layer.hx[1], layer.grad_hn[1] = layer.hx[1].float(), layer.grad_hn[1].float()
    wide = layer.backward(cuda, *layer.forward(cuda)[::2])
    assert wide[1][1].dtype == torch.float32 and not torch.equal(wide[1][1], narrow[1][1].float())
    assert torch.equal(wide[0], narrow[0]) and torch.equal(wide[1][1].bfloat16(), narrow[1][1])
    assert all(map(torch.equal, wide[2], narrow[2]))


@each_form
def test_a_gradient_of_c_is_not_rounded_on_its_way_in(cuda, form):
    prescribe(cuda, form)
    layer = Layer(0, "bfloat16", (2, 3, 2, 17))
    layer.hx[1] = layer.hx[1].float()
    output, _, saved = layer.forward(cuda)
    found = []
    for value in (1, 1 + 2**-12):  # which bfloat16 does not tell apart
        layer.grad_hn[1] = torch.full_like(layer.hx[1], value)
        found.append(layer.backward(cuda, output, saved)[1][1])
    assert not torch.equal(*found)


def test_c_of_another_type_is_refused(cuda):
    for precision, dtype in (("bfloat16", torch.float64), ("float32", torch.float64), ("bfloat16", torch.float16)):
        layer = Layer(0, precision, (3, 4, 2, 7))
        layer.hx[1] = layer.hx[1].to(dtype)
        with pytest.raises(RuntimeError, match=r"hx must be .* on cpu"):
            layer.forward(cuda)
    layer = Layer(0, "bfloat16", (3, 4, 2, 7))
    layer.hx[1] = layer.hx[1].float()
    output, _, saved = layer.forward(cuda)
    with pytest.raises(RuntimeError, match=r"grads\[2\] must be Float on cpu, got BFloat16"):
        layer.backward(cuda, output, saved)
