"""The command line. Whatever is wrong with it is said here, before anything is computed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from _shared.arguments import default_device, real, usable_device, whole

from . import data
from .model import CELLS, LIBRARIES
from .train import Recipe

EXAMPLES = """\
examples:
  python examples/char_lm.py                                  both layers on the Python documentation
  python examples/char_lm.py --text book.txt --cell gru       your own text, another cell
  python examples/char_lm.py --sampling random                chunks from random places
  python examples/char_lm.py --epochs 20 --resume             go on where an earlier run stopped
  python examples/char_lm.py --published                      the textbook recipe: 10,000 characters, 250 epochs
  python examples/char_lm.py --published --text /usr/share/games/fortunes/tang300 --prime 春风
                                                              Chinese poems (apt-get install fortunes-zh)
"""

PUBLISHED = {
    # A tenth of them is held out: 10,000 to train on.
    **{"max_chars": 11_111, "embedding": 0, "hidden": 256, "batch": 32, "seq_len": 35, "lr": 3e-3, "clip": 1.0},
    **{"epochs": 250, "every": 25, "sample": 100},
}
"""The recipe of many textbooks for a first character model: one-hot characters, so few of them that it knows them by
heart in the end. Its training perplexity is what they report."""


def parse(
    argv: Sequence[str] | None, parser: argparse.ArgumentParser | None = None
) -> tuple[argparse.Namespace, data.Corpus, Recipe]:
    """The options, the text and the recipe they ask for; exits with status 2 and a reason where they are unusable."""
    parser = parser or make_parser()
    options = parser.parse_args(argv)
    if options.published:
        parser.set_defaults(**PUBLISHED)
        options = parser.parse_args(argv)
    if options.bidirectional:
        parser.error(
            "argument --bidirectional: expected a model that reads forwards only, got one that also reads backwards: "
            "it would see the very characters it has to predict, and its perplexity would mean nothing"
        )
    corpus = _corpus(parser, options)
    recipe = Recipe(
        **{field.name: getattr(options, field.name) for field in fields(Recipe) if field.name != "text_sha256"},
        text_sha256=corpus.sha256,
    )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: expected a folder to write to, got {str(options.out)!r} ({error.strerror})")
    return options, corpus, recipe


def _corpus(parser: argparse.ArgumentParser, options: argparse.Namespace) -> data.Corpus:
    """Read the text and check that it suffices."""
    try:
        text = data.read_text(options.text) if options.text else data.python_topics()
        name = options.text.name if options.text else "Python documentation topics"
        corpus = data.Corpus.from_text(name, text[: options.max_chars])
        data.check_length(corpus, options.batch, options.seq_len)
    except ValueError as error:
        parser.error(f"argument --text: {error}")
    if (
        options.prime is None
    ):  # any beginning will do, so take one that the model has not seen, from its first whole word
        opening = corpus.decode(corpus.held_out[:40])
        options.prime = opening[opening.find(" ") + 1 :] or opening
    try:
        corpus.encode(options.prime)
    except ValueError as error:
        parser.error(f"argument --prime: {error}")
    return corpus


def make_parser() -> argparse.ArgumentParser:
    """The options of char_lm.py; train_distributed.py changes a few."""
    parser = argparse.ArgumentParser(
        prog="char_lm.py",
        description="Train a character language model with torch.nn's recurrent layer and with fastrnn's, and compare.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    count, positive, natural = whole(1), real(0, above=True), real(0)

    text = parser.add_argument_group("text")
    text.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text to learn (default: Python's documentation)")
    text.add_argument("--max-chars", type=count, metavar="N", help="use only the first N characters")

    model = parser.add_argument_group("model")
    model.add_argument("--cell", choices=CELLS, default="lstm", help="default: %(default)s")
    model.add_argument("--layers", type=count, default=1, metavar="N", help="default: %(default)s")
    model.add_argument("--hidden", type=count, default=256, metavar="N", help="default: %(default)s")
    model.add_argument("--embedding", type=count, default=64, metavar="N", help="default: %(default)s")
    model.add_argument("--one-hot", dest="embedding", action="store_const", const=0, help="no embedding")
    model.add_argument("--dropout", type=real(0, below=1), default=0.0, metavar="P", help="default: %(default)s")
    model.add_argument("--bidirectional", action="store_true", help="refused: it would read the answers")

    training = parser.add_argument_group("training")
    training.add_argument(
        "--published",
        action="store_true",
        help="one-hot characters, batch 32 x 35, 250 epochs on 10,000 characters; other options still count",
    )
    training.add_argument("--impl", choices=["both", *LIBRARIES], default="both", help="default: %(default)s")
    training.add_argument("--epochs", type=count, default=8, metavar="N", help="default: %(default)s")
    training.add_argument("--batch", type=count, default=32, metavar="N", help="default: %(default)s")
    training.add_argument("--seq-len", type=count, default=64, metavar="N", help="default: %(default)s")
    training.add_argument("--lr", type=positive, default=3e-3, metavar="X", help="of Adam, default: %(default)s")
    training.add_argument(
        "--clip", type=natural, default=1.0, metavar="X", help="gradient norm; default: %(default)s, 0: off"
    )
    training.add_argument(
        "--sampling",
        choices=["consecutive", "random"],
        default="consecutive",
        help="consecutive: each chunk continues the one before, and so does the state; "
        "random: chunks from random places, each from a zero state; default: %(default)s",
    )
    training.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: %(default)s")
    training.add_argument("--device", type=usable_device, default=default_device(), help="default here: %(default)s")
    training.add_argument("--threads", type=count, metavar="N", help="of the CPU, default: torch's choice")

    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("runs/char_lm"), metavar="DIR", help="default: %(default)s")
    output.add_argument(
        "--every", type=count, default=1, metavar="N", help="save and report every N-th epoch, default: %(default)s"
    )
    output.add_argument("--resume", action="store_true", help="continue from the checkpoints in DIR")
    output.add_argument("--sample", type=whole(0), default=400, metavar="N", help="characters, default: %(default)s")
    output.add_argument("--prime", type=_nonempty, metavar="TEXT", help="to be continued, default: held-out text")
    output.add_argument("--temperature", type=natural, default=0.7, metavar="X", help="default: %(default)s, 0: greedy")
    return parser


def _nonempty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected at least one character, got ''")
    return text
