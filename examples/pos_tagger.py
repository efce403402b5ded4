"""Part-of-speech tagging with a bidirectional LSTM over sentences of different lengths.

    python examples/pos_tagger.py
    python examples/pos_tagger.py --data my.conllu --impl fastrnn

The model: an embedding of the words, two bidirectional LSTM layers of 128 units each way, dropout, a projection to the
tags. The loss and the accuracy leave out the padding. torch.nn's layers read the padded batch as a PackedSequence;
fastrnn's take its lengths as they are: `rnn(x, lengths=lengths)`.

Data: the Turkish Web Treebank, 4,851 sentences of web pages and Wikipedia in CoNLL-U (Apache License 2.0), out of the
package turkish-treebanks: `pip install --no-deps turkish-treebanks`. --data reads any other CoNLL-U file.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from _shared import LIBRARIES, Learner, UsageError, make_parser, packaged_file, real, run, whole
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

PACKAGE, FILES = "turkish-treebanks", ("data/web.conllu", "data/wiki.conllu")
UNKNOWN, NO_TAG = 0, -100  # the number of rare words; the target of padding, which cross_entropy leaves out

Sentence = list[tuple[str, str]]  # words and their tags


class Batch(NamedTuple):
    words: Tensor  # int64 (T, B)
    tags: Tensor  # int64 (T, B), NO_TAG past a sentence's end
    lengths: Tensor  # int64 (B,), on the CPU


class Data(NamedTuple):
    words: dict[str, int]
    tags: dict[str, int]
    train: list[Sentence]
    held_out: list[Sentence]


def read_conllu(path: Path) -> list[Sentence]:
    """The sentences of a CoNLL-U file: column 2 is the word, column 4 the universal tag."""
    sentences: list[Sentence] = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        rows = [line.split("\t") for line in block.splitlines() if line and not line.startswith("#")]
        # "3-4" numbers a token of several words and "3.1" a word that is not in the text.
        sentence = [(row[1], row[3]) for row in rows if row[0].isdecimal()]
        if sentence:
            sentences.append(sentence)
    return sentences


class Model(nn.Module):
    """Words (T, B) and lengths (B,) -> logits of the tags (T, B, tags)."""

    def __init__(self, impl: str, words: int, tags: int, embedding: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.impl = impl
        lstm = LIBRARIES[impl].LSTM
        self.embed = nn.Embedding(words, embedding)
        # Two modules rather than num_layers=2, so that both sides drop the same units: between its own layers
        # torch.nn's LSTM drops units of the packed batch, which has no padding.
        self.lower = lstm(embedding, hidden, bidirectional=True)
        self.upper = lstm(2 * hidden, hidden, bidirectional=True)
        self.drop = nn.Dropout(dropout)
        self.decode = nn.Linear(2 * hidden, tags)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        x = self.drop(self.embed(words))
        for layer in (self.lower, self.upper):
            x = self.drop(self.read(layer, x, lengths))
        return self.decode(x)

    def read(self, layer: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
        """The layer's output at every word, zero past the ends."""
        if self.impl == "fastrnn":
            return layer(x, lengths=lengths.to(x.device))[0]
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], total_length=len(x))[0]


class Tagger(Learner):
    @classmethod
    def load(cls, args: argparse.Namespace) -> Data:
        paths = [args.data] if args.data else [packaged_file(PACKAGE, file) for file in FILES]
        sentences = [sentence for path in paths for sentence in read_conllu(path)]
        if len(sentences) < 10:
            raise UsageError(f"expected at least 10 sentences in CoNLL-U, got {len(sentences)} in {paths[0]}")
        held_out = sentences[::10]  # every tenth, so that both parts hold both files
        train = [sentence for number, sentence in enumerate(sentences) if number % 10]
        counts = Counter(word for sentence in train for word, _ in sentence)
        words = {word: number for number, (word, n) in enumerate(sorted(counts.items()), 1) if n >= args.min_count}
        words = {word: number for number, word in enumerate(words, 1)}
        tags = {tag: number for number, tag in enumerate(sorted({tag for s in sentences for _, tag in s}))}
        print(
            f"data:  {len(train):,} sentences to train on, {len(held_out):,} held out, {len(words):,} words, "
            f"{len(tags)} tags"
        )
        most_frequent = Counter(tag for sentence in train for _, tag in sentence).most_common(1)[0][0]
        share = [tag == most_frequent for sentence in held_out for _, tag in sentence]
        print(f"       always {most_frequent}: accuracy {sum(share) / len(share):.4f}")
        return Data(words, tags, train, held_out)

    def build(self) -> nn.Module:
        args = self.args
        sizes = (args.embedding, args.hidden, args.dropout)
        return Model(self.impl, len(self.data.words) + 1, len(self.data.tags), *sizes)

    def collate(self, sentences: Sequence[Sentence]) -> Batch:
        """Pad the sentences to the longest one."""
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        words = torch.full((int(lengths.max()), len(sentences)), UNKNOWN)
        tags = torch.full_like(words, NO_TAG)
        for b, sentence in enumerate(sentences):
            words[: len(sentence), b] = torch.tensor([self.data.words.get(word, UNKNOWN) for word, _ in sentence])
            tags[: len(sentence), b] = torch.tensor([self.data.tags[tag] for _, tag in sentence])
        return Batch(words.to(self.device), tags.to(self.device), lengths)

    def batches(self) -> list[Batch]:
        order = torch.randperm(len(self.data.train), generator=self.order).tolist()
        shuffled = [self.data.train[i] for i in order]
        return [self.collate(shuffled[i : i + self.args.batch]) for i in range(0, len(shuffled), self.args.batch)]

    def loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch.words, batch.lengths)
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch.tags.flatten(), ignore_index=NO_TAG)

    def evaluate(self) -> dict[str, float]:
        right = total = 0
        for start in range(0, len(self.data.held_out), 256):
            batch = self.collate(self.data.held_out[start : start + 256])
            is_word = batch.tags != NO_TAG
            right += int((self.model(batch.words, batch.lengths).argmax(-1) == batch.tags)[is_word].sum())
            total += int(is_word.sum())
        return {"accuracy": right / total}

    def report(self) -> list[str]:
        sentence = min(self.data.held_out, key=lambda sentence: abs(len(sentence) - 8))
        batch = self.collate([sentence])
        with torch.no_grad():
            found = self.model(batch.words, batch.lengths)[:, 0].argmax(-1).tolist()
        names = list(self.data.tags)
        words = [
            f"{word}/{names[tag]}" + ("" if names[tag] == right else f" (is {right})")
            for (word, right), tag in zip(sentence, found)
        ]
        best = max(epoch.metrics["accuracy"] for epoch in self.history)
        return [f"held-out accuracy {self.history[-1].metrics['accuracy']:.4f}, best {best:.4f}", " ".join(words)]


def options() -> argparse.ArgumentParser:
    parser = make_parser("pos_tagger.py", __doc__.splitlines()[0], epochs=8, batch=32, lr=2e-3)
    parser.add_argument("--data", type=Path, metavar="FILE", help="CoNLL-U, default: the Turkish Web Treebank")
    parser.add_argument("--embedding", type=whole(1), default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--hidden", type=whole(1), default=128, metavar="N", help="each way, default: %(default)s")
    parser.add_argument("--dropout", type=real(0, below=1), default=0.2, metavar="P", help="default: %(default)s")
    parser.add_argument("--min-count", type=whole(1), default=2, metavar="N", help="rarer words are one; default: 2")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run(Tagger, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
