"""Under DDP and FSDP2 with two processes the gradients are those of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import fastrnn

SCRIPT = Path(__file__).parent / "distributed" / "gradients.py"
ROOT = str(Path(fastrnn.__file__).parents[1])


@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no torch.distributed with Gloo"
)
def test_gradients_of_two_processes_are_those_of_one():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    paths = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
        # Rarely a thread of gloo's outlives its process, which is aborted then.
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as one process") == 9
