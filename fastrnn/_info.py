"""What `python -m fastrnn info` prints: build versions, active kernels, and why anything is inactive."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from ._backends import choice
from ._kernels import ext
from .verdict import proof

# Settings that change what runs or how fast, besides ours.
_VARIABLES = (
    "XDG_CACHE_HOME",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "TORCH_CUDA_ARCH_LIST",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
)


def _version() -> str:
    try:
        return metadata.version("fastrnn")
    except metadata.PackageNotFoundError:
        return "not installed, imported from its source folder"


def _extension() -> list[tuple[str, str]]:
    build = ext.build
    rows = []
    if build is not None and build.why_no_extension is None:
        rows.append(("built for", f"torch {build.torch}, CUDA {build.cuda or 'none'}, {build.python}"))
        rows.append(("built with", build.compiler))
        if build.cuda:
            rows.append(("built GPU code", build.cuda_archs))
    rows.append(("extension", "active" if ext.reason is None else f"missing: {ext.reason}"))
    return rows


def _cpu() -> list[tuple[str, str]]:
    threads = f"{torch.get_num_threads()} threads"
    if ext.reason:
        return [("cpu kernels", f"pure PyTorch ({threads}): no extension")]
    cpu = ext.load().cpu
    try:
        kept = f"up to {cpu.cache_limit() / 2**20:g} MiB of freed memory kept for later calls (FASTRNN_CPU_CACHE_MB)"
    except RuntimeError as error:  # every call raises it, too
        kept = str(error).partition("\n")[0]
    kernels = f"active: {cpu.isa()}, {threads}"
    return [("cpu kernels", kernels), ("cpu choice", choice.in_force()[1]), ("cpu memory", kept)]


def _cuda() -> list[tuple[str, str]]:
    missing = ext.why_no_cuda()
    count = torch.cuda.device_count()
    rows = [("cuda kernels", f"not active: {missing}" if missing else "active" if count else "built, but idle: no GPU")]
    for index in range(count):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        why_not = None if missing else ext.why_not_device(capability, ext.build.cuda_archs)
        text = f"{name}, compute capability {capability[0]}.{capability[1]}"
        rows.append((f"cuda:{index}", f"{text}, not served: {why_not}" if why_not else text))
        if not missing and not why_not:
            found = proof.verdict_of(index)
            rows.append((f"cuda:{index} proof", f"none: {found}" if isinstance(found, str) else found.summary))
    if count == 0:
        why = "no GPU is visible" if torch.version.cuda else "this torch has no CUDA"
        rows.append(("devices", f"cpu only: {why}"))
    return rows


def _environment() -> list[tuple[str, str]]:
    names = sorted(name for name in os.environ if name in _VARIABLES or name.startswith("FASTRNN_"))
    return [("environment", f"{name}={os.environ[name]}") for name in names] or [("environment", "nothing set")]


def report() -> str:
    """One line per fact, `name  value`, without starting any GPU work."""
    rows = [
        ("fastrnn", _version()),
        ("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
        *_extension(),
        *_cpu(),
        *_cuda(),
        *_environment(),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
