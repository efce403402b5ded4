"""Compiles the CUDA kernels for the CPU: g++ or clang++ and nothing else. Objects are kept between runs.

tests/cpu/test_sanitizers.py makes its programs by the same functions.
"""

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = [*sorted(CSRC.glob("cuda/inst/*.cu")), *sorted(CSRC.glob("cuda/*.cpp"))]
HEADERS = [*(CSRC / folder for folder in ("common", "cells", "cuda", "user", "bindings")), HERE]
EMULATOR = [HERE / "emulator.cpp", HERE / "fibers.cpp"]
# Unoptimised, because most of the time goes into compiling, but for the module, which most tests run.
FLAGS = ["-std=c++20", "-O0", "-g1", "-pthread", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
FLAGS += ["-Wno-maybe-uninitialized"]  # of a thread without a row: it uses nothing that it has not loaded
FLAGS += ["-fno-strict-aliasing", f"-I{HERE / 'include'}", f"-I{HERE}"]


def compiler():
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    return None


def kept(name, sources, flags, folders=HEADERS):
    """The path, kept between runs, of what is made of these sources and all headers of the folders with this compiler
    and flags."""
    headers = [path for base in folders for path in base.rglob("*") if path.suffix in {".h", ".cuh", ".def"}]
    version = subprocess.check_output([compiler(), "--version"])
    digest = hashlib.sha256(repr((version, flags)).encode())
    for path in [*sorted(headers), *sources]:
        digest.update(str(path).encode() + path.read_bytes())
    folder = Path(tempfile.gettempdir(), f"fastrnn-emulator-{os.getuid()}", digest.hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def make(target, *command):
    """Runs the command, which ends in -o, unless its target exists; a half-made target never does."""
    # One process builds while others, such as the workers of a parallel test run, wait for it.
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}.part")
            run([*command, partial])
            partial.replace(target)
    return target


def link(name, sources, flags, *libraries, folders=HEADERS, extra=None):
    """`folders`: of the headers that any source may include; `extra`: flags of one source alone."""
    own = extra or {}
    target = kept(name, sources, [*flags, *libraries, *own.items()], folders)
    if target.exists():
        return target
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = pool.map(lambda source: compile_one([*flags, *own.get(source, [])], source, folders), sources)
        return make(target, compiler(), *flags, *objects, *libraries, "-o")


def compile_one(flags, source, folders):
    target = kept(f"{source.stem}.o", [source], flags, folders)
    # The emulator tells the sanitizers by hand what its fibers and its memory are.
    own = [flag for flag in flags if source not in EMULATOR or not flag.startswith("-fsanitize")]
    return make(target, compiler(), *own, "-x", "c++", "-c", source, "-o")


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def module():
    """The path of the Python module `fastrnn_emulated`: the CUDA backend, bindings included, for CPU tensors."""
    import torch
    from torch.utils.cpp_extension import include_paths

    includes = [f"-isystem{path}" for path in [*include_paths(), sysconfig.get_paths()["include"]]]
    flags = [*FLAGS, "-O1", *includes, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    bindings = [p for p in sorted(CSRC.glob("bindings/cuda_*.cpp")) if p.name != "cuda_context.cpp"]
    bindings += [CSRC / f"bindings/{name}.cpp" for name in ("layer_args", "gate", "sorted_rows")]
    sources = [*bindings, HERE / "module.cpp", HERE / "context.cpp", *KERNELS, *EMULATOR]
    libraries = Path(torch.__file__).parent / "lib"
    torch_libraries = ["-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"]
    name = f"fastrnn_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    return link(name, sources, flags, "-shared", f"-L{libraries}", f"-Wl,-rpath,{libraries}", *torch_libraries)


@functools.cache
def load():
    """The module itself."""
    spec = importlib.util.spec_from_file_location("fastrnn_emulated", module())
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def own_cell(text, name):
    """The path of a library of a user's cell, for the module: `text` is the header that fastrnn.load_cell takes."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    header = kept(f"{name}-{digest}.h", [], [])
    partial = header.with_suffix(f".{os.getpid()}.part")
    partial.write_text(text)
    partial.replace(header)
    told = {"OWN_HEADER": f'"{header}"', "OWN_CELL": name, "OWN_NAME": f'"{name}"', "CELLS": '"../user/cells.def"'}
    flags = [*FLAGS, *(f"-DFASTRNN_{key}={value}" for key, value in told.items())]
    return link(f"{name}.so", [CSRC / "user/library.cu"], flags, "-shared", module())


SANITIZERS = {
    "thread": ["-DFASTRNN_RACE_DETECTOR", "-fsanitize=thread"],
    "address": ["-DFASTRNN_ADDRESS_SANITIZER", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
}


def sanitized_program(sanitizer):
    """The path of a program that runs some kernels under one of SANITIZERS."""
    layers = [CSRC / "cuda" / name for name in ("layer.cpp", "resident_sizes.cpp", "resident_layer.cpp")]
    sources = [*layers, HERE / "sanitized.cpp", *EMULATOR]
    return link("sanitized", sources, [*FLAGS, *SANITIZERS[sanitizer]])


def far_program():
    """The path of a program that runs kernels on arrays larger than memory."""
    sources = [path for path in KERNELS if path.suffix == ".cpp" and path.stem not in ("launch", "resident")]
    sources += [CSRC / "cuda/inst" / f"{name}.cu" for name in ("moments", "rebuild")]
    return link("far", [*sources, HERE / "far.cpp", *EMULATOR], FLAGS)


if __name__ == "__main__":
    print(module())
