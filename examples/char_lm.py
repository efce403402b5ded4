"""A character language model, trained with torch.nn's recurrent layer and, after a one-line swap, with fastrnn's.

Both sides start from the same seed and see the same batches, so they must learn the same thing: the program prints both
perplexities epoch by epoch, the speeds and a text the fastrnn model writes, and draws one curve on top of the other.
After every epoch (with --every N every N-th) a checkpoint is written; Ctrl-C loses no epoch that was reported, and
--resume goes on exactly where the run stopped (exactly: on the same machine, with as many threads). Start with

    python examples/char_lm.py --help

The parts, in _char_lm/: data.py text and batches, model.py the model with the swap, train.py the training loop,
checkpoint.py saving and resuming, options.py the command line, report.py and plot.py the results.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from _char_lm import checkpoint, options, plot, report
from _char_lm.data import Corpus, unigram_perplexity
from _char_lm.model import LIBRARIES, sample
from _char_lm.train import Recipe, Run
from _shared import files
from torch import Tensor
from tqdm import tqdm

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status is 0, 1 (the sides disagree), 2 (bad arguments) or 130 (Ctrl-C)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args, corpus, recipe = options.parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        runs = prepare(args, corpus, recipe)
    except checkpoint.CheckpointError as error:
        print(f"char_lm.py: error: argument --resume: {error}", file=sys.stderr)
        return 2
    unigram = unigram_perplexity(corpus, recipe.batch, recipe.seq_len)
    print_head(runs[-1], corpus, unigram)
    try:
        train(runs, args)
        return finish(runs, corpus, unigram, args)
    except KeyboardInterrupt:
        print_interrupted(runs, args, argv)
        return INTERRUPTED
    except FloatingPointError as error:
        print(f"char_lm.py: error: {error}", file=sys.stderr)
        return 1


def prepare(args: argparse.Namespace, corpus: Corpus, recipe: Recipe) -> list[Run]:
    """Make the runs; with --resume, in the state of their checkpoints."""
    impls = list(LIBRARIES) if args.impl == "both" else [args.impl]
    states = {impl: checkpoint.read(args.out, impl, recipe) for impl in impls} if args.resume else {}
    if args.resume and not any(states.values()):
        wanted = " or ".join(str(checkpoint.checkpoint_path(args.out, impl)) for impl in impls)
        raise checkpoint.CheckpointError(f"expected {wanted}, got no such file: run without --resume first")
    if not args.resume:
        for path in files.set_aside(args.out):
            print(f"an earlier run's checkpoint is kept as {path}")
    runs = []
    for impl in impls:
        run = Run(impl, recipe, corpus)
        if states.get(impl):
            run.load_state_dict(states[impl])
        runs.append(run)
    return runs


def train(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Train all runs to the last epoch, saving each epoch before it is reported."""
    for run in runs:
        run.warm_up()
    print(report.TABLE_HEAD)
    for run in runs:
        for epoch in run.history[args.every - 1 :: args.every]:
            print(report.table_line(run, epoch), " (from the checkpoint)")
    for run in turns(runs, args.epochs):
        with progress(run, args.epochs) as on_step:
            epoch = run.train_epoch(on_step)
        if not math.isfinite(epoch.train_perplexity):  # and leave the last good checkpoint alone
            raise FloatingPointError(
                f"expected finite perplexities, got {epoch.train_perplexity} in epoch {epoch.number} of "
                f"{report.layer_name(run.impl, run.recipe.cell)}: try a smaller --lr (now {run.recipe.lr:g}) or --clip"
            )
        with files.interrupt_postponed():
            run.history.append(epoch)
            if epoch.number % args.every == 0 or epoch.number == args.epochs:
                checkpoint.save(run, args.out)
                files.write_atomically(args.out / "metrics.csv", lambda path: report.write_csv(runs, path))
                print(report.table_line(run, epoch), flush=True)


def turns(runs: Sequence[Run], epochs: int) -> Iterator[Run]:
    """Whose epoch is next, until all are done. Who goes first changes every epoch, so that order favours neither."""
    for number in range(1, epochs + 1):
        for run in runs if number % 2 else reversed(runs):
            if len(run.history) < number:
                yield run


@contextmanager
def progress(run: Run, epochs: int) -> Iterator[Callable[[Tensor], None]]:
    """A progress bar over the steps of an epoch; gives the function to call after each step."""
    name = f"epoch {len(run.history) + 1}/{epochs} {report.layer_name(run.impl, run.recipe.cell)}"
    # Into a file or a pipe every refresh is one more line to read, so refresh rarely there.
    every = 0.2 if sys.stderr.isatty() else 5.0
    bar = None

    def on_step(loss: Tensor) -> None:
        if bar.update() and bar.n < run.steps:  # just redrawn: rare enough to fetch the loss from a GPU
            bar.set_postfix(loss=f"{float(loss):.3f}", refresh=False)

    try:
        with files.interrupt_postponed():  # half a bar would complain when it is collected
            bar = tqdm(total=run.steps, desc=name, unit="step", leave=False, mininterval=every, dynamic_ncols=True)
        yield on_step
    finally:
        with files.interrupt_postponed():  # an open one would clear its line then
            if bar is not None:
                bar.close()


def print_head(run: Run, corpus: Corpus, unigram: float) -> None:
    """What is about to be trained, on what, where."""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    print(f"model: {report.describe_model(run.recipe)}, {run.recipe.sampling} sampling, {parameters:,} parameters")
    print(
        f"text:  {corpus.name}: {len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out, "
        f"{len(corpus.vocabulary)} different ones"
    )
    print(f"place: {report.describe_place(run.recipe)}")
    if run.impl == "fastrnn":
        print("fastrnn's backends for this layer: " + report.describe_backend(run).replace("\n", "\n       "))
    print(f"unigram model (knows only how frequent each character is): held-out perplexity {unigram:.4f}\n")


def print_interrupted(runs: Sequence[Run], args: argparse.Namespace, argv: Sequence[str]) -> None:
    """What is safe, and how to go on."""
    saved = [(checkpoint.checkpoint_path(args.out, run.impl), run.saved) for run in runs if run.saved]
    if not saved:
        print("\ninterrupted before the first epoch was finished: nothing to resume")
        return
    print("\ninterrupted; finished epochs are safe: " + ", ".join(f"{path} ({number})" for path, number in saved))
    command = shlex.join(["python", sys.argv[0], *argv, *([] if args.resume else ["--resume"])])
    print(f"go on with: {command}")


def finish(runs: Sequence[Run], corpus: Corpus, unigram: float, args: argparse.Namespace) -> int:
    """Compare, draw and write a sample; returns the exit status."""
    print()
    status = 0
    if len(runs) == 2:
        comparison = report.compare(*runs)
        print(*report.comparison_lines(comparison, runs), sep="\n")
        status = int(report.comparable_masks(runs[0].recipe) and not comparison.equal)
    last = runs[-1]
    best = last.history[-1].held_out_perplexity
    print(f"held-out perplexity {best:.4f} after epoch {len(last.history)}; the unigram model has {unigram:.4f}")
    if args.sample:
        text = sample(last.model, corpus, args.prime, args.sample, args.temperature, args.seed)
        name = report.layer_name(last.impl, args.cell)
        print(f"\n{name} continues {args.prime!r}, temperature {args.temperature:g}:")
        print("-" * 72, text, "-" * 72, sep="\n")
    figure = args.out / "perplexity.png"
    files.write_atomically(figure, lambda path: plot.draw(runs, unigram, corpus.name, path))
    print(f"\nfigure: {figure}\nnumbers: {args.out / 'metrics.csv'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
