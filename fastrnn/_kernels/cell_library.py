"""Compiles a user's cell into libraries (``csrc/user``), kept on disk by what they were made of.

One holds the CPU kernels of an instruction set. It links nothing but the C++ runtime: the extension hands it its
threads when it is added (``csrc/cpu/user_cells.h``). The other holds the CUDA step kernels for the GPUs that torch sees
(``csrc/cuda/user_cells.h``). Each is for all dtypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import nvcc
from .cell_errors import Header, sentence

SOURCES = Path(__file__).parents[1] / "csrc"
"""In the tree a link, in a wheel the files of these folders."""
_FOLDERS = ("common", "cells", "cpu", "user")
_CUDA_FOLDERS = ("common", "cells", "cuda", "user")
_FLAGS = ("-O3", "-g0", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-w", "-fno-diagnostics-color")
_NVCC_FLAGS = ("-O3", "-std=c++20", "--expt-relaxed-constexpr", "-w", "-Xcompiler=-fPIC,-fvisibility=hidden,-w")
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
        with contextlib.suppress(OSError, ValueError, KeyError):
            return _probe(name)
    raise RuntimeError(
        f"fastrnn.load_cell: no C++ compiler was found (tried {', '.join(names)}): install g++ 10 or later, or name "
        "one in the environment variable CXX"
    )


@functools.cache  # what is not there, and raises, may come
def _probe(name: str) -> Compiler:
    """The compiler of this command.

    Raises:
        OSError, KeyError: there is none.
        ValueError: in the command a quote is without another.
    """
    command = tuple(shlex.split(name))
    printed = _start([*command, "-dM", "-E", "-x", "c++", os.devnull]).communicate()[0]
    macros = dict(re.findall(r"^#define (\w+) (.*)$", printed, re.MULTILINE))
    return Compiler(command, macros["__VERSION__"].strip('"'), "__clang__" not in macros)


def _start(command: Sequence[str]) -> subprocess.Popen:
    env = {**os.environ, "LC_ALL": "C"}  # messages that cell_errors knows
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    return subprocess.Popen(command, env=env, **pipes)


@functools.cache
def _digest(folders: tuple[str, ...]) -> str:
    """Of the sources that a library is made of."""
    files = sorted(path for folder in folders for path in (SOURCES / folder).rglob("*") if path.is_file())
    parts = (str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() for path in files)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def build(header: Header, isa: str, folder: Path, version: str) -> Path:
    """The library of a cell's CPU kernels for an instruction set, compiled unless ``folder`` has it.

    Raises:
        RuntimeError: there is no compiler.
        ValueError: the header is wrong; one sentence names it and the line.
    """
    compiler = find_compiler()
    bfloat16, others = _LEVELS[isa if compiler.is_gcc else "plain"]
    made_of = version, compiler, _FLAGS, bfloat16, others, _digest(_FOLDERS)
    return _kept(header, made_of, folder, functools.partial(_compile, compiler, header, (bfloat16, others)))


def build_cuda(header: Header, capabilities: Sequence[tuple[int, int]], folder: Path, version: str) -> Path:
    """The library of a cell's CUDA step kernels for GPUs of these compute capabilities, compiled unless ``folder`` has
    it.

    Raises:
        RuntimeError: there is no compiler, or no nvcc of torch's version of CUDA.
        ValueError: nvcc fails; one sentence names the header and a line.
    """
    path, why = nvcc.find_nvcc()
    if path is None:
        raise RuntimeError(f"fastrnn.load_cell: {why}")
    host = find_compiler()
    targets = [f"-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}" for major, minor in capabilities]
    command = [path, *_NVCC_FLAGS, *targets]
    if len(host.command) == 1:  # nvcc takes no wrapper with arguments
        command += ["-ccbin", *host.command]
    made_of = version, host, nvcc.output_of(path, "--version"), command, _digest(_CUDA_FOLDERS)
    return _kept(header, made_of, folder, functools.partial(_compile_cuda, command, host, header))


def _kept(header: Header, made_of: tuple, folder: Path, compile: Callable[[Path, Path], None]) -> Path:
    """The library of a cell that ``compile(scratch folder, library)`` makes of that, unless it was made before.

    Raises:
        RuntimeError: it cannot be kept.
    """
    digest = hashlib.sha256(repr((header.text, header.name, *made_of)).encode()).hexdigest()
    library = folder / f"{header.name}-{digest[:20]}.so"
    if library.exists():
        return library
    with _alone(folder):
        if not library.exists():
            with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
                compile(Path(scratch), library)
    return library


def address_in(build: Callable[[], Path], symbol: str) -> int:
    """Where the library of ``build`` has a symbol. It stays loaded; one that is damaged is built again.

    Raises:
        RuntimeError: it cannot be, and what ``build`` raises.
    """
    library = build()
    try:
        symbols = ctypes.CDLL(str(library))
    except OSError:
        with _alone(library.parent):
            try:
                symbols = ctypes.CDLL(str(library))  # another process may have built it again
            except OSError:
                library.unlink(missing_ok=True)
                symbols = None
        symbols = symbols or ctypes.CDLL(str(build()))
    address = ctypes.cast(getattr(symbols, symbol), ctypes.c_void_p).value
    assert address is not None  # a symbol has one
    return address


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within, no other process builds in the folder. Where it cannot be locked, two may make the same file.

    Raises:
        RuntimeError: for an OSError of what is done there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RuntimeError(
            f"fastrnn.load_cell: expected to keep a library in {folder}, got {error}: FASTRNN_CACHE_DIR names another"
        ) from error


def _definitions(header: Header, scratch: Path) -> list[str]:
    """What sources are told of the cell. Its header is put into a file whose lines go by ``header.path``."""
    own = scratch / "own.h"
    shown = header.path.replace("\\", "\\\\").replace('"', '\\"')
    own.write_text(f'#line 1 "{shown}"\n{header.text}\n', encoding="utf-8")
    told = {"OWN_HEADER": f'"{own}"', "OWN_CELL": header.name, "OWN_NAME": f'"{header.name}"'}
    told["CELLS"] = '"../user/cells.def"'
    return [f"-DFASTRNN_{name}={value}" for name, value in told.items()]


def _compile(compiler: Compiler, header: Header, levels: tuple[str, str], scratch: Path, library: Path) -> None:
    flags = [*_FLAGS, *_definitions(header, scratch)]
    failed = _all_at_once([[*compiler.command, *flags, "-fsyntax-only", str(SOURCES / "user/check.cpp")]])
    if failed:
        raise ValueError(sentence(failed, header))
    flags += [f"-DFASTRNN_{use}={level}_kernels" for use, level in zip(("BFLOAT16", "OTHERS"), levels)]
    names = ["user/library.cpp", "cpu/plan.cpp", *sorted({f"cpu/isa/{level}.cpp" for level in levels})]
    _make([*compiler.command, *flags], names, compiler, (), header, scratch, library)


def _compile_cuda(command: Sequence[str], host: Compiler, header: Header, scratch: Path, library: Path) -> None:
    toolkit = nvcc.toolkit_of(command[0])
    # That which torch has loaded: another would know nothing of its streams.
    found = nvcc.runtime_of(toolkit)
    runtime = [found] if found else [f"-L{toolkit}/lib64", f"-L{toolkit}/lib", "-lcudart"]
    flags = _definitions(header, scratch)
    _make([*command, *flags], ["user/library.cu"], host, runtime, header, scratch, library)


def _make(
    command: Sequence[str],
    names: Sequence[str],
    linker: Compiler,
    libraries: Sequence[str],
    header: Header,
    scratch: Path,
    library: Path,
) -> None:
    """Compiles these sources with the command, links them, and puts the result in its place."""
    objects = [scratch / f"{Path(name).stem}.o" for name in names]
    commands = [[*command, "-c", str(SOURCES / name), "-o", str(target)] for name, target in zip(names, objects)]
    linked = scratch / library.name
    failed = _all_at_once(commands) or _all_at_once(
        [[*linker.command, "-shared", *map(str, objects), *libraries, "-o", str(linked)]]
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
