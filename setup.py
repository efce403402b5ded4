"""Builds the one extension, fastrnn._C, against the torch of this environment; pyproject.toml holds the metadata.

What gets built is decided here, before anything is compiled: C++ and CUDA when torch has CUDA and nvcc is found, C++
only without either, nothing (the package is then pure Python) without a compiler or with FASTRNN_PURE=1. A compile that
fails then fails the installation, since pip hides what a build prints otherwise. fastrnn/_build_info.py, written beside
the extension, keeps what was built against what and why anything was not: readable even when the extension won't load.
Environment: FASTRNN_CUDA=0|1, FASTRNN_PURE=1|0 (0: fail without a compiler), TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import setuptools

HOW = "pip install --no-build-isolation ."
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"fastrnn: setuptools {setuptools.__version__} is too old, type: pip install -U setuptools ninja && {HOW}")
try:
    import torch
except ImportError:
    sys.exit(f"fastrnn: compiled against the torch you use, and this build sees none: install torch, then type: {HOW}")

for name in ("FASTRNN_CUDA", "FASTRNN_PURE"):
    if os.environ.get(name, "") not in ("", "0", "1"):
        sys.exit(f"fastrnn: {name} must be 0, 1 or unset, got {os.environ[name]!r}")
WANTED, PURE = os.environ.get("FASTRNN_CUDA"), os.environ.get("FASTRNN_PURE")
NVCC = SimpleNamespace(**runpy.run_path("fastrnn/_kernels/nvcc.py"))  # which load_cell has, too


def find_compiler():
    """(command, first line of its --version), or (None, why the package is pure Python)."""
    if PURE == "1":
        return None, "FASTRNN_PURE=1 leaves it out"
    for name in (names := [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]):
        if version := NVCC.output_of(*shlex.split(name), "--version"):
            return name, version.splitlines()[0]
    return None, f"no C++ compiler was found (tried {', '.join(names)})"


def find_cuda():
    """(root of the CUDA toolkit, None), or (None, why no CUDA kernels are built)."""
    if CXX is None:
        return None, COMPILER
    if WANTED == "0":
        return None, "it was built with FASTRNN_CUDA=0"
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} is a build without CUDA"
    nvcc, why = NVCC.find_nvcc()
    return (NVCC.toolkit_of(nvcc), None) if nvcc else (None, why)


def arch_list():
    """The user's list, else the visible GPUs, else a short one that runs on everything since Ampere."""
    gpus = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}) or [(8, 0), (9, 0)]
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join("{}.{}".format(*gpu) for gpu in gpus) + "+PTX"


CXX, COMPILER = find_compiler()
CUDA, WHY_NO_CUDA = find_cuda()
if CXX is None and (WANTED == "1" or PURE == "0"):
    asked = "FASTRNN_CUDA=1" if WANTED == "1" else "FASTRNN_PURE=0"
    sys.exit(f"fastrnn: {asked} asks for the extension, but {COMPILER}")
if WANTED == "1" and CUDA is None:
    sys.exit(f"fastrnn: FASTRNN_CUDA=1 asks for CUDA kernels, but {WHY_NO_CUDA}")
if CXX:
    os.environ["CXX"] = CXX  # one compiler to compile (torch's default: c++) and link (setuptools': what built Python)
if CUDA:
    os.environ.update(CUDA_HOME=CUDA, TORCH_CUDA_ARCH_LIST=arch_list())

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402  it reads CUDA_HOME

# No OpenMP library is linked: torch's serves, a second starts more threads. GCC 12 warns of its own AVX512 headers.
FLAGS = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-fvisibility=hidden", "-Wno-uninitialized"]


def extension():
    folders = ["bindings", "cpu", "cuda"] if CUDA else ["bindings", "cpu"]
    # In this order CUDA's kernels, slowest to compile, come first and the cores finish together.
    files = sorted([p for f in folders for p in Path("csrc", f).rglob("*.c*") if p.suffix != ".cuh"], reverse=True)
    files = [str(p) for p in files if CUDA or not p.name.startswith("cuda_")]
    flags = {"cxx": FLAGS, "nvcc": ["-O3", "-std=c++20", "-Xcompiler=-fvisibility=hidden"]}
    if not CUDA:
        return CppExtension("fastrnn._C", files, extra_compile_args=flags)
    made = CUDAExtension("fastrnn._C", files, define_macros=[("FASTRNN_WITH_CUDA", None)], extra_compile_args=flags)
    # For a toolkit without cuBLAS and its kin: torch's wheels bring their headers.
    made.include_dirs += map(str, Path(torch.__file__).parents[1].glob("nvidia/cu*/include"))
    if runtime := NVCC.runtime_of(CUDA):
        made.libraries.remove("cudart")
        made.extra_link_args.append(runtime)
    return made


@contextmanager
def copied_to(log):
    """What the compilers print also goes to `log`, where their first error is looked up."""
    log.parent.mkdir(exist_ok=True)
    tee, kept = subprocess.Popen(["tee", log], stdin=subprocess.PIPE), (os.dup(1), os.dup(2))
    try:
        yield [os.dup2(tee.stdin.fileno(), fd) for fd in (1, 2)]
    finally:
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        tee.communicate()


def compile_kernels(sources):
    """The objects of the CPU's kernels, which include nothing of Python or torch: one set serves all of both."""
    folder = Path("build/kernels")
    objects = [str(folder / Path(source).with_suffix(".o").relative_to("csrc")) for source in sources]
    flags = shlex.join(["-Wall", "-DNDEBUG", "-fwrapv", "-fPIC", *FLAGS, *shlex.split(os.environ.get("CFLAGS", ""))])
    rule = f"builddir = {folder}\nrule cxx\n depfile = $out.d\n deps = gcc\n"
    rule += f" command = {CXX} {flags} -MMD -MF $out.d -c $in -o $out\n"
    folder.mkdir(parents=True, exist_ok=True)
    Path(folder, "build.ninja").write_text(rule + "".join(map("build {}: cxx {}\n".format, objects, sources)))
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    subprocess.run(["ninja", "-v", "-f", folder / "build.ninja", *jobs], check=True)
    return objects


class Build(BuildExtension):
    def finalize_options(self):
        super().finalize_options()  # the folder: kept between builds (pip's is not), never shared between two torches
        self.build_temp = f"build/objects-{sys.implementation.cache_tag}-torch{torch.__version__}"

    def build_extension(self, extension):
        kernels = [p for p in extension.sources if p.startswith("csrc/cpu/")]
        if kernels and self.use_ninja:
            extension.sources = [p for p in extension.sources if p not in kernels]
            extension.extra_objects += compile_kernels(kernels)
        super().build_extension(extension)

    def run(self):
        package = Path(self.get_ext_fullpath("fastrnn._C")).parent
        for stale in package.glob("_C.*"):
            stale.unlink()
        if CXX is None:
            self.extensions = []
            print(f"fastrnn: installed as pure Python, which is slower: {COMPILER}", file=sys.stderr)
        try:
            with copied_to(log := Path("build/compile.log")):
                super().run()
        except Exception as error:
            first = re.search(r".*\b(error|fatal) *:.*", log.read_text())
            less = "FASTRNN_CUDA=0 builds the CPU kernels alone, " * bool(CUDA) + "FASTRNN_PURE=1 installs pure Python"
            sys.exit(f"fastrnn: the build failed with: {first[0] if first else error}\nfastrnn: {less}")
        facts = {"python": sys.implementation.cache_tag, "torch": torch.__version__, "compiler": COMPILER}
        facts["cuda"], facts["cuda_archs"] = (torch.version.cuda, arch_list()) if CUDA else (None, None)
        facts |= {"why_no_cuda": WHY_NO_CUDA, "why_no_extension": None if CXX else COMPILER}
        package.mkdir(parents=True, exist_ok=True)
        lines = ["# Written by setup.py for fastrnn/_kernels/ext.py", *(f"{k} = {v!r}" for k, v in facts.items())]
        Path(package, "_build_info.py").write_text("\n".join(lines) + "\n")


for stale in Path("build").glob("lib*"):  # setuptools would pack what former builds left there
    shutil.rmtree(stale)
setuptools.setup(ext_modules=[extension()], cmdclass={"build_ext": Build})
