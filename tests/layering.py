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
    "bindings": {"common", "cells", "cuda", "cpu"},
}
TORCH_HEADER = re.compile(r"(torch|ATen|c10|caffe2|pybind11)/|Python\.h")
# The one file that knows hardware: inline assembly, and the emulator's header in place of the GPU.
HARDWARE = "cuda/primitives.cuh"

# fastrnn: lowest first; a module may import only what stands in a line above its own.
PYTHON_ORDER = [
    {"registry"},
    {"reference"},
    {"_ext"},
    {"_ops"},
    {"_gate"},
    {"_call", "_autograd"},
    {"_proof"},
    {"_first_call"},
    {"_dispatch"},
    {"_graph"},
    {"_checks", "_chunks", "_extras"},
    {"_aten", "_wavefront"},
    {"_stack"},
    {"functional", "_tools"},
    {"cells", "modules"},
    {"compilation", "conversion"},
    {"__init__"},
    {"_info", "_check", "_bench", "_prove", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(PYTHON_ORDER) for name in names}
# Written or compiled by setup.py, and imported by _ext alone.
GENERATED = {"_C", "_build_info"}
# Tighter than the order: the oracle shares nothing with the kernels that it judges.
PYTHON_ONLY = {"reference": {"registry"}, "_ext": GENERATED}

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


def imports_of(module: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each fastrnn module that the source of fastrnn.`module` imports, inside functions too.

    `import fastrnn` and `from . import LSTM` are imports of "__init__".
    """
    package = module.split(".")[0] if "." in module else None
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [(alias.name.split("."), []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            inside = ["fastrnn", *([package] if package else [])] if node.level else []
            base = inside[: len(inside) - (node.level - 1)] + base if node.level else base
            names = [(base, [alias.name]) for alias in node.names]
        else:
            continue
        for base, rest in names:
            if base[:1] == ["fastrnn"]:
                full = base[1:] + rest
                known = full[:1] and (full[0] in RANK or full[0] in GENERATED or len(base) > 1)
                yield node.lineno, full[0] if known else "__init__"


def check_imports(module: str, source: str) -> list[str]:
    """`module`: a module's name inside fastrnn, such as "reference" or "_bench.case"."""
    top = module.split(".")[0]
    if top not in RANK:
        return [f"fastrnn/{module}: not in PYTHON_ORDER of tests/layering.py, give it its place there"]
    complaints = []
    for line, name in imports_of(module, source):
        where = f"fastrnn/{module}:{line}"
        if name == top:
            continue
        if name in GENERATED:
            if top != "_ext":
                complaints.append(f"{where}: only _ext imports {name}")
        elif name not in RANK:
            complaints.append(f"{where}: {name} is not in PYTHON_ORDER of tests/layering.py")
        elif top in PYTHON_ONLY and name not in PYTHON_ONLY[top]:
            complaints.append(f"{where}: {top} may import {sorted(PYTHON_ONLY[top])} only, not {name}")
        elif RANK[name] >= RANK[top] and not RANK[name] == RANK[top] == RANK["__main__"]:
            complaints.append(f"{where}: {top} looks up (or sideways) to {name}")
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
