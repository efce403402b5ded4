"""The character language model of char_lm.py, trained by several processes under torchrun.

    torchrun --nproc-per-node 2 examples/train_distributed.py --epochs 4
    torchrun --nproc-per-node 2 examples/train_distributed.py --epochs 4 --resume

Each process trains on its rows of every batch and DistributedDataParallel averages the gradients, over NCCL on GPUs
(one each) and Gloo on CPUs. After every epoch the first process writes a checkpoint, whole or not at all, so that a job
may be killed at any moment: with --resume it goes on from the last finished epoch and ends with the parameters of a run
that was never interrupted (on the same machines, with as many processes and threads). With `torchrun --max-restarts N`
the processes that come after a failure resume by themselves.

Options, text, model, training and checkpoints are char_lm.py's; the difference is in _char_lm/distributed.py.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from _char_lm import checkpoint, options, report
from _char_lm.data import Corpus
from _char_lm.distributed import DistributedRun
from _char_lm.train import Recipe
from _shared import files


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the processes; the exit status is 0, 1 (training failed) or 2 (bad arguments)."""
    parser = options.make_parser()
    parser.prog, parser.description, _, parser.epilog = "train_distributed.py", *__doc__.partition("\n\n")
    parser.set_defaults(impl="fastrnn", out=Path("runs/distributed"))
    args, corpus, recipe = options.parse(argv, parser)
    world = int(os.environ.get("WORLD_SIZE", "0"))
    if not world:
        parser.error("expected to be started by torchrun, got no WORLD_SIZE in the environment")
    if args.impl == "both":
        parser.error("argument --impl: expected one of torch, fastrnn, got 'both': char_lm.py compares the two")
    if recipe.batch % world:
        parser.error(f"argument --batch: expected a multiple of the {world} processes, got {recipe.batch}")
    if args.threads:
        torch.set_num_threads(args.threads)
    is_cuda = torch.device(recipe.device).type == "cuda"
    if is_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if is_cuda else "gloo")
    try:
        train(prepare(args, corpus, recipe), args)
        dist.barrier()  # whoever leaves first would cut the others' connections
    except (checkpoint.CheckpointError, FloatingPointError) as error:
        print(f"train_distributed.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, checkpoint.CheckpointError) else 1
    finally:
        dist.destroy_process_group()
    return 0


def prepare(args: argparse.Namespace, corpus: Corpus, recipe: Recipe) -> DistributedRun:
    """Make the run; when resuming, in the state of its checkpoint."""
    run = DistributedRun(args.impl, recipe, corpus)
    is_restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    state = checkpoint.read(args.out, args.impl, recipe) if args.resume or is_restart else None
    if state is not None:
        run.load_state_dict(state)
    elif args.resume and not is_restart:
        path = checkpoint.checkpoint_path(args.out, args.impl)
        raise checkpoint.CheckpointError(f"argument --resume: expected {path}, got no such file")
    elif run.writes:
        files.set_aside(args.out)
    return run


def train(run: DistributedRun, args: argparse.Namespace) -> None:
    """Train to the last epoch, saving each epoch before it is reported."""
    run.warm_up()
    if run.writes:
        print(f"{report.describe_model(run.recipe)}, in {run.world} processes on {report.describe_place(run.recipe)}")
        print(report.TABLE_HEAD)
    while len(run.history) < args.epochs:
        epoch = run.train_epoch()
        if not math.isfinite(epoch.train_perplexity):
            raise FloatingPointError(
                f"expected finite perplexities, got {epoch.train_perplexity} in epoch {epoch.number}: "
                f"try a smaller --lr (now {run.recipe.lr:g}) or --clip"
            )
        run.history.append(epoch)
        if epoch.number % args.every and epoch.number < args.epochs:
            continue
        checkpoint.save(run, args.out)
        if run.writes:
            files.write_atomically(args.out / "metrics.csv", lambda path: report.write_csv([run], path))
            print(report.table_line(run, epoch), flush=True)


if __name__ == "__main__":
    sys.exit(main())
