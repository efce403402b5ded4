"""The kernels as PTX: nvcc, once for each file of csrc/cuda/inst and architecture, kept under build/ptx."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from .blocks import Translation
from .parse import Module, PtxError

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
INST = CSRC / "cuda" / "inst"
KEPT = ROOT / "build" / "ptx"
ARCHITECTURES = (75, 80, 90)


def nvcc() -> str | None:
    """As setup.py looks for it, but for the one of NVIDIA's wheels."""
    root = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if root:
        return shutil.which(f"{root}/bin/nvcc")
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


@functools.cache
def _common() -> tuple[list[str], hashlib._Hash]:
    """The flags, those that torch gives nvcc among them, and a hash of them, the compiler and all headers."""
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

    flags = ["-ptx", "-O3", "-std=c++20", *COMMON_NVCC_FLAGS]
    digest = hashlib.sha256(subprocess.check_output([nvcc(), "--version"]) + repr(flags).encode())
    headers = [path for folder in ("common", "cells", "cuda") for path in (CSRC / folder).rglob("*")]
    for path in sorted(path for path in headers if path.suffix in (".h", ".cuh", ".def")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return flags, digest


def ptx(source: str, architecture: int) -> Path:
    """The PTX of csrc/cuda/inst/<source>.cu. One compiler runs at a time, whoever else wants one."""
    flags, common = _common()
    digest, path = common.copy(), INST / f"{source}.cu"
    digest.update(path.read_bytes() + str(architecture).encode())
    target = KEPT / f"{source}-sm_{architecture}-{digest.hexdigest()[:16]}.ptx"
    if target.exists():
        return target
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_suffix(".part")
            command = [nvcc(), *flags, f"-arch=compute_{architecture}", str(path), "-o", str(partial)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
            partial.replace(target)
    return target


@functools.cache
def module(source: str, architecture: int) -> Module:
    return Module(ptx(source, architecture).read_text())


@functools.cache
def translation(source: str, architecture: int, name: str) -> Translation:
    parsed = module(source, architecture)
    return Translation(parsed, parsed.entry(name))


def demangled(names: list[str]) -> dict[str, str]:
    """Names without what compilers put there for an unnamed namespace."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(text.splitlines(), names))


@functools.cache
def entries(source: str, architecture: int) -> dict[str, str]:
    """Signature: the name in the PTX."""
    return demangled(module(source, architecture).names)


TIERS = {"kCta": "1", "kCluster": "2", "kGrid": "3"}
INSTANCE = re.compile(r"^FASTRNN_(?:INSTANTIATE|RESIDENT)\(\s*([^,)]+?)\s*(?:,\s*Tier::(\w+)\s*)?\)", re.M)


@functools.cache
def _instances() -> dict[tuple[str, str], str]:
    """The file of csrc/cuda/inst that instantiates a cell, in a tier or in none."""
    found = {}
    for path in INST.glob("*.cu"):
        for cell, tier in INSTANCE.findall(path.read_text()):
            found[cell.replace("fastrnn::", ""), TIERS.get(tier, "")] = path.stem
    return found


def source_of(signature: str) -> str:
    """The file of csrc/cuda/inst that instantiates a kernel."""
    for word, source in (("gather_projected", "projection"), ("mask_operand", "operand"), ("rebuild_", "rebuild")):
        if word in signature:
            return source
    if found := re.search(r"::store_(\w+)\(", signature):
        return found[1]
    arguments = signature.partition("(fastrnn::cuda::Tier)")
    cell = re.search(r"<(\w+(?:<\w+>)?),", arguments[0].replace("fastrnn::", ""))
    # Aliases: Name of Derived<NameForward>, and RnnTanh of Rnn<Tanh>.
    name = re.sub(r"Derived<(\w+)Forward>|[<>]", r"\1", cell[1]) if cell else ""
    if (name, arguments[2][:1]) not in _instances():
        raise PtxError(f"no file of {INST.relative_to(ROOT)} instantiates {signature}")
    return _instances()[name, arguments[2][:1]]


def has_body(signature: str, architecture: int) -> bool:
    """Clusters begin with sm_90, products of bf16 and tf32 with sm_80."""
    if "Tier)2" in signature and architecture < 90:
        return False
    found = re.search(r", (float|__nv_bfloat16|__half), true, ", signature)
    return not (found and found[1] != "__half" and architecture < 80)
