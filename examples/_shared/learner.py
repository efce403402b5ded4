"""One side of a comparison: a model with its optimizer, its random state and its history."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import LIBRARIES, recipe_of

OPENING_STEPS = 20  # of an epoch, whose losses are kept one by one


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data gave."""

    number: int
    loss: float  # mean over the steps, while learning
    metrics: dict[str, float]  # what `Learner.evaluate` gave after the epoch
    seconds: float  # of the training steps alone
    opening: list[float]  # the losses of the first OPENING_STEPS steps


class Learner:
    """One implementation's model, optimizer, random state and history. Programs fill in the first five methods."""

    @classmethod
    def load(cls, args: argparse.Namespace) -> Any:
        """Read the data, once for both sides; UsageError says what is missing."""
        raise NotImplementedError

    def build(self) -> nn.Module:
        """The model, with the recurrent layers of `self.library`."""
        raise NotImplementedError

    def batches(self) -> Sequence[Any]:
        """The batches of one epoch, in an order drawn from `self.order`."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """The loss of one batch."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Held-out results; the model is in eval mode and no gradients are recorded."""
        raise NotImplementedError

    def report(self) -> list[str]:
        """Lines for the end of the program."""
        return []

    def __init__(self, impl: str, args: argparse.Namespace, data: Any) -> None:
        self.impl, self.args, self.data = impl, args, data
        self.library = LIBRARIES[impl]  # the swap: library.LSTM is nn.LSTM or fastrnn.LSTM
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        self.model = self.build().to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=args.lr)
        self.order = torch.Generator().manual_seed(args.seed)
        self.random_state = random_state_of(self.device)
        self.history: list[Epoch] = []

    def is_finished(self) -> bool:
        """Whether training is over; early stopping overrides it."""
        return len(self.history) >= self.args.epochs

    def step(self, batch: Any) -> Tensor:
        """One optimizer step; returns the detached loss."""
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        if self.args.clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
        self.optimizer.step()
        return loss.detach()

    def warm_up(self) -> None:
        """One forward and backward pass before the clock starts: libraries load and caches fill. Nothing changes."""
        before = self.order.get_state()
        self.loss(self.batches()[0]).backward()
        self.optimizer.zero_grad()
        self.order.set_state(before)

    def train_epoch(self, bar: Callable[[Sequence[Any]], Iterable[Any]] = iter) -> Epoch:
        """Train for one epoch and evaluate; the caller appends the result to the history. `bar` shows progress."""
        set_random_state(self.random_state, self.device)
        self.model.train()
        wait_for(self.device)
        start = time.perf_counter()
        losses = []
        for batch in bar(self.batches()):
            losses.append(self.step(batch))
        wait_for(self.device)
        seconds = time.perf_counter() - start
        self.random_state = random_state_of(self.device)
        values = torch.stack(losses).double().cpu()
        self.model.eval()
        with torch.no_grad():
            metrics = self.evaluate()
        return Epoch(len(self.history) + 1, float(values.mean()), metrics, seconds, values[:OPENING_STEPS].tolist())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly from here: tensors and plain values only."""
        return {
            "recipe": recipe_of(self.args),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "random_state": self.random_state,
            "history": [asdict(epoch) for epoch in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.set_state(state["order"])
        self.random_state = state["random_state"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]


def wait_for(device: torch.device) -> None:
    """A GPU works asynchronously: wait for it before looking at the clock."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def random_state_of(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that dropout on `device` may draw from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on from what `random_state_of` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
