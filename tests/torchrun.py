"""Jobs of several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

GLOO_ABORT = "terminate called without an active exception"


def command(program: Path, *arguments: str, processes: int = 2) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, str(program), *arguments]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def run(program: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    """Runs the job; again where a process was aborted by a thread of gloo's that outlived it, which happens rarely."""
    for _ in range(3):
        done = subprocess.run(
            command(program, *arguments), capture_output=True, text=True, timeout=240, env=environment(**more)
        )
        if done.returncode == 0 or GLOO_ABORT not in done.stderr:
            break
    return done
