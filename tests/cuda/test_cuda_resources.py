"""The committed table of what the compiler made of the CUDA kernels, and the program that writes it."""

import csv
import itertools
from pathlib import Path

import cuda_resources
import pytest

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
RESIDENT_CELLS = ("Lstm", "Gru", "Rnn<Tanh>", "Rnn<Relu>")
RESIDENT_CELLS += tuple(f"Derived<{name}Forward>" for name in ("Peephole", "Slstm", "SlstmExp", "Cifg"))
RESIDENT = {"cta": (4, 8), "cluster": (8, 32), "grid": (8, 32)}


@pytest.fixture(scope="module")
def rows():
    with Path(cuda_resources.__file__).with_name("results").joinpath("cuda-resources.csv").open() as file:
        return list(csv.DictReader(file))


def test_no_resident_kernel_spills_and_all_that_should_use_tensor_cores(rows):
    assert cuda_resources.complaints(rows) == []


def test_every_resident_kernel_is_in_the_table(rows):
    listed = {(row["arch"], row["kernel"], row["arguments"]) for row in rows}
    for arch, direction, cell in itertools.product(ARCHITECTURES, ("forward", "backward"), RESIDENT_CELLS):
        for tier, tiles in RESIDENT.items():
            forms = [*itertools.product(("float", "__nv_bfloat16", "__half"), ("true",), tiles)]
            forms += [("float", "false", size) for size in tiles if size <= 8]
            for scalar, tensor_cores, size in forms:
                arguments = f"{cell}, {scalar}, {tensor_cores}, {size}, {tier}"
                assert (arch, f"resident_{direction}_kernel", arguments) in listed


def test_the_program_sees_a_spill_and_a_product_without_tensor_cores():
    row = {"arch": "sm_90", "kernel": "resident_forward_kernel", "arguments": "Lstm, __half, true, 8, cluster"}
    row |= {"registers": "255", "stack_bytes": "0", "shared_bytes": "0", "mma_instructions": "40", "cache_flushes": "1"}
    assert cuda_resources.complaints([row]) == []
    assert "8 bytes of stack" in cuda_resources.complaints([row | {"stack_bytes": "8"}])[0]
    normed = row | {"kernel": "backward_row", "arguments": "LayerNormLstm, float", "mma_instructions": "0"}
    assert cuda_resources.complaints([normed]) == []
    assert "8 bytes of stack" in cuda_resources.complaints([normed | {"stack_bytes": "8"}])[0]
    assert "no tensor core" in cuda_resources.complaints([row | {"mma_instructions": "0"}])[0]
    assert "barrier of the cluster" in cuda_resources.complaints([row | {"cache_flushes": "2"}])[0]
    assert cuda_resources.complaints([row | {"mma_instructions": "0", "registers": "4"}]) == []  # has no body
    turing = row | {"mma_instructions": "0", "arch": "sm_75"}
    assert "no tensor core" in cuda_resources.complaints([turing])[0]
    assert cuda_resources.complaints([turing | {"arguments": "Lstm, float, true, 8, cta"}]) == []  # no tf32 there


def test_names_are_the_projects():
    signature = (
        "void fastrnn::cuda::resident_forward_kernel<fastrnn::Rnn<fastrnn::Tanh>, float, true, 8, "
        "(fastrnn::cuda::Tier)2>(fastrnn::cuda::Sequence<fastrnn::cuda::ForwardStep>)"
    )
    want = "resident_forward_kernel", "Rnn<Tanh>, float, true, 8, cluster"
    assert cuda_resources.readable(signature) == want


def test_loads_that_are_waited_for_are_counted():
    """Those between sending and waiting whose value is used there; R9 is used after the wait, R5 before sending."""
    code = ["LDG.E R5, desc[UR4][R2.64]", "FADD R6, R5, R5", "STAS.128 [R8.64], R4", "LDG.E.U16 R8, desc[UR4][R2.64]"]
    code += ["@P0 LDG.E R9, desc[UR4][R2.64+0x4]", "IMAD.U32 R7, R8, 0x10000, RZ"]
    code += ["SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R14+URZ], R15", "CCTL.IVALL", "FADD R1, R9, R7"]
    assert cuda_resources.waited_loads(code) == 1
    lines = [f"        /*{i:04x}*/   {line} ;" for i, line in enumerate(code)]
    text = "\n".join(["arch = sm_90", "Function : k", *lines])
    assert cuda_resources.instructions(text) == {("sm_90", "k"): code}
    assert cuda_resources.facts(["HMMA.16816.F32 R4, R8, R12, R4", *code]) == [1, 1, 1]
