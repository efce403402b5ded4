"""What a figure was measured on: device, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import fastrnn
from fastrnn import _ops

ALL_THREADS = torch.get_num_threads()  # what a program gets that sets nothing


def environment(device: torch.device) -> dict[str, str]:
    """Device, driver, CUDA, torch and fastrnn version, commit and whether kernels are built for the device, as text."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
        if on_gpu
        else "",
        "cuda": (torch.version.cuda or "") if on_gpu else "",
        "torch": torch.__version__,
        "fastrnn": fastrnn.__version__,
        "extension": "no" if _ops.missing(device.type) else "yes",
        "commit": commit(Path(fastrnn.__file__).resolve().parent.parent),
    }


def cpu_name() -> str:
    """Model, core count and vector level: the model alone hides both on a virtual machine."""
    info = Path("/proc/cpuinfo")
    facts = dict(re.findall(r"^([^\t:]+)\s*: (.+)$", info.read_text(), re.MULTILINE)) if info.exists() else {}
    model = facts.get("model name", platform.processor() or platform.machine()).strip()
    if facts.get("vendor_id") == "AuthenticAMD" and not re.search(r"\d", model):  # all of a virtual machine's EPYCs
        model += f" family {facts['cpu family']}"
    return f"{model} ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()})"


def commit(root: Path) -> str:
    """Short commit of the checkout that `root` is, "-dirty" if its code differs from it; "" for no checkout.

    Results and figures do not count: a run appends to them.
    """
    if not (root / ".git").exists():
        return ""
    head = _output("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    paths = ("--", ".", ":!benchmarks/results", ":!*.md")
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", *paths)
    return head + "-dirty" if head and changed else head


def _output(*command: str) -> str:
    """Output of a command, or "" where it is missing or fails: these are labels, not results."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
