"""The rules that keep the source tree in order, as functions from source text to a list of complaints.

test_layering.py applies each rule to the tree, and to a sample that breaks it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType

# csrc: what a folder may include besides itself.
CSRC_MAY_INCLUDE = {
    "common": set(),
    "cells": {"common"},
    "cuda": {"common", "cells"},
    "cpu": {"common", "cells"},
    "user": {"common", "cells", "cpu", "cuda"},
    "bindings": {"common", "cells", "cuda", "cpu"},
}
TORCH_HEADER = re.compile(r"(torch|ATen|c10|caffe2|pybind11)/|Python\.h")
# The one file that knows hardware: inline assembly, and the emulator's header in place of the GPU.
HARDWARE = "cuda/primitives.cuh"

# fastrnn: floors, lowest first. A module may import what stands on a floor below its own, or before it on its own.
FLOORS = [
    ["registry", "_spec"],
    ["reference"],
    [
        "_kernels.ext",
        "_kernels.ops",
        "_kernels.frozen",
        "_kernels.gate",
        "_kernels.nvcc",
        "_kernels.cell_errors",
        "_kernels.cell_library",
        "_kernels.user_kernels",
    ],
    ["verdict.kept", "verdict.proof", "verdict.prove"],
    ["_backends.choice", "_backends.dispatch", "_backends.aten", "_backends.autograd", "_backends.graph"],
    ["_backends.loop", "_backends.onnx"],
    ["_call.checks", "_call.extras", "_call.heads", "_call.chunks", "_call.wavefront", "_call.stack"],
    ["functional", "_tools", "_options", "modules", "layers", "own_cells", "cells"],
    ["compilation", "conversion", "inference"],
    ["__init__"],
    ["bench", "verdict.worker", "verdict.tune", "_info", "__main__"],
]
PYTHON_ORDER = [name for floor in FLOORS for name in floor]
TOOLS = set(FLOORS[-1])  # these may import each other
# Written or compiled by setup.py, and imported by _kernels.ext alone.
GENERATED = {"_C", "_build_info"}
# Tighter than the order: the oracle shares nothing with the kernels that it judges.
PYTHON_ONLY = {"reference": {"registry", "_spec"}, "_kernels.ext": GENERATED}

LONGEST_FILE = 400


def without_comments(source: str) -> str:
    """C++ source with comments and string literals blanked, line numbers kept."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), source)


def line_of(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1


def check_includes(path: str, source: str, existing: set[str]) -> list[str]:
    """`path` and `existing` are relative to csrc."""
    folder = PurePosixPath(path).parts[0]
    complaints = []
    for match in re.finditer(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', source, re.MULTILINE):
        quoted, header, where = match[1] == '"', match[2], f"csrc/{path}:{line_of(source, match.start(1))}"
        if TORCH_HEADER.match(header):
            if folder != "bindings":
                complaints.append(f"{where}: {header} is a torch or Python header, they stay in csrc/bindings")
        elif quoted and not (path == HARDWARE and header == "emulator.h"):
            target = _normal(PurePosixPath(path).parent / header)
            if target not in existing:
                complaints.append(f'{where}: "{header}" names no file of csrc relative to this one')
            elif (other := PurePosixPath(target).parts[0]) not in {folder, *CSRC_MAY_INCLUDE[folder]}:
                complaints.append(f"{where}: {folder}/ may not include {other}/ ({header})")
    return complaints


def _normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def check_assembly(path: str, source: str) -> list[str]:
    """Inline assembly of the GPU stays in one file."""
    if not path.startswith("cuda/") or path == HARDWARE:
        return []
    code = without_comments(source)
    return [
        f"csrc/{path}:{line_of(code, match.start())}: inline assembly belongs in csrc/{HARDWARE}"
        for match in re.finditer(r"\basm\b", code)
    ]


def check_launches(path: str, source: str) -> list[str]:
    """A `<<<` launch is followed within six lines by a look at the last error; the result of cudaLaunch* is used."""
    code = without_comments(source)
    complaints = []
    for match in re.finditer(r"<<<|\bcuda(?:Launch\w*Kernel\w*)\s*\(", code):
        before = re.split(r"[;{}]", code[: match.start()])[-1].strip()
        after = "\n".join(code[match.start() :].split("\n")[:7])
        is_used = match[0] != "<<<" and before not in ("", "(void)")
        if not is_used and not re.search(r"cuda(?:Get|Peek)(?:At)?LastError", after):
            where = f"csrc/{path}:{line_of(code, match.start())}"
            complaints.append(f"{where}: no cudaGetLastError within six lines of this launch")
    return complaints


def place_of(module: str) -> str | None:
    """The name in PYTHON_ORDER that a module of fastrnn is listed by; None for none."""
    return next((name for name in PYTHON_ORDER if module == name or module.startswith(name + ".")), None)


def imports_of(module: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each fastrnn module that the source of fastrnn.`module` imports, inside functions too.

    `import fastrnn` and `from . import LSTM` are imports of "__init__".
    """
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["fastrnn", *package][: len(package) + 2 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] != "fastrnn":
                continue
            inner = ".".join(name[1:])
            known = place_of(inner) or (name[1] if name[1:] and name[1] in GENERATED else None)
            yield node.lineno, known or (inner if "." in inner else "__init__")


def check_imports(module: str, source: str) -> list[str]:
    """`module`: a module's name inside fastrnn, such as "reference" or "bench.case"."""
    if module.endswith(".__init__") and not source.count("import"):
        return []  # a room's docstring
    here = place_of(module)
    if here is None:
        return [f"fastrnn/{module}: not in FLOORS of tests/tools/layering.py, give it its place there"]
    complaints = []
    for line, name in imports_of(module, source):
        where = f"fastrnn/{module}:{line}"
        if name == here:
            continue
        if name in GENERATED:
            if here != "_kernels.ext":
                complaints.append(f"{where}: only _kernels.ext imports {name}")
        elif name not in PYTHON_ORDER:
            complaints.append(f"{where}: {name} is not in FLOORS of tests/tools/layering.py")
        elif here in PYTHON_ONLY and name not in PYTHON_ONLY[here]:
            complaints.append(f"{where}: {here} may import {sorted(PYTHON_ONLY[here])} only, not {name}")
        elif PYTHON_ORDER.index(name) > PYTHON_ORDER.index(here) and not {name, here} <= TOOLS:
            complaints.append(f"{where}: {here} looks up (or sideways) to {name}")
    return complaints


def check_length(path: str, source: str) -> list[str]:
    lines = source.count("\n")
    return [f"{path}: {lines} lines, the ceiling is {LONGEST_FILE}"] if lines > LONGEST_FILE else []


def check_docstrings(package: ModuleType) -> list[str]:
    """Every name of __all__ explains itself; an inherited docstring is someone else's."""
    complaints = [] if hasattr(package, "__all__") else [f"{package.__name__} has no __all__"]
    for name in getattr(package, "__all__", []):
        value = getattr(package, name)
        is_documentable = inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)
        if is_documentable and not (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__):
            complaints.append(f"{package.__name__}.{name} has no docstring")
    return complaints


def files_under(root: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in suffixes and "__pycache__" not in path.parts)
