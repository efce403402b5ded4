"""Cells of the user's own on a GPU, compiled by nvcc here; what a CPU can show of them is in test_own_cell.py."""

import pytest
import torch
from emulator.cases import KERNELS, fp32_precision
from on_gpu import captured
from own_cells import SCHEDULES, STEPS, check_within_the_budget, compiled, load

import fastrnn
from fastrnn._kernels import ext, nvcc


def lacking() -> str | None:
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    return nvcc.find_nvcc()[1]


pytestmark = [compiled, pytest.mark.gpu, pytest.mark.skipif(lacking() is not None, reason=str(lacking()))]
FORMS = [*KERNELS, ("chosen", None, ["float64", "float32", "tf32", "bfloat16", "float16"])]
each_cell = pytest.mark.parametrize("name", STEPS)


@pytest.fixture(autouse=True)
def cuda():
    assert ext.why_no_cuda() is None, ext.why_no_cuda()
    cuda = ext.load().cuda
    with fastrnn.backend("cuda"), fp32_precision("ieee"):
        yield cuda
    cuda.follow_plan()


@pytest.mark.parametrize(
    "kernel, precision",
    [pytest.param(kernel, each, id=f"{form}-{each}") for form, kernel, precisions in FORMS for each in precisions],
)
@each_cell
def test_every_kernel_against_a_loop(cuda, name, kernel, precision):
    turing = torch.cuda.get_device_capability() < (8, 0)
    if kernel is not None:
        if turing and kernel.get("tensor_cores") and precision != "float16":
            pytest.skip("Turing's tensor cores know float16 alone")
        cuda.override_plan(**kernel)
    with fp32_precision("tf32" if precision == "tf32" else "ieee"):
        for schedule in SCHEDULES:
            check_within_the_budget(load(name), STEPS[name], schedule, precision, "cuda")


@each_cell
def test_check_finds_no_fault(name):
    assert load(name).check("cuda")


@each_cell
def test_graphs_and_states_saved_alone(name):
    module = fastrnn.Layer(load(name), 24, 64, 2, bidirectional=True, device="cuda")
    x = torch.randn(7, 5, 24, device="cuda")

    def run(**asked):
        output = module(x, **asked)[0]
        return [output, *torch.autograd.grad(output.sin().sum(), list(module.parameters()))]

    torch.testing.assert_close(run(save="states"), run(), rtol=1e-4, atol=1e-5)
    graph, results = captured(run)
    with torch.no_grad():
        x.mul_(0.5)
    graph.replay()
    torch.testing.assert_close(results, run())
