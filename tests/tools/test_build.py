"""What setup.py decides, what it leaves in _build_info.py, and what fastrnn._kernels.ext makes of that.

setup.py runs here as in an installation, but against a torch of a few lines (STUB) whose build step compiles nothing,
so that every kind of torch, toolkit and failure is there on any machine in a fraction of a second.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastrnn import _info
from fastrnn._kernels import ext

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = ".so"

STUB = """
import os, sys
from types import ModuleType, SimpleNamespace
from setuptools import Extension
from setuptools.command.build_ext import build_ext

__version__ = {version!r}
version = SimpleNamespace(cuda={cuda!r})
gpus = {gpus!r}
cuda = SimpleNamespace(device_count=lambda: len(gpus), get_device_capability=lambda index: gpus[index])

class BuildExtension(build_ext):
    use_ninja = True

    def build_extension(self, ext):
        print("CUDA_HOME", os.environ.get("CUDA_HOME"))
        print("linking", ext.libraries, ext.extra_link_args)
        print("with", ext.extra_objects)
        for source in ext.sources:
            print("compiling", source)
            if source.endswith(os.environ.get("STUB_FAILS_ON") or "nothing"):
                os.write(2, (source + ":3:1: error: no such thing\\n").encode())
                raise RuntimeError("Error compiling objects for extension")
        sys.stdout.flush()
        os.makedirs(os.path.dirname(self.get_ext_fullpath(ext.name)), exist_ok=True)
        open(self.get_ext_fullpath(ext.name), "w").close()

utils = ModuleType("torch.utils")
utils.cpp_extension = ModuleType("torch.utils.cpp_extension")
utils.cpp_extension.BuildExtension = BuildExtension
utils.cpp_extension.CppExtension = Extension
utils.cpp_extension.CUDAExtension = lambda *args, **more: Extension(*args, libraries=["cudart"], **more)
sys.modules.update({{"torch.utils": utils, "torch.utils.cpp_extension": utils.cpp_extension}})
"""

NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  *--dryrun*) echo "#$ TOP={top}/bin/.." >&2 ;;
esac
"""


CXX = """#!/bin/sh
[ "$1" = --version ] && echo "stub c++ 1.0" && exit
echo "$@" >> compiled
for last; do :; done
touch "$last"
"""


class Project:
    """A copy of the build files with one C++ and one CUDA source, and the environment that setup.py sees."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        self.touch("README.md", "fastrnn/__init__.py", "fastrnn/_backends/choice.json", "fastrnn/_kernels/nvcc.py")
        self.touch("csrc/bindings/a.cpp", "csrc/bindings/cuda_b.cpp", "csrc/cuda/inst/c.cu")
        shutil.copy(ROOT / "fastrnn/_kernels/nvcc.py", folder / "fastrnn/_kernels")
        (folder / "fastrnn/__init__.py").write_text("__version__ = '0.0.1'")
        self.script("bin/c++", "#!/bin/sh\necho 'stub c++ 1.0'\n")
        self.env = {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "PYTHONPATH": str(folder / "stub"),
            "CUDA_HOME": f"{folder}/none",
        }
        self.torch()

    def touch(self, *names: str) -> None:
        for path in map(self.folder.joinpath, names):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def script(self, name: str, text: str) -> None:
        self.touch(name)
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def torch(self, version: str = "2.13.0+cpu", cuda: str | None = None, gpus: tuple = ()) -> None:
        (self.folder / "stub").mkdir(exist_ok=True)
        (self.folder / "stub/torch.py").write_text(STUB.format(version=version, cuda=cuda, gpus=gpus))

    def nvcc(self, release: str = "13.0") -> None:
        """A wrapper on PATH, as package managers leave it; the toolkit is elsewhere."""
        del self.env["CUDA_HOME"]
        self.script("bin/nvcc", NVCC.format(release=release, top=self.folder / "toolkit"))

    def setup(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        command, env = [sys.executable, "setup.py", "-q", *arguments], self.env | env
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=120)

    def build(self, **env: str) -> subprocess.CompletedProcess:
        return self.setup("build_ext", "--build-lib", "out", **env)

    def facts(self, **env: str) -> SimpleNamespace:
        done = self.build(**env)
        assert done.returncode == 0, done.stderr
        extension = list((self.folder / "out/fastrnn").glob(f"_C*{SUFFIX}"))
        facts = runpy.run_path(str(self.folder / "out/fastrnn/_build_info.py"))
        return SimpleNamespace(**facts, output=done.stdout, errors=done.stderr, has_extension=bool(extension))

    def refusal(self, **env: str) -> str:
        done = self.build(**env)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        return done.stderr.strip()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_cpp_only_with_a_cpu_torch(project):
    facts = project.facts(FASTRNN_PURE="0")
    assert facts.has_extension and facts.why_no_extension is None and facts.compiler == "stub c++ 1.0"
    assert (facts.torch, facts.python) == ("2.13.0+cpu", sys.implementation.cache_tag)
    assert (facts.cuda, facts.cuda_archs) == (None, None)
    assert facts.why_no_cuda == "torch 2.13.0+cpu is a build without CUDA"
    assert "a.cpp" in facts.output and "cuda_b.cpp" not in facts.output and "c.cu" not in facts.output


def test_kernels_are_compiled_once_for_every_torch(project):
    project.touch("csrc/cpu/isa/k.cpp")
    project.script("bin/c++", CXX)
    project.env["PATH"] += f":{Path(sys.executable).parent}"
    log = project.folder / "compiled"
    for torch_version, env in (("2.13.0+cpu", {}), ("2.14.1+cpu", {}), ("2.14.1+cpu", {"CFLAGS": "-DMORE"})):
        project.torch(torch_version)
        output = project.facts(FASTRNN_PURE="0", **env).output
        assert "with ['build/kernels/cpu/isa/k.o']\ncompiling csrc/bindings/a.cpp\n" in output
    assert ["-DMORE" in line for line in log.read_text().splitlines()] == [False, True]


def test_a_kernel_that_does_not_compile_is_named(project):
    project.touch("csrc/cpu/isa/k.cpp")
    project.script("bin/c++", CXX.replace("touch", "echo 'csrc/cpu/isa/k.cpp:3:1: error: no such thing' >&2; exit 1 #"))
    project.env["PATH"] += f":{Path(sys.executable).parent}"
    assert "the build failed with: csrc/cpu/isa/k.cpp:3:1: error: no such thing" in project.refusal(FASTRNN_PURE="0")


def test_cuda_where_torch_and_nvcc_have_it_unless_switched_off(project):
    project.torch("2.14.1+cu130", cuda="13.0")
    project.nvcc()
    facts = project.facts()
    assert (facts.cuda, facts.cuda_archs, facts.why_no_cuda) == ("13.0", "8.0;9.0+PTX", None)
    assert all(source in facts.output for source in ("a.cpp", "cuda_b.cpp", "c.cu"))
    assert f"CUDA_HOME {project.folder}/toolkit\n" in facts.output
    facts = project.facts(FASTRNN_CUDA="0")
    assert facts.has_extension and facts.cuda is None and facts.why_no_cuda == "it was built with FASTRNN_CUDA=0"


def test_the_arch_list_is_the_users_or_the_visible_gpus(project):
    project.torch("2.14.1+cu130", cuda="13.0", gpus=((10, 0), (8, 9), (10, 0)))
    project.nvcc()
    assert project.facts().cuda_archs == "8.9;10.0+PTX"
    assert project.facts(TORCH_CUDA_ARCH_LIST="7.5 8.6").cuda_archs == "7.5 8.6"


def test_nvcc_of_nvidias_wheels_is_found_beside_torch_and_linked_by_file_name(project):
    project.torch("2.14.1+cu130", cuda="13.0")
    project.nvcc("12.8")
    root = project.folder / "nvidia/cu13"
    project.script("nvidia/cu13/bin/nvcc", NVCC.format(release="13.0", top=root))
    project.touch("nvidia/cu13/lib/libcudart.so.13")
    facts = project.facts()
    assert (facts.cuda, facts.why_no_cuda) == ("13.0", None)
    assert f"CUDA_HOME {root}\nlinking [] ['{root}/lib/libcudart.so.13']\n" in facts.output
    project.touch("nvidia/cu13/lib/libcudart.so")  # a toolkit's
    assert "linking ['cudart'] []\n" in project.facts().output


def test_an_nvcc_of_another_major_version_builds_no_cuda(project):
    project.torch("2.14.1+cu130", cuda="13.0")
    project.nvcc("12.8")
    facts = project.facts(CUDA_HOME=str(project.folder))
    assert facts.has_extension and facts.cuda is None
    assert facts.why_no_cuda == "nvcc is 12.8 and torch 2.14.1+cu130 has CUDA 13.0"


def test_cuda_asked_for_and_impossible_is_an_error(project):
    sentence = "fastrnn: FASTRNN_CUDA=1 asks for CUDA kernels, but "
    assert project.refusal(FASTRNN_CUDA="1") == sentence + "torch 2.13.0+cpu is a build without CUDA"
    project.torch("2.14.1+cu130", cuda="13.0")
    assert project.refusal(FASTRNN_CUDA="1") == sentence + f"nvcc was not found in {project.folder}/none/bin"
    del project.env["CUDA_HOME"]
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        assert "; pip install 'cuda-toolkit[nvcc,cccl]' brings one" in project.refusal(FASTRNN_CUDA="1")


@pytest.mark.parametrize("switch", ["FASTRNN_CUDA", "FASTRNN_PURE"])
def test_switches_take_two_values(project, switch):
    assert project.refusal(**{switch: "yes"}) == f"fastrnn: {switch} must be 0, 1 or unset, got 'yes'"


def test_no_compiler_installs_pure_python_and_says_so(project):
    project.touch(f"out/fastrnn/_C.stale{SUFFIX}")
    facts = project.facts(CXX="/nowhere/c++")
    assert not facts.has_extension
    assert facts.why_no_extension == "no C++ compiler was found (tried /nowhere/c++)"
    assert facts.errors.count("installed as pure Python, which is slower: no C++ compiler was found") == 1
    asked = project.refusal(CXX="/nowhere/c++", FASTRNN_PURE="0")
    assert asked.startswith("fastrnn: FASTRNN_PURE=0 asks for the extension, but no C++ compiler was found")


def test_pure_python_can_be_asked_for(project):
    facts = project.facts(FASTRNN_PURE="1", STUB_FAILS_ON=".cpp")
    assert not facts.has_extension and "compiling" not in facts.output
    assert facts.why_no_extension == "FASTRNN_PURE=1 leaves it out"
    sentence = "fastrnn: FASTRNN_CUDA=1 asks for the extension, but FASTRNN_PURE=1 leaves it out"
    assert project.refusal(FASTRNN_PURE="1", FASTRNN_CUDA="1") == sentence


def test_a_failing_compile_is_an_error_that_names_the_way_out(project):
    first, way_out = project.refusal(STUB_FAILS_ON=".cpp").splitlines()[-2:]
    assert first == "fastrnn: the build failed with: csrc/bindings/a.cpp:3:1: error: no such thing"
    assert way_out == "fastrnn: FASTRNN_PURE=1 installs pure Python"
    assert not list((project.folder / "out").rglob("_build_info.py"))


def test_a_failing_cuda_compile_is_one_too(project):
    project.torch("2.14.1+cu130", cuda="13.0")
    project.nvcc()
    first, way_out = project.refusal(STUB_FAILS_ON=".cu").splitlines()[-2:]
    assert first == "fastrnn: the build failed with: csrc/cuda/inst/c.cu:3:1: error: no such thing"
    assert way_out.startswith("fastrnn: FASTRNN_CUDA=0 builds the CPU kernels alone, FASTRNN_PURE=1 installs pure")
    assert project.facts(STUB_FAILS_ON=".cu", FASTRNN_CUDA="0").has_extension


def test_a_wheel_holds_nothing_of_former_builds(project):
    project.touch("fastrnn/gone.py", f"fastrnn/_C.gone{SUFFIX}")
    assert project.setup("bdist_wheel").returncode == 0
    (project.folder / "fastrnn/gone.py").unlink()
    done = project.setup("bdist_wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = (project.folder / "dist").glob("*.whl")
    files = {Path(name).name.split(".")[0] for name in zipfile.ZipFile(wheel).namelist() if name.startswith("fastrnn/")}
    assert files == {"__init__", "_build_info", "_C", "choice", "nvcc"}


def test_the_archive_is_whole_and_the_wheel_has_the_headers_that_load_cell_compiles(project):
    headers = ("cells/cell.h", "cells/cells.def", "cpu/isa/plain.cpp", "user/check.cpp", "user/library.cu")
    headers += ("cuda/step.cuh", "cuda/launch.h")
    sources = [f"csrc/{name}" for name in (*headers, "cuda/plan.cpp", "cuda/inst/lstm.cu")]
    project.touch(*sources, "fastrnn/_build_info.py", f"fastrnn/_C.x{SUFFIX}")  # the last two: a build in the tree
    (project.folder / "fastrnn/csrc").symlink_to("../csrc")
    for command in ("sdist", "bdist_wheel"):
        done = project.setup(command)
        assert done.returncode == 0, done.stderr
    (wheel,), (archive,) = ((project.folder / "dist").glob(pattern) for pattern in ("*.whl", "*.tar.gz"))
    with tarfile.open(archive) as packed:
        files = {member.name.partition("/")[2] for member in packed if member.isfile()}
    for names in (files, zipfile.ZipFile(wheel).namelist()):
        linked = {name for name in names if name.startswith("fastrnn/csrc/")}
        assert linked == {f"fastrnn/csrc/{name}" for name in headers}
    assert files > {"setup.py", "pyproject.toml", "fastrnn/__init__.py", "fastrnn/_backends/choice.json", *sources}
    assert not [name for name in files if "_build_info" in name or "_C." in name]


def test_an_old_setuptools_says_what_to_type(project):
    (project.folder / "stub/setuptools.py").write_text("__version__ = '65.5.0'")
    assert "type: pip install -U setuptools ninja && pip install --no-build-isolation ." in project.refusal()


@pytest.mark.parametrize(
    "build, cuda, complaint",
    [
        ({}, None, None),
        ({"torch": "2.13.0+cu130"}, None, None),
        ({"cuda": "13.2"}, "13.0", None),  # minor versions are compatible
        ({"cuda": "12.8"}, "13.0", "it was built for CUDA 12.8, your torch 2.13.0+cpu has CUDA 13.0"),
        ({"cuda": "13.0"}, None, "it was built for CUDA 13.0, your torch 2.13.0+cpu has no CUDA"),
        ({"python": "cpython-310"}, None, "it was built for cpython-310, you have cpython-311"),
        ({"torch": "2.12.1+cpu"}, None, "it was built for torch 2.12.1+cpu, you have 2.13.0+cpu"),
    ],
)
def test_what_is_built_for_another_torch_is_not_loaded(build, cuda, complaint):
    build = SimpleNamespace(**{"python": "cpython-311", "torch": "2.13.0+cpu", "cuda": None} | build)
    why = ext.mismatch(build, torch_version="2.13.0+cpu", cuda=cuda, python="cpython-311")
    assert why == (complaint and f"{complaint}; rebuild it: pip install --no-build-isolation .")


@pytest.mark.parametrize(
    "capability, archs, runs",
    [
        ((9, 0), "8.0;9.0+PTX", True),
        ((8, 6), "8.0;9.0+PTX", True),
        ((10, 0), "8.0;9.0+PTX", True),
        ((7, 5), "8.0;9.0+PTX", False),
        ((9, 0), "8.0 8.6", False),
        ((8, 0), "8.6", False),
        ((12, 0), "Blackwell", True),
    ],
)
def test_which_gpus_an_arch_list_serves(capability, archs, runs):
    why = ext.why_not_device(capability, archs)
    assert (why is None) is runs
    assert runs or f"TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}" in why


def test_a_missing_extension_warns_once_and_no_more(project):
    package = project.folder / "fastrnn"
    shutil.copy(ROOT / "fastrnn/_kernels/ext.py", package / "_kernels")
    facts = "python, torch, cuda, why_no_cuda, why_no_extension = 'x', '2.13.0', None, None, 'no compiler'"
    (package / "_build_info.py").write_text(facts)
    code = "from fastrnn._kernels import ext; print([ext.load(), ext.load()], ext.reason, ext.why_no_cuda(), sep='; ')"
    command = [sys.executable, "-W", "always", "-c", code]
    for chosen, warnings in (("", 1), ("cpu", 1), ("reference", 0)):
        env = project.env | {"FASTRNN_BACKEND": chosen}
        done = subprocess.run(command, cwd=project.folder, env=env, capture_output=True, text=True)
        assert done.stdout == "[None, None]; no compiler; the compiled extension is missing: no compiler\n"
        assert done.stderr.count("its compiled extension is missing: no compiler") == warnings


def test_report_says_what_is_active_or_why_not():
    report = dict(line.split("  ", 1) for line in _info.report().splitlines() if not line.startswith("environment"))
    report = {name.strip(): value.strip() for name, value in report.items()}
    assert report["torch"].startswith(str(torch.__version__))
    assert report["extension"] == (f"missing: {ext.reason}" if ext.reason else "active")
    assert report["cpu kernels"].startswith("pure PyTorch" if ext.reason else "active")
    if ext.why_no_cuda():
        assert report["cuda kernels"] == f"not active: {ext.why_no_cuda()}"
