"""The tree obeys the rules in layering.py, and each rule refuses a sample that breaks it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import layering
import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = {
    str(p.relative_to(ROOT / "csrc")): p
    for p in layering.files_under(ROOT / "csrc", ".h", ".cuh", ".cpp", ".cu", ".def")
}
PYTHON = {
    ".".join(p.relative_to(ROOT / "fastrnn").with_suffix("").parts): p
    for p in layering.files_under(ROOT / "fastrnn", ".py")
    if p.stem not in layering.GENERATED
}
ALL_FILES = [
    ROOT / "setup.py",
    *CSRC.values(),
    *PYTHON.values(),
    *(
        p
        for folder in ("tests", "benchmarks", "examples")
        for p in layering.files_under(ROOT / folder, ".py", ".h", ".cpp", ".cu")
    ),
]


def test_the_tree_was_found():
    assert "cells/cells.def" in CSRC and "registry" in PYTHON


@pytest.mark.parametrize("path", CSRC)
def test_csrc(path):
    source = CSRC[path].read_text()
    complaints = layering.check_includes(path, source, set(CSRC)) + layering.check_assembly(path, source)
    if path.startswith("cuda/"):
        complaints += layering.check_launches(path, source)
    assert not complaints


@pytest.mark.parametrize("module", PYTHON)
def test_imports(module):
    assert not layering.check_imports(module, PYTHON[module].read_text())


def test_file_lengths():
    assert not [c for p in ALL_FILES for c in layering.check_length(str(p.relative_to(ROOT)), p.read_text())]
    assert len((ROOT / "setup.py").read_text().splitlines()) < 170


def test_public_names_have_docstrings():
    import fastrnn

    assert not layering.check_docstrings(fastrnn)


# What obeys a rule is in the tree. These samples break it.


@pytest.mark.parametrize(
    "path, source",
    [
        ("common/numeric.h", '#include "../cells/gru.h"'),
        ("cuda/step.cuh", '#  include "../cpu/plan.h"'),
        ("cpu/layer.cpp", '#include "../cells/lstm.h"'),  # there is no such file
        ("cuda/step.cuh", '#include "emulator.h"'),
        ("cpu/layer.cpp", "#include <ATen/Parallel.h>"),
    ],
)
def test_include_rule(path, source):
    assert layering.check_includes(path, source, {"cells/gru.h", "cpu/plan.h"})


def test_assembly_rule():
    assert layering.check_assembly("cuda/step.cuh", 'void f() { asm volatile("bar.sync 0;"); }')


@pytest.mark.parametrize(
    "source",
    [
        "k<<<grid, block>>>(p);  // cudaGetLastError() comes later",
        "k<<<grid, block>>>(p);" + "\n" * 9 + "return cudaGetLastError();",
        "{ cudaLaunchKernelEx(&config, kernel, params); return cudaSuccess; }",
        "{ (void)cudaLaunchKernel(kernel, grid, block, args, 0, stream); }",
    ],
)
def test_launch_rule(source):
    assert layering.check_launches("cuda/sample.cu", source)


@pytest.mark.parametrize(
    "module, source",
    [
        ("functional", "def f():\n    from fastrnn.modules import LSTM"),
        ("functional", "import fastrnn"),
        ("functional", "from fastrnn import LSTM"),
        ("_backends.choice", "from . import dispatch"),
        ("verdict.proof", "from .._call.stack import run"),
        ("_kernels.ops", "from .. import _C"),
        ("_backends.dispatch", "import fastrnn._C"),
        ("_kernels.ext", "from .. import registry"),
        ("_backends.autograd", "from . import helpers"),
        ("_backends.helpers", "import torch"),  # a module without a place in the order
        ("__init__", "from . import _info"),
    ],
)
def test_import_rule(module, source):
    assert layering.check_imports(module, source)


def test_length_rule():
    assert layering.check_length("a.py", "x\n" * 401)


def test_docstring_rule():
    class Base:
        """Has one."""

    class Silent(Base):
        pass

    sample = ModuleType("sample")
    assert layering.check_docstrings(sample) == ["sample has no __all__"]
    sample.Base, sample.Silent, sample.bare, sample.VERSION = Base, Silent, lambda: None, "1"
    sample.__all__ = ["Base", "Silent", "bare", "VERSION"]
    assert layering.check_docstrings(sample) == ["sample.Silent has no docstring", "sample.bare has no docstring"]
