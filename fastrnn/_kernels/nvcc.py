"""Where nvcc is, and what it links. setup.py runs this file by its path, so it imports nothing of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch


def _asked_for() -> str | None:
    """The toolkit that the user names."""
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")


def output_of(*command: str) -> str:
    """What a program prints, or nothing where it is not there or fails."""
    try:
        return subprocess.check_output(command, stderr=subprocess.STDOUT, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""


def find_nvcc() -> tuple[str, None] | tuple[None, str]:
    """(path of an nvcc of torch's CUDA version, None), or (None, why there is none)."""
    toolkit = _asked_for()
    # pip puts NVIDIA's own wheels, this nvcc among them, beside torch and in the version that torch asks for.
    beside = sorted(map(str, Path(torch.__file__).parents[1].glob("nvidia/cu*/bin/nvcc")))
    paths = (
        [f"{toolkit}/bin/nvcc"] if toolkit else [*beside, shutil.which("nvcc") or "nvcc", "/usr/local/cuda/bin/nvcc"]
    )
    why = f"nvcc was not found in {f'{toolkit}/bin' if toolkit else 'PATH, /usr/local/cuda/bin or beside torch'}"
    for path in paths:
        release = re.search(r"release (\d+)\.(\d+)", output_of(path, "--version"))
        if release and release[1] == torch.version.cuda.split(".")[0]:
            return path, None
        if release:
            why = f"nvcc is {release[1]}.{release[2]} and torch {torch.__version__} has CUDA {torch.version.cuda}"
    return None, why if toolkit else f"{why}; pip install 'cuda-toolkit[nvcc,cccl]' brings one"


def toolkit_of(nvcc: str) -> str:
    """The folder of the toolkit. nvcc on PATH may be a wrapper or a link far from it; only nvcc knows where it is."""
    top = re.search(r"TOP=(.*)", output_of(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull))
    return _asked_for() or os.path.realpath(top[1].strip() if top else Path(nvcc).parents[1])


def runtime_of(toolkit: str) -> str | None:
    """The CUDA runtime by its file, where -lcudart does not find it: NVIDIA's wheels have no libcudart.so."""
    runtimes = sorted(Path(toolkit, "lib").glob("libcudart.so.*"))
    if runtimes and not any(Path(toolkit, lib, "libcudart.so").exists() for lib in ("lib64", "lib")):
        return str(runtimes[-1])
    return None
