"""Text in, batches of character numbers out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HELD_OUT_SHARE = 0.1

Chunk = tuple[Tensor, Tensor]
"""Inputs and targets, both int64 of shape (T, B); a target is the character that follows its input."""


@dataclass(frozen=True)
class Corpus:
    """A text split in two: the first part to train on, the rest held out."""

    name: str
    vocabulary: str  # every character of the text, sorted; a character's number is its index here
    train: Tensor  # int64 (N,)
    held_out: Tensor  # int64 (M,)
    sha256: str  # of the whole text, so that a checkpoint can tell whether it belongs to it

    @classmethod
    def from_text(cls, name: str, text: str) -> Corpus:
        """Number the characters of `text` and split it."""
        vocabulary = "".join(sorted(set(text)))
        numbers = _numbers(text, vocabulary)
        split = len(text) - int(len(text) * HELD_OUT_SHARE)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return cls(name, vocabulary, numbers[:split], numbers[split:], digest)

    def encode(self, text: str) -> Tensor:
        """The numbers of the characters of `text`; ValueError names those that are not in the vocabulary."""
        unknown = sorted(set(text) - set(self.vocabulary))
        if unknown:
            raise ValueError(f"expected characters that occur in the text, got {''.join(unknown)!r}")
        return _numbers(text, self.vocabulary)

    def decode(self, numbers: Tensor) -> str:
        """The inverse of `encode`."""
        return "".join(self.vocabulary[i] for i in numbers.tolist())


def _numbers(text: str, vocabulary: str) -> Tensor:
    index = {character: i for i, character in enumerate(vocabulary)}
    return torch.tensor([index[character] for character in text], dtype=torch.int64)


def python_topics() -> str:
    """Every topic of the interpreter's own documentation (what `help("if")` shows), each paragraph once.

    The topics quote one another at length ("compound" holds all of "if", "while" and "with"): a fifth of the text is
    repeats. Left in, they would put held-out text into the training text and flatter the held-out perplexity.
    """
    from pydoc_data.topics import topics

    # A dict keeps the first of equal paragraphs, and the order.
    paragraphs = {p.strip("\n"): None for name in sorted(topics) for p in topics[name].split("\n\n") if p.strip()}
    return "\n\n".join(paragraphs)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; ValueError says what is wrong with it.

    Colours of a terminal are left out, and so are the lines of a single % between the parts of a fortune file.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"expected a readable text file, got {str(path)!r} ({error.strerror})") from None
    except UnicodeDecodeError as error:
        where = f"byte 0x{error.object[error.start]:02x} at offset {error.start} of {str(path)!r}"
        raise ValueError(f"expected UTF-8 text, got {where}") from None
    return re.sub(r"^%\n", "\n", re.sub(r"\x1b\[[0-9;]*m", "", text), flags=re.MULTILINE)


def check_length(corpus: Corpus, batch: int, seq_len: int) -> None:
    """ValueError unless one whole training chunk, and at least one held-out prediction, fit into the text."""
    needed = batch * seq_len + 1
    if len(corpus.train) < needed or len(corpus.held_out) < 2:
        raise ValueError(
            f"expected {needed} characters or more to train on (batch {batch} x seq-len {seq_len} + 1), 2 held out, "
            f"got {len(corpus.train)} and {len(corpus.held_out)} ({HELD_OUT_SHARE:.0%} of a text is held out)"
        )


def consecutive_chunks(text: Tensor, batch: int, seq_len: int, whole: bool = True) -> Iterator[Chunk]:
    """Cut `text` into `batch` streams side by side and walk along them, `seq_len` characters at a time.

    Row b of one chunk continues row b of the chunk before it, so a recurrent state can be carried from one to the next.
    `whole` leaves out a shorter last chunk.
    """
    length = (len(text) - 1) // batch
    inputs = text[: batch * length].view(batch, length).t()
    targets = text[1 : batch * length + 1].view(batch, length).t()
    end = length - length % seq_len if whole else length
    for start in range(0, end, seq_len):
        yield inputs[start : start + seq_len], targets[start : start + seq_len]


def random_chunks(text: Tensor, batch: int, seq_len: int, generator: torch.Generator) -> Iterator[Chunk]:
    """As many chunks as `consecutive_chunks` gives, but every row starts at a random place of `text`."""
    within = torch.arange(seq_len).unsqueeze(1)
    for _ in range(chunk_count(text, batch, seq_len)):
        # Drawn on the CPU, so that the places do not depend on the device.
        start = torch.randint(len(text) - seq_len, (batch,), generator=generator)
        index = (start + within).to(text.device)
        yield text[index], text[index + 1]


def chunk_count(text: Tensor, batch: int, seq_len: int) -> int:
    """How many whole chunks an epoch has."""
    return (len(text) - 1) // batch // seq_len


def held_out_chunks(text: Tensor, batch: int, seq_len: int) -> Iterator[Chunk]:
    """Chunks for evaluation: consecutive, to the end, in at most `batch` streams that are not shorter than `seq_len`.

    Every stream starts from a zero state, so a short text is better cut into fewer streams.
    """
    streams = max(1, min(batch, (len(text) - 1) // seq_len))
    return consecutive_chunks(text, streams, seq_len, whole=False)


def unigram_perplexity(corpus: Corpus, batch: int, seq_len: int) -> float:
    """Held-out perplexity of a model that knows only how often each character occurs in the training text.

    The yardstick for the recurrent model, over the very targets it is evaluated on. One is added to every count,
    because a held-out character may be missing from the training text.
    """
    counts = torch.bincount(corpus.train, minlength=len(corpus.vocabulary)).double() + 1
    log_probability = (counts / counts.sum()).log()
    targets = torch.cat([targets.flatten() for _, targets in held_out_chunks(corpus.held_out, batch, seq_len)])
    return float(torch.exp(-log_probability[targets].mean()))
