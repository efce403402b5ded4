"""Whether the backward kernels still fetch ahead of time, which no result shows.

GCC took the function that does so for one without effects and dropped its calls, so the machine code is looked at.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter

import pytest

from fastrnn._kernels import ext, ops

PREFETCHING = ("avx2", "avx512", "avx512_bf16", "amx_bf16")


@pytest.mark.skipif(ops.missing("cpu") is not None, reason=str(ops.missing("cpu")))
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 code")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_backward_prefetches():
    command = ["objdump", "--disassemble", "--no-show-raw-insn", ext.load().__file__]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, function = Counter(), ""
    for line in code.splitlines():
        if label := re.fullmatch(r"[0-9a-f]+ <(\w+)>:", line):
            function = label[1]
        elif "\tprefetch" in line and "8Backward" in function:  # the length of a name comes before it
            found.update(isa for isa in PREFETCHING if f"{len(isa)}{isa}8Backward" in function)
    assert {isa for isa in PREFETCHING if found[isa] >= 10} == set(PREFETCHING), found
