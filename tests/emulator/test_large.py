"""Arrays of more than 2^31 elements: offsets into them are of 64 bits, on the CPU and in the CUDA kernels.

On the CPU the calls are made; arrays that are only read are zero but for a few rows, and take no memory.

The CUDA kernels run in the emulator on reserved address space, of which only the touched pages exist: rows far from the
beginning of every array give, bit for bit, the results of the same rows in small arrays. Reading the generated code
would show that an address is of 64 bits, but not that the numbers it is made of were so all along, and it would need
a toolkit; this covers the host's arithmetic for launches and products too.
"""

import mmap
import subprocess

import pytest
import torch
from support import backward_arguments, compiled, forward_arguments

from emulator import build
from fastrnn._kernels import ext
from fastrnn.registry import CELLS

DTYPE, B, H, TAIL = torch.bfloat16, 1024, 16, 40  # the last TAIL steps are compared


def memory_for(gigabytes):
    """Skips the test where there is less memory."""
    with open("/proc/meminfo") as info:
        free = next(int(line.split()[1]) for line in info if line.startswith("MemAvailable"))
    if free < gigabytes * 2**20:
        pytest.skip(f"needs {gigabytes} GiB of memory, {free >> 20} are free")


def with_last_steps(T, width):
    """(T, B, width), zero but for random values in the last TAIL steps; what is only read takes no memory."""
    bits = mmap.mmap(-1, T * B * width * DTYPE.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(bits, dtype=DTYPE).view(T, B, width)
    tensor[-TAIL:] = torch.randn(TAIL, B, width)
    return tensor


def arguments(cell, I):
    """Initial states of zeros, which stay zeros while x is, and weights."""
    weights = [(torch.randn(size) / 4).to(DTYPE) for size in ((cell.gates * H, I), (cell.gates * H, H))]
    return [torch.zeros(1, B, H, dtype=DTYPE) for _ in range(cell.states)], weights


@compiled
@pytest.mark.slow
def test_input_and_output_of_more_elements_than_32_bits_count():
    memory_for(6)
    cell, T, cpu = CELLS["RNN_TANH"], 2**31 // (B * H) + TAIL, ext.load().cpu
    x, (hx, weights) = with_last_steps(T, H), arguments(cell, H)
    assert x[:-TAIL].numel() == 2**31
    output, hn, _ = cpu.layer_forward(*forward_arguments(cell.index, x, None, hx, weights, 0))
    alone, hn_alone, _ = cpu.layer_forward(*forward_arguments(cell.index, x[-TAIL:], None, hx, weights, 0))
    assert torch.equal(output[-TAIL:], alone) and torch.equal(hn[0], hn_alone[0]) and alone[0].any()
    assert not output[: T // 2].any()


@compiled
@pytest.mark.slow
def test_gates_and_their_gradients_of_more_elements_than_32_bits_count():
    """With x and output smaller, so that the rest of a backward finds room beside them."""
    memory_for(13)
    cell, T, cpu = CELLS["LSTM"], 2**31 // (B * 4 * H) + TAIL, ext.load().cpu
    x, grad_output, (hx, weights) = with_last_steps(T, 1), with_last_steps(T, H), arguments(cell, 1)
    grad_hn = [torch.ones_like(h) for h in hx]
    call, needs = forward_arguments(cell.index, x, None, hx, weights), [True, False, False]
    output, _, saved = cpu.layer_forward(*call)
    assert saved[0].numel() > 2**31
    grad_x = cpu.layer_backward(*backward_arguments(call, [grad_output, *grad_hn], output, saved, needs))[0]

    x, grad_output, count = x[-TAIL:], grad_output[-TAIL:], TAIL * B
    call = forward_arguments(cell.index, x, None, hx, weights)
    alone, _, saved_alone = cpu.layer_forward(*call)
    assert torch.equal(output[-TAIL:], alone) and alone[0].any()
    assert all(torch.equal(s[:, -count:], a) for s, a in zip(saved, saved_alone, strict=True))
    wanted = cpu.layer_backward(*backward_arguments(call, [grad_output, *grad_hn], alone, saved_alone, needs))[0]
    torch.testing.assert_close(grad_x[-TAIL:], wanted)
    assert wanted[0].any() and not grad_x[: T // 2].any()


@compiled
@pytest.mark.slow
def test_weight_gradients_of_an_input_of_more_elements_than_32_bits_count():
    memory_for(5)
    cell, I, cpu = CELLS["RNN_TANH"], 64, ext.load().cpu
    T = 2**31 // (B * I) + TAIL
    x, grad_output, (hx, weights) = with_last_steps(T, I), with_last_steps(T, H), arguments(cell, I)
    weights[1] /= 4  # so that a gradient is forgotten, too
    grads = []
    for steps in (T, TAIL + 200):
        part, grad = x[-steps:], grad_output[-steps:]
        call = forward_arguments(cell.index, part, None, hx, weights)
        output, _, saved = cpu.layer_forward(*call)
        given = backward_arguments(call, [grad, *map(torch.zeros_like, hx)], output, saved, [False, False, True])
        grads.append([g for g in cpu.layer_backward(*given)[2] if g is not None])
    for whole, last in zip(*grads, strict=True):
        torch.testing.assert_close(whole, last)


def test_more_rows_than_31_bits_count_are_refused_before_anything_is_computed(cuda):
    """The kernels count rows in 32 bits. The input is one value, seen 2^31 times."""
    x, T, many = torch.zeros(1, 1, 1), 2**16, 2**15
    hx, weights = [torch.zeros(1, many, 1)], [torch.zeros(1, 1), torch.zeros(1, 1), None, None]
    call = forward_arguments(CELLS["RNN_TANH"].index, x.expand(T, many, 1), None, hx, weights)
    with pytest.raises(RuntimeError, match=r"expected fewer than 2\^31 rows .*, got 2147483648 rows and 1"):
        cuda.layer_forward(*call)


@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")
@pytest.mark.parametrize("kernels", ["step", "cta", "cluster", "grid", "others"])
def test_cuda_kernels_far_from_the_beginning_of_their_arrays(kernels):
    done = subprocess.run([build.far_program(), kernels], capture_output=True, text=True, timeout=300)
    if done.returncode == 77:
        pytest.skip("the system reserves no address space of terabytes")
    assert done.returncode == 0 and done.stdout == "same\n", done.stdout + done.stderr
