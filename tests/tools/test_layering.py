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


INCLUDABLE = {"common/numeric.h", "cells/gru.h", "cuda/params.h", "cuda/primitives.cuh", "cpu/plan.h"}


@pytest.mark.parametrize(
    "path, source, is_fine",
    [
        ("common/numeric.h", '#include "../cells/gru.h"', False),
        ("cells/gru.h", '#include "../common/numeric.h"', True),
        ("cells/gru.h", '#include "../cuda/params.h"', False),
        ("cuda/step.cuh", '#  include "../cpu/plan.h"', False),
        ("cuda/inst/gru.cu", '#include "../../cells/gru.h"\n#include "../params.h"', True),
        ("cuda/inst/gru.cu", '#include "../../cpu/plan.h"', False),
        ("cpu/layer.cpp", '#include "../cells/lstm.h"', False),  # there is no such file
        ("cuda/step.cuh", '#include "emulator.h"', False),
        ("cuda/primitives.cuh", '#include "emulator.h"', True),
        ("bindings/cuda_ops.cpp", '#include <torch/extension.h>\n#include "../cuda/params.h"', True),
        ("cpu/layer.cpp", "#include <ATen/Parallel.h>", False),
        ("cuda/step.cuh", "#include <c10/util/Half.h>", False),
        ("cuda/step.cuh", "#include <cuda_runtime.h>", True),
    ],
)
def test_include_rule(path, source, is_fine):
    assert (layering.check_includes(path, source, INCLUDABLE) == []) is is_fine


@pytest.mark.parametrize(
    "path, source, is_fine",
    [
        ("cuda/step.cuh", 'void f() { asm volatile("bar.sync 0;"); }', False),
        ("cuda/step.cuh", "// no asm here\nvoid f();", True),
        ("cuda/primitives.cuh", 'void f() { asm volatile("bar.sync 0;"); }', True),
    ],
)
def test_assembly_rule(path, source, is_fine):
    assert (layering.check_assembly(path, source) == []) is is_fine


@pytest.mark.parametrize(
    "source, is_fine",
    [
        ("k<<<grid, block>>>(p);\nreturn cudaGetLastError();", True),
        ("k<<<grid, block>>>(p);\nreturn cudaSuccess;", False),
        ("k<<<grid, block>>>(p);  // cudaGetLastError() comes later", False),
        ("k<<<grid, block>>>(p);" + "\n" * 9 + "return cudaGetLastError();", False),
        ("if (small) {\n  a<<<1, 32>>>(p);\n} else {\n  b<<<2, 32>>>(p);\n}\nreturn cudaGetLastError();", True),
        ("{ cudaLaunchKernelEx(&config, kernel, params); return cudaSuccess; }", False),
        ("{ (void)cudaLaunchKernel(kernel, grid, block, args, 0, stream); }", False),
        ("{ return cudaLaunchKernelExC(&config, kernel, args); }", True),
        ("{ cudaError_t e = cudaLaunchCooperativeKernel(kernel, grid, block, args, 0, stream); }", True),
    ],
)
def test_launch_rule(source, is_fine):
    assert (layering.check_launches("cuda/sample.cu", source) == []) is is_fine


@pytest.mark.parametrize(
    "module, source, is_fine",
    [
        ("modules", "from . import functional\nfrom .registry import CELLS", True),
        ("functional", "from .modules import LSTM", False),
        ("functional", "def f():\n    from fastrnn.modules import LSTM", False),
        ("functional", "import fastrnn", False),
        ("functional", "from fastrnn import LSTM", False),
        ("modules", "from .cells import LSTMCell", False),
        ("_kernels.ops", "from . import ext", True),
        ("_kernels.ops", "from .. import _C", False),
        ("_kernels.ext", "from fastrnn import _C", True),
        ("_backends.dispatch", "import fastrnn._C", False),
        ("_backends.dispatch", "from ..verdict import proof\nfrom .choice import Row", True),
        ("_backends.choice", "from . import dispatch", False),
        ("verdict.proof", "from .._call.stack import run", False),
        ("verdict.proof", "from .prove import main", False),
        ("verdict.worker", "from .. import LSTM\nfrom ..bench.case import Case\nfrom . import proof", True),
        ("_info", "from ._build_info import torch", False),
        ("reference", "from .registry import CELLS\nimport torch", True),
        ("reference.scan", "from ..registry import CELLS\nfrom .rows import step_order", True),
        ("reference.scan", "from .._kernels import ops", False),
        ("_kernels.ext", "from .. import registry", False),
        ("_backends.autograd", "from . import helpers", False),
        ("_backends.helpers", "import torch", False),  # a module without a place in the order
        ("bench.measure", "import fastrnn\nfrom .case import Case\nfrom ..registry import CELLS", True),
        ("__main__", "from . import _info", True),
        ("__init__", "from . import _info", False),
    ],
)
def test_import_rule(module, source, is_fine):
    assert (layering.check_imports(module, source) == []) is is_fine


def test_length_rule():
    assert layering.check_length("a.py", "x\n" * 400) == []
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
