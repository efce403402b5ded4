"""examples/train_distributed.py: two processes learn what one does, and a killed job loses nothing."""

import os
import signal
import subprocess
import time
from pathlib import Path

import char_lm
import pytest
import torch
import torch.distributed as dist
import torchrun
from char_lm_support import PROGRAM, results, saved

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists() or not dist.is_available() or not dist.is_gloo_available(),
    reason="needs torch.distributed with Gloo, and Linux to find the processes of a job",
)
DISTRIBUTED = PROGRAM.with_name("train_distributed.py")


def children(pid: int) -> list[int]:
    lists = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for text in lists for child in text.split()]


def kill_after_an_epoch(arguments: list[str], folder: Path) -> None:
    """Starts a job that would never end and kills one of its processes, whatever that is doing; the rest follow."""
    path = folder / "checkpoint-fastrnn.pt"
    job = subprocess.Popen(
        torchrun.command(DISTRIBUTED, *arguments, "--epochs", "100000"), env=torchrun.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert job.poll() is None and time.monotonic() < deadline, "no epoch was finished"
            time.sleep(0.01)
        os.kill(children(job.pid)[-1], signal.SIGKILL)
        _, said = job.communicate(timeout=120)
    finally:
        job.terminate()  # torchrun then ends its processes
        job.wait()
    assert b"SIGKILL" in said and job.returncode != 0


def test_killed_and_resumed_is_the_unbroken_run(arguments, tmp_path):
    arguments += ["--layers", "2", "--dropout", "0.3", "--sampling", "random"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    kill_after_an_epoch([*arguments, "--out", str(parts)], parts)
    epochs = saved(parts, "fastrnn")["epoch"] + 2
    for options in (["--out", str(parts), "--resume"], ["--out", str(whole)]):
        done = torchrun.run(DISTRIBUTED, *arguments, "--epochs", str(epochs), *options)
        assert done.returncode == 0, done.stderr
    expected, got = saved(whole, "fastrnn"), saved(parts, "fastrnn")
    assert len(got["history"]) == epochs and results(got) == results(expected)  # to the last bit
    for part in ("model", "optimizer", "random_state", "places"):
        torch.testing.assert_close(got[part], expected[part], rtol=0, atol=0)
    assert (parts / "metrics.csv").exists()


def test_two_processes_learn_what_one_does(arguments, tmp_path):
    """Without dropout the averaged gradients are those of the whole batch, but for rounding."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert char_lm.main([*arguments, "--impl", "fastrnn", "--sample", "0", "--out", str(alone)]) == 0
    done = torchrun.run(DISTRIBUTED, *arguments, "--out", str(together))
    assert done.returncode == 0, done.stderr
    one, two = saved(alone, "fastrnn"), saved(together, "fastrnn")
    torch.testing.assert_close(two["model"], one["model"], rtol=1e-3, atol=1e-5)
    for epoch, other in zip(results(one), results(two), strict=True):
        torch.testing.assert_close(torch.tensor(epoch["curve"]), torch.tensor(other["curve"]), rtol=1e-4, atol=0)

    done = torchrun.run(DISTRIBUTED, *arguments, "--out", str(alone), "--resume")
    assert done.returncode != 0
    assert "expected a checkpoint of 2 processes under torchrun, got one of 1" in done.stderr


def test_processes_that_torchrun_starts_again_resume_by_themselves(arguments, tmp_path, monkeypatch):
    import train_distributed

    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # with no checkpoint yet it starts from the beginning
    assert train_distributed.main(arguments) == 0
    first = saved(tmp_path, "fastrnn")["history"]
    assert train_distributed.main([*arguments, "--epochs", "3"]) == 0
    assert saved(tmp_path, "fastrnn")["history"][:2] == first  # their seconds too: they were not trained again
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert train_distributed.main(arguments) == 0
    assert saved(tmp_path, "fastrnn")["history"] != first


@pytest.mark.parametrize(
    "more, world, said",
    [
        ([], None, "expected to be started by torchrun"),
        (["--batch", "5"], "2", "argument --batch: expected a multiple of the 2 processes, got 5"),
        (["--impl", "both"], "2", "argument --impl: expected one of torch, fastrnn, got 'both'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(more, world, said, arguments, monkeypatch, capsys):
    import train_distributed

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(SystemExit) as stop:
        train_distributed.main([*arguments, *more])
    assert stop.value.code == 2 and said in capsys.readouterr().err
