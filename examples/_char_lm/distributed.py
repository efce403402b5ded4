"""One run shared by several processes: each trains on its rows of every batch, and the gradients are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from . import data
from .checkpoint import CheckpointError
from .train import Recipe, Run, random_state_of


class DistributedRun(Run):
    """A run under an initialised process group. ``recipe.batch`` is the batch of all processes together.

    Every process holds the whole text and the whole model. Without dropout the gradients, and so the training, are
    those of a single process with the same recipe but for rounding; the dropout masks are each process's own.
    """

    def __init__(self, impl: str, recipe: Recipe, corpus: data.Corpus) -> None:
        super().__init__(impl, recipe, corpus)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.writes = self.rank == 0
        self.network = DistributedDataParallel(self.model)
        torch.manual_seed(recipe.seed + self.rank)
        self.random_state = random_state_of(self.device)

    def _chunks(self) -> Iterator[data.Chunk]:
        rows = self.recipe.batch // self.world
        mine = slice(self.rank * rows, (self.rank + 1) * rows)
        for inputs, targets in super()._chunks():
            yield inputs[:, mine], targets[:, mine]

    def _averaged(self, losses: Tensor) -> Tensor:
        dist.all_reduce(losses)
        return losses / self.world

    def state_dict(self) -> dict[str, Any]:
        """As a single run's, with the random states of all processes, which must call this together."""
        states: list[Any] = [None] * self.world
        dist.all_gather_object(states, self.random_state)
        return {**super().state_dict(), "random_state": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave to as many processes."""
        states = state["random_state"]
        if not isinstance(states, list) or len(states) != self.world:
            count = len(states) if isinstance(states, list) else 1
            raise CheckpointError(
                f"expected a checkpoint of {self.world} processes under torchrun, got one of {count}: "
                f"with --nproc-per-node {count} it can be continued"
            )
        super().load_state_dict({**state, "random_state": states[self.rank]})
