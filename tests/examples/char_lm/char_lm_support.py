"""What the tests of char_lm.py share."""

from pathlib import Path

import char_lm
import torch
from _char_lm import checkpoint, data, train

PROGRAM = Path(char_lm.__file__)
TEXT_LENGTH = 1500


def recipe(corpus: data.Corpus, **changes) -> train.Recipe:
    values = {
        "cell": "lstm", "layers": 1, "hidden": 12, "embedding": 6, "dropout": 0.0, "batch": 4, "seq_len": 16,
        "lr": 3e-3, "clip": 1.0, "sampling": "consecutive", "seed": 3, "device": "cpu", "text_sha256": corpus.sha256,
    }  # fmt: skip
    return train.Recipe(**{**values, **changes})


def saved(folder: Path, impl: str) -> dict:
    return torch.load(checkpoint.checkpoint_path(folder, impl), weights_only=True)


def results(state: dict) -> list[dict]:
    """The history of a checkpoint without its timings."""
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in state["history"]]


def losses_of(run: train.Run) -> list[float]:
    """Of the steps of an epoch."""
    losses = []
    run.train_epoch(lambda loss: losses.append(float(loss)))
    return losses
