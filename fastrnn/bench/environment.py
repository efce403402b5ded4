"""What a figure was measured on: device, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import fastrnn
from fastrnn._backends import choice
from fastrnn._kernels import ops

ALL_THREADS = torch.get_num_threads()  # what a program gets that sets nothing


def environment(device: torch.device) -> dict[str, str]:
    """Device, driver, CUDA, torch and fastrnn version, commit, whether kernels are built for the device, and the
    instruction set of a CPU's, as text."""
    on_gpu, cpu = device.type == "cuda", choice.this_cpu()
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
        if on_gpu
        else "",
        "cuda": (torch.version.cuda or "") if on_gpu else "",
        "torch": torch.__version__,
        "fastrnn": fastrnn.__version__,
        "extension": "no" if ops.missing(device.type, device.index) else "yes",
        "isa": "" if on_gpu or cpu is None else cpu.isa,
        "commit": commit(Path(fastrnn.__file__).resolve().parent.parent),
    }


def heading(facts: Mapping[str, str]) -> str:
    """What `environment` found, on a line."""
    versions = [f"{name} {facts[name]}" for name in ("driver", "cuda", "torch", "fastrnn", "commit") if facts[name]]
    return ", ".join((facts["device"], *versions))


def cpu_name() -> str:
    """Model, core count and vector level: the model alone hides both on a virtual machine."""
    info = Path("/proc/cpuinfo")
    facts = dict(re.findall(r"^([^\t:]+)\s*: (.+)$", info.read_text(), re.MULTILINE)) if info.exists() else {}
    model = facts.get("model name", platform.processor() or platform.machine()).strip()
    if facts.get("vendor_id") == "AuthenticAMD" and not re.search(r"\d", model):  # all of a virtual machine's EPYCs
        model += f" family {facts['cpu family']}"
    return f"{model} ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()})"


def warn_if_busy() -> None:
    """Says on stderr where other programs take much of the CPU."""
    if (busy := os.getloadavg()[0]) > 0.5 * (os.cpu_count() or 1):
        print(f"warning: the load average is {busy:.1f}; figures taken on a busy machine mean little", file=sys.stderr)


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
