"""What no result shows and the compiler may undo: fetching ahead of time, and sums in registers."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter

import pytest

from fastrnn._kernels import ext, ops

PREFETCHING = ("avx2", "avx512", "avx512_bf16", "amx_bf16")

pytestmark = [
    pytest.mark.skipif(ops.missing("cpu") is not None, reason=str(ops.missing("cpu"))),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 code"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump"),
]


@pytest.fixture(scope="module")
def code():
    """The lines of each function of the extension, by its mangled name, in which names follow their lengths."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", ext.load().__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if label := re.fullmatch(r"[0-9a-f]+ <(\w+)>:", line):
            lines = functions.setdefault(label[1], [])
        else:
            lines.append(line)
    return functions


def test_backward_prefetches(code):
    """GCC took the function that does so for one without effects and dropped its calls."""
    found = Counter()
    for name, lines in code.items():
        for isa in PREFETCHING:
            if f"{len(isa)}{isa}8Backward" in name:
                found[isa] += sum("\tprefetch" in line for line in lines)
    assert {isa for isa in PREFETCHING if found[isa] >= 10} == set(PREFETCHING), found


def test_sums_of_frozen_products_stay_in_registers(code):
    """GCC kept those of int8 in memory, which doubled their time; a constant or two may be there."""
    kernels = {name: lines for name, lines in code.items() if re.search("(avx512|amx).*multiply_frozen", name)}
    assert len(kernels) > 50
    for name, lines in kernels.items():
        products = sum(re.search(r"\tv(fmadd|pdpbusd|dpbf16ps|pmaddwd)", line) is not None for line in lines)
        on_stack = sum("zmm" in line and re.search(r"\((%rsp|%rbp)\)", line) is not None for line in lines)
        assert on_stack <= products / 3, f"{name}: {products} products, {on_stack} vectors on the stack"
