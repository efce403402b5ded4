"""A tiny text and the arguments of a tiny run."""

import random
import shlex
import signal
from pathlib import Path

import pytest
from _char_lm import data
from char_lm_support import TEXT_LENGTH


@pytest.fixture(autouse=True)
def interruptible():
    """SIGINT does what it does at a terminal, also where the tests run as a shell's background job and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


@pytest.fixture(scope="module")
def text() -> str:
    """Words in random order: learnable, and held-out text that is not in the training text."""
    pick = random.Random(1)
    words = ["the", "state", "of", "a", "cell", "is", "carried", "from", "one", "step", "to", "another"]
    return " ".join(pick.choice(words) for _ in range(TEXT_LENGTH))[:TEXT_LENGTH]


@pytest.fixture(scope="module")
def corpus(text) -> data.Corpus:
    return data.Corpus.from_text("words", text)


@pytest.fixture(scope="module")
def text_file(text, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def arguments(text_file, tmp_path) -> list[str]:
    """A run of a fraction of a second, into tmp_path."""
    files = ["--text", str(text_file), "--out", str(tmp_path)]
    sizes = "--hidden 12 --embedding 6 --batch 4 --seq-len 16 --epochs 2 --sample 20 --device cpu"
    return [*files, *shlex.split(sizes)]
