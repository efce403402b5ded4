"""Under DDP and FSDP2 with two processes the gradients are those of one process with the whole batch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch.distributed as dist
import torchrun

import fastrnn

SCRIPT = Path(__file__).parent / "distributed" / "gradients.py"
ROOT = str(Path(fastrnn.__file__).parents[1])


@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no torch.distributed with Gloo"
)
def test_gradients_of_two_processes_are_those_of_one():
    paths = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = torchrun.run(SCRIPT, PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as one process") == 9
