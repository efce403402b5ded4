"""The CUDA kernels of a user's cell: when nvcc is asked for them and what is said where it is missing or fails, with a
GPU and an nvcc that are not there; and what a real nvcc makes of the examples."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import types

import pytest
import torch
from own_cells import ROOT, SCALED, compiled, load
from stand_in import CALL, gpu  # noqa: F401  a fixture of every test here

import fastrnn
from fastrnn._backends import dispatch, graph
from fastrnn._kernels import cell_library, ext, nvcc, user_kernels
from fastrnn._kernels.cell_errors import Header
from fastrnn._spec import pack
from fastrnn.registry import FIRST_USER_CELL

X = torch.zeros(1)
CXX = next((name for name in ("g++", "c++") if shutil.which(name)), None)
# It makes an object that has the symbol, or says what $FAKE_SAYS has; it writes down what it is asked.
FAKE = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit 0 ;;
  *--dryrun*) echo "#$ TOP={root}" >&2; exit 0 ;;
esac
echo "$*" >> {root}/log
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then out=$2; fi
  shift
done
if [ -n "$FAKE_SAYS" ]; then echo "$FAKE_SAYS"; exit 2; fi
echo 'int fastrnn_user_kernels(void) {{ return 1; }}' | {cxx} -c -fPIC -x c - -o "$out"
"""


class Fake:
    """An nvcc in ``root``, and the extension's CUDA part."""

    def __init__(self, root):
        self.root, self.added = root, []
        (root / "bin").mkdir(parents=True)
        (root / "bin/nvcc").write_text(FAKE.format(root=root, cxx=CXX))
        (root / "bin/nvcc").chmod(0o755)
        (root / "lib").mkdir()
        # As NVIDIA's wheels have it, under no name that -lcudart looks for.
        runtime = [str(CXX), "-shared", "-x", "c", "/dev/null", "-o", str(root / "lib/libcudart.so.13")]
        subprocess.run(runtime, check=True)

    def calls(self) -> list[str]:
        log = self.root / "log"
        return log.read_text().splitlines() if log.exists() else []

    def add_cell(self, number: int, address: int) -> None:
        self.added.append(number)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    made = Fake(tmp_path / "toolkit")
    extension = types.SimpleNamespace(**vars(ext.load()) | {"cuda": made})
    monkeypatch.setattr(ext, "load", lambda: extension)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(ext, "build", types.SimpleNamespace(cuda_archs="8.0;9.0+PTX"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i=0: ((9, 0), (8, 6), (6, 1), (9, 0))[i])
    monkeypatch.setenv("CUDA_HOME", str(made.root))
    for kept in ("_added", "_refused"):
        monkeypatch.setattr(user_kernels, kept, type(getattr(user_kernels, kept))())
    return made


@pytest.fixture
def cell(fake, tmp_path):
    """One whose libraries are made anew."""
    path = tmp_path / "own.h"
    path.write_text(SCALED)
    cell = load("scaled")
    header, folder = Header(str(path), SCALED, None), tmp_path / "cells"
    user_kernels.offer(
        cell.registered.mode,
        cell.registered.index,
        lambda gpus: cell_library.build_cuda(header, gpus, folder, "0.1"),
    )
    return cell


def call_of(cell):
    return CALL._replace(mode=cell.registered.mode, extended=True)


def said(cell) -> str:
    """What fastrnn.explain has against backend cuda."""
    (reason,) = dispatch.explanation(call_of(cell)).reasons["cuda"]
    return reason


def choose(cell) -> str:
    with fastrnn.backend("cuda"):
        return dispatch.choose(call_of(cell))


@compiled
def test_without_nvcc_the_reason_names_it(cell, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert said(cell) == (
        "the kernels of a cell of fastrnn.load_cell are compiled here, and nvcc was not found in /nowhere/bin"
    )
    with pytest.raises(RuntimeError, match=r"'cuda' was asked for but cannot serve this call: .* nvcc was not found"):
        choose(cell)
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(nvcc, "output_of", lambda *command: "release 12.8, V12.8.1" * ("--version" in command))
    assert "and nvcc is 12.8 and torch " in said(cell) and "has CUDA 13.0" in said(cell)


@compiled
def test_nothing_is_compiled_before_backend_cuda_is_asked_for(cell, fake):
    assert "opt in with fastrnn.backend('cuda')" in said(cell)
    assert dispatch.choose(call_of(cell)) == "reference"
    with fastrnn.backend("cuda"):
        assert dispatch.choose(call_of(cell), explained=True) == "cuda"
    assert dispatch.choose(call_of(cell)._replace(device="cpu")) == "cpu"
    assert fake.calls() == []


@compiled
def test_they_are_compiled_once_for_the_gpus_that_are_there(cell, fake, monkeypatch):
    assert choose(cell) == choose(cell) == "cuda"
    (command,) = fake.calls()
    gpus = [word for word in command.split() if word.startswith("-gencode")]
    assert gpus == ["-gencode=arch=compute_86,code=sm_86", "-gencode=arch=compute_90,code=sm_90"]
    assert " -ccbin " in command and "user/library.cu -o " in command
    assert fake.added == [cell.registered.index]
    monkeypatch.setattr(user_kernels, "_added", set())  # another process
    assert choose(cell) == "cuda" and len(fake.calls()) == 1 and len(fake.added) == 2
    monkeypatch.setattr(user_kernels, "_added", set())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose(cell) == "cuda" and "sm_86" not in fake.calls()[1]


@compiled
@pytest.mark.parametrize(
    "says, line, text",
    [
        ('{path}(8): error: identifier "softmax" is undefined', 8, 'the compiler says: identifier "softmax" is und'),
        ("{path}:9:5: error: no such thing", 9, "the compiler says: no such thing"),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_90'", 2, "the compiler says: nvcc fatal : Unsupported"),
    ],
)
def test_an_nvcc_that_fails_is_a_sentence_and_not_asked_again(cell, fake, tmp_path, monkeypatch, says, line, text):
    monkeypatch.setenv("FAKE_SAYS", says.format(path=tmp_path / "own.h"))
    for _ in range(2):
        with pytest.raises(RuntimeError) as error:
            choose(cell)
        assert str(error.value).startswith("fastrnn: backend 'cuda' was asked for but cannot serve this call: ")
        assert f"{tmp_path}/own.h:{line}: {text}" in str(error.value) and "\n" not in str(error.value)
    assert len(fake.calls()) == 1 and fake.added == [] and list((tmp_path / "cells").iterdir()) == []
    assert said(cell).startswith(f"{tmp_path}/own.h:{line}: {text}")


@compiled
def test_graphs_have_them_compiled_when_they_run(cell, fake, monkeypatch):
    number = cell.registered.index
    monkeypatch.setattr(dispatch, "_environment", "cuda")
    ran = types.SimpleNamespace(layer_forward=lambda *given: "ran")
    monkeypatch.setattr(graph, "layer_ops", lambda backend: ran)
    assert dispatch._choose_for_graph(call_of(cell)) == "cuda" and fake.calls() == []
    asked = X, [None] * 5, [torch.zeros(1, 1, 1)], [], pack(number, 0), []
    assert graph._forward("cuda")(*asked) == "ran" and fake.added == [number]
    monkeypatch.setattr(user_kernels, "_added", set())
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(RuntimeError, match="nvcc was not found in /nowhere/bin"):
        graph._forward("cuda")(*asked)
    with pytest.raises(RuntimeError, match="nvcc was not found in /nowhere/bin"):
        dispatch._choose_for_graph(call_of(cell))
    # What dynamo traces of the choice starts no program within the graph.
    traced = torch.compile(lambda x: (x, user_kernels.why_not(cell.registered.mode)), backend="eager", fullgraph=True)
    assert "nvcc was not found" in traced(X)[1]


def lacking_nvcc() -> str | None:
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    return nvcc.find_nvcc()[1]


# What the extension's host compiler knows of a library: its layout, and the number of its cell's gates.
HOST = """
#include "{csrc}/cuda/user_cells.h"
extern "C" int gates_of(fastrnn::cuda::OpenUserCell open, size_t more) {{
  fastrnn::cuda::UserCell cell{{}};
  const bool opened = open(fastrnn::cuda::kLayout + more, &cell);
  for (const auto& kernels : cell.kernels)
    if (opened && !(kernels.forward && kernels.backward && kernels.rebuild)) return -2;
  return opened ? cell.info.gates : -1;
}}
"""


@pytest.mark.skipif(lacking_nvcc() is not None, reason=str(lacking_nvcc()))
@pytest.mark.parametrize("name, gpu_of, gates", [("janet", (8, 0), 2), ("fastgrnn", (9, 0), 1)])
def test_a_real_nvcc_makes_a_library_of_the_examples(tmp_path, name, gpu_of, gates):
    path = ROOT / f"examples/cells/{name}.h"
    header = Header(str(path), path.read_text(), None)
    library = cell_library.build_cuda(header, [gpu_of], tmp_path, "0.1")
    (tmp_path / "host.cpp").write_text(HOST.format(csrc=ROOT / "csrc"))
    include = f"-I{nvcc.toolkit_of(str(nvcc.find_nvcc()[0]))}/include"
    host = [str(CXX), "-std=c++20", "-shared", "-fPIC", include, "host.cpp", "-o", "host.so"]
    subprocess.run(host, cwd=tmp_path, check=True)
    gates_of = ctypes.CDLL(str(tmp_path / "host.so")).gates_of
    opened = ctypes.CDLL(str(library)).fastrnn_user_kernels
    assert [gates_of(opened, ctypes.c_size_t(more)) for more in (0, 1)] == [gates, -1]
    if hasattr(ext.load(), "cuda"):
        address = cell_library.address_in(lambda: library, "fastrnn_user_kernels")
        ext.load().cuda.add_cell(FIRST_USER_CELL, address)  # which starts nothing on a GPU
