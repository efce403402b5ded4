"""The compiled extension, or the reason why it is missing. The only module that imports fastrnn._C.

An extension built against another torch dies in the dynamic linker with an undefined symbol. So setup.py leaves
fastrnn/_build_info.py beside it, and that is compared with the running torch before anything is loaded.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
import warnings
from types import ModuleType

import torch

_HOW = "pip install --no-build-isolation ."


def _find(name: str) -> ModuleType | None:
    """A generated module of this package, None where it was not made; an error inside it is not hidden."""
    try:
        return importlib.import_module(f"fastrnn.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"fastrnn.{name}":
            raise
        return None


def _release(version: str) -> str:
    return version.split("+")[0]


def mismatch(build, *, torch_version: str, cuda: str | None, python: str) -> str | None:
    """Why an extension with these build facts cannot be loaded into this Python and torch; None if it can.

    C++ extensions are only good for the torch release they were compiled against. One that has CUDA kernels also needs
    a torch of the same CUDA major version; one without does not care.
    """
    if build.python != python:
        return f"it was built for {build.python}, you have {python}; rebuild it: {_HOW}"
    if _release(build.torch) != _release(torch_version):
        return f"it was built for torch {build.torch}, you have {torch_version}; rebuild it: {_HOW}"
    if build.cuda and (cuda is None or cuda.split(".")[0] != build.cuda.split(".")[0]):
        yours = f"CUDA {cuda}" if cuda else "no CUDA"
        return f"it was built for CUDA {build.cuda}, your torch {torch_version} has {yours}; rebuild it: {_HOW}"
    return None


def _load(build) -> tuple[ModuleType | None, str | None]:
    if build is None:
        return None, f"it was never built; type: {_HOW}"
    why = build.why_no_extension or mismatch(
        build,
        torch_version=str(torch.__version__),
        cuda=torch.version.cuda,
        python=sys.implementation.cache_tag,
    )
    if why:
        return None, why
    try:
        module = _find("_C")
    except ImportError as error:
        return None, f"it was built for torch {build.torch} and does not load: {error}; rebuild it: {_HOW}"
    return (module, None) if module else (None, f"its file is gone; rebuild it: {_HOW}")


build = _find("_build_info")
"""What setup.py wrote down, or None: python, torch, compiler, cuda, cuda_archs, why_no_cuda, why_no_extension."""

_module, reason = _load(build)
"""reason: why the extension is missing, None if it is there."""


# Here and not at the first use, which may be under torch.compile. Not where the user chose a backend without kernels.
if reason and os.environ.get("FASTRNN_BACKEND") not in ("aten", "reference"):
    warnings.warn(
        f"fastrnn runs in pure PyTorch, slower than it could, because its compiled extension is missing: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


def load() -> ModuleType | None:
    """fastrnn._C, or None."""
    return _module


def why_no_cuda() -> str | None:
    """Why the extension has no CUDA kernels, None if it has them. A device may still be unfit: see why_not_device."""
    if _module is None:
        return f"the compiled extension is missing: {reason}"
    return build.why_no_cuda


@functools.cache
def why_not_device(capability: tuple[int, int], archs: str) -> str | None:
    """Why a GPU of this compute capability runs nothing that was compiled for `archs` (a TORCH_CUDA_ARCH_LIST).

    Machine code serves later minor versions of its own major one; PTX serves everything later; names such as "Hopper"
    and the feature sets marked `a` or `f` are left to the driver.
    """
    for arch in re.split(r"[; ]+", archs):
        numbers = re.fullmatch(r"(\d+)\.(\d+)(\+PTX)?", arch)
        if numbers is None:
            return None
        built = int(numbers[1]), int(numbers[2])
        if built <= capability and (numbers[3] or built[0] == capability[0]):
            return None
    major, minor = capability
    return (
        f"its kernels were compiled for {archs}, this GPU has compute capability {major}.{minor}; "
        f"rebuild it: TORCH_CUDA_ARCH_LIST={major}.{minor} {_HOW}"
    )
