"""Compiles a user's cell into a library of CPU kernels (``csrc/user``), kept on disk by what it was made of.

The library holds the kernels of one instruction set for all dtypes. It links nothing but the C++ runtime: the extension
hands it its threads when it is added (``csrc/cpu/user_cells.h``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .cell_errors import Header, sentence

SOURCES = Path(__file__).parents[1] / "csrc"
"""In the tree a link, in a wheel the files of these folders."""
_FOLDERS = ("common", "cells", "cpu", "user")
_FLAGS = ("-O3", "-g0", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-w", "-fno-diagnostics-color")
# By instruction set: whose kernels serve bfloat16, and whose the other types (csrc/cpu/dispatch.cpp).
_LEVELS = {
    "plain": ("plain", "plain"),
    "avx2": ("avx2", "avx2"),
    "avx512": ("avx512", "avx512"),
    "avx512_bf16": ("avx512_bf16", "avx512"),
    "amx_bf16": ("amx_bf16", "avx512"),
}


class Compiler(NamedTuple):
    """A C++ compiler: its command, its version, and whether it chooses instruction sets by file, as GCC does."""

    command: tuple[str, ...]
    version: str
    is_gcc: bool


def find_compiler() -> Compiler:
    """The compiler that ``CXX`` names, or the first of c++, g++ and clang++.

    Raises:
        RuntimeError: there is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for name in names:
        if found := _probe(name):
            return found
    raise RuntimeError(
        f"fastrnn.load_cell: no C++ compiler was found (tried {', '.join(names)}): install g++ 10 or later, or name "
        "one in the environment variable CXX"
    )


@functools.cache
def _probe(name: str) -> Compiler | None:
    command = tuple(shlex.split(name))
    try:
        printed = _start([*command, "-dM", "-E", "-x", "c++", os.devnull]).communicate()[0]
    except OSError:
        return None
    macros = dict(re.findall(r"^#define (\w+) (.*)$", printed, re.MULTILINE))
    if "__VERSION__" not in macros:
        return None
    return Compiler(command, macros["__VERSION__"].strip('"'), "__clang__" not in macros)


def _start(command: Sequence[str]) -> subprocess.Popen:
    env = {**os.environ, "LC_ALL": "C"}  # messages that cell_errors knows
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    return subprocess.Popen(command, env=env, **pipes)


@functools.cache
def _digest() -> str:
    """Of the sources that a library is made of."""
    files = sorted(path for folder in _FOLDERS for path in (SOURCES / folder).rglob("*") if path.is_file())
    parts = (str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() for path in files)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def build(header: Header, isa: str, folder: Path, version: str) -> Path:
    """The library of a cell for an instruction set, compiled unless ``folder`` has it.

    Raises:
        RuntimeError: there is no compiler.
        ValueError: the header is wrong; one sentence names it and the line.
    """
    compiler = find_compiler()
    bfloat16, others = _LEVELS[isa if compiler.is_gcc else "plain"]
    made_of = header.text, header.name, version, compiler, _FLAGS, bfloat16, others, _digest()
    library = folder / f"{header.name}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:20]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not library.exists():
            with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
                _compile(compiler, header, (bfloat16, others), Path(scratch), library)
    return library


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within, no other process builds in the folder. Where it cannot be locked, two may make the same file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile(compiler: Compiler, header: Header, levels: tuple[str, str], scratch: Path, library: Path) -> None:
    own = scratch / "own.h"
    shown = header.path.replace("\\", "\\\\").replace('"', '\\"')
    own.write_text(f'#line 1 "{shown}"\n{header.text}\n', encoding="utf-8")
    flags = [*_FLAGS, f'-DFASTRNN_OWN_HEADER="{own}"', f"-DFASTRNN_OWN_CELL={header.name}"]
    failed = _all_at_once([[*compiler.command, *flags, "-fsyntax-only", str(SOURCES / "user/check.cpp")]])
    if failed:
        raise ValueError(sentence(failed, header))
    flags += ['-DFASTRNN_CELLS="../user/cells.def"', f'-DFASTRNN_OWN_NAME="{header.name}"']
    flags += [f"-DFASTRNN_{use}={level}_kernels" for use, level in zip(("BFLOAT16", "OTHERS"), levels)]
    names = ["user/library.cpp", "cpu/plan.cpp", *sorted({f"cpu/isa/{level}.cpp" for level in levels})]
    objects = [scratch / f"{Path(name).stem}.o" for name in names]
    commands = [
        [*compiler.command, *flags, "-c", str(SOURCES / name), "-o", str(target)]
        for name, target in zip(names, objects)
    ]
    linked = scratch / library.name
    failed = _all_at_once(commands) or _all_at_once(
        [[*compiler.command, "-shared", *map(str, objects), "-o", str(linked)]]
    )
    if failed:
        raise ValueError(sentence(failed, header))
    with open(linked, "rb+") as file:
        os.fsync(file.fileno())  # what is found by its name is whole, also after a crash
    os.replace(linked, library)


def _all_at_once(commands: Sequence[Sequence[str]]) -> str | None:
    """Runs them; what one printed that failed, or None."""
    started: list[subprocess.Popen] = []
    try:
        for command in commands:
            started.append(_start(command))
        printed = [process.communicate()[0] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    return next((text or "nothing" for process, text in zip(started, printed) if process.returncode), None)
