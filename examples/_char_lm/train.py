"""Training and evaluation of one side of the comparison."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _shared.learner import OPENING_STEPS, random_state_of, set_random_state, wait_for
from torch import Tensor, nn

from . import data
from .model import CharLM, State, detach

CURVE_POINTS = 40  # per epoch, for the figure


@dataclass(frozen=True)
class Recipe:
    """Everything the numbers of a run depend on; a checkpoint is continued only by an equal one."""

    cell: str
    layers: int
    hidden: int
    embedding: int
    dropout: float
    batch: int
    seq_len: int
    lr: float
    clip: float
    sampling: str
    seed: int
    device: str
    text_sha256: str


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training text gave."""

    number: int
    train_perplexity: float  # while learning, so with dropout and with weights that still change
    held_out_perplexity: float
    tokens: int
    seconds: float  # of the training steps alone: evaluation and saving are not in it
    curve: list[float]  # training perplexity of up to CURVE_POINTS slices of the epoch
    opening: list[float]  # training perplexity of each of the first OPENING_STEPS steps

    @property
    def tokens_per_second(self) -> float:
        """Training speed."""
        return self.tokens / self.seconds


class Run:
    """A model with its optimizer, its random state and its history.

    Two runs can take turns in one process: each puts its own random state in place before it trains.
    """

    writes = True  # whether this process writes the files

    def __init__(self, impl: str, recipe: Recipe, corpus: data.Corpus) -> None:
        self.impl, self.recipe = impl, recipe
        self.device = torch.device(recipe.device)
        self.train_text = corpus.train.to(self.device)
        self.held_out_text = corpus.held_out.to(self.device)
        torch.manual_seed(recipe.seed)
        sizes = (len(corpus.vocabulary), recipe.embedding, recipe.hidden, recipe.layers)
        self.model = CharLM(impl, recipe.cell, *sizes, recipe.dropout).to(self.device)
        self.network: nn.Module = self.model  # what is trained; distributed.py puts a wrapper around the model here
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.lr)
        self.places = torch.Generator().manual_seed(recipe.seed)  # of random chunks: the same ones on both sides
        self.random_state = random_state_of(self.device)
        self.history: list[Epoch] = []
        self.saved = 0  # how many epochs the checkpoint holds

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return data.chunk_count(self.train_text, self.recipe.batch, self.recipe.seq_len)

    def warm_up(self) -> None:
        """Run a forward and backward pass on a copy: libraries load and caches fill before the clock starts."""
        model = copy.deepcopy(self.model)
        inputs, targets = next(data.consecutive_chunks(self.train_text, self.recipe.batch, self.recipe.seq_len))
        _loss(model(inputs)[0], targets).backward()
        wait_for(self.device)

    def train_epoch(self, on_step: Callable[[Tensor], None] = lambda loss: None) -> Epoch:
        """Train for one epoch and evaluate; the caller appends the result to the history when it counts as done.

        `on_step` is called with the loss of every step, a tensor that is still on the device.
        """
        set_random_state(self.random_state, self.device)
        losses: list[Tensor] = []
        wait_for(self.device)
        start = time.perf_counter()
        for loss in self._training_steps():
            losses.append(loss)
            on_step(loss)
        wait_for(self.device)
        seconds = time.perf_counter() - start
        self.random_state = random_state_of(self.device)

        per_step = self._averaged(torch.stack(losses).double()).cpu()
        slices = per_step.tensor_split(min(CURVE_POINTS, len(per_step)))
        return Epoch(
            number=len(self.history) + 1,
            train_perplexity=_perplexity(per_step.mean()),
            held_out_perplexity=self.evaluate(),
            tokens=len(losses) * self.recipe.batch * self.recipe.seq_len,
            seconds=seconds,
            curve=[_perplexity(part.mean()) for part in slices],
            opening=[_perplexity(step) for step in per_step[:OPENING_STEPS]],
        )

    def _training_steps(self) -> Iterator[Tensor]:
        """Do the steps of one epoch, and yield the detached loss of each."""
        recipe = self.recipe
        self.model.train()
        state: State | None = None
        for inputs, targets in self._chunks():
            self.optimizer.zero_grad()
            logits, after = self.network(inputs, state)
            loss = _loss(logits, targets)
            loss.backward()
            if recipe.clip > 0:
                nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
            self.optimizer.step()
            # Random chunks do not continue one another, so they start from the zero state (None).
            state = detach(after) if recipe.sampling == "consecutive" else None
            yield loss.detach()

    def _averaged(self, losses: Tensor) -> Tensor:
        """The losses over everything that was trained on; one process has seen it all."""
        return losses

    def _chunks(self) -> Iterator[data.Chunk]:
        sizes = (self.train_text, self.recipe.batch, self.recipe.seq_len)
        if self.recipe.sampling == "consecutive":
            return data.consecutive_chunks(*sizes)
        return data.random_chunks(*sizes, generator=self.places)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Held-out perplexity, the state carried along each stream from chunk to chunk."""
        self.model.eval()
        total, count = 0.0, 0
        state: State | None = None
        for inputs, targets in data.held_out_chunks(self.held_out_text, self.recipe.batch, self.recipe.seq_len):
            logits, state = self.model(inputs, state)
            total += float(_loss(logits, targets)) * targets.numel()
            count += targets.numel()
        return _perplexity(total / count)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly from here: tensors and plain values only."""
        return {
            "impl": self.impl,
            "arguments": asdict(self.recipe),
            "epoch": len(self.history),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random_state": self.random_state,
            "places": self.places.get_state(),
            "history": [asdict(epoch) for epoch in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random_state = state["random_state"]
        self.places.set_state(state["places"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.saved = len(self.history)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log likelihood, in nats per character."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _perplexity(nats: float | Tensor) -> float:
    nats = float(nats)
    return math.exp(nats) if nats < 700 else math.inf  # math.exp raises where the result does not fit
