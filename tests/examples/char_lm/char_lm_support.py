"""The program under test, importable, and what its tests share."""

import sys
from pathlib import Path

import torch

PROGRAM = Path(__file__).parents[3] / "examples" / "char_lm.py"
sys.path.insert(0, str(PROGRAM.parent))

from _char_lm import checkpoint, data, train  # noqa: E402  (the path to it is set above)

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
