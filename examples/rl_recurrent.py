"""Proximal policy optimisation with a recurrent policy on a CartPole that hides its velocities.

    python examples/rl_recurrent.py
    python examples/rl_recurrent.py --impl fastrnn --epochs 30

The policy sees where the cart is and how the pole leans, not how fast either moves, so it needs a memory: an LSTM of
128 units. A rollout is 128 steps of 8 environments, and episodes end and begin inside it. In learning, torch.nn's layer
goes through it step by step and clears the state of each environment where an episode begins. fastrnn's layer takes
the whole rollout in one call: `lstm(x, state, reset_mask=is_first)`. Both act one step at a time.

An epoch is --updates rollouts with 4 passes of learning over each. The return is the mean of the episodes that ended
in the epoch; the environment ends an episode after 500 steps, each worth 1.

The sides are equal until rounding tips one of the actions, which are drawn: from then on they see different episodes.
With --float64 that is much later.

Environment: CartPole of gymnasium (MIT licence): `pip install --no-deps gymnasium farama-notifications cloudpickle`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from _shared import LIBRARIES, Learner, UsageError, make_parser, real, run, whole
from torch import Tensor, nn

STEP_LIMIT = 500
PASSES, PARTS = 4, 2  # over a rollout, and parts that the environments are split into for an optimizer step
DISCOUNT, TRACE, RATIO_CLIP, VALUE_WEIGHT = 0.99, 0.95, 0.2, 0.5
REWARD = 0.05  # of a step in learning: values near 1 leave the policy its share of the clipped gradient

State = tuple[Tensor, Tensor]


class Rollout(NamedTuple):
    seen: Tensor  # (T, B, 2)
    is_first: Tensor  # bool (T, B): an episode begins here
    actions: Tensor  # int64 (T, B)
    log_probs: Tensor  # (T, B), of the actions when they were taken
    values: Tensor  # (T + 1, B), as estimated then
    rewards: Tensor  # (T, B)
    is_last: Tensor  # bool (T, B): the step ended its episode
    state: State  # before the first step


class Model(nn.Module):
    """What is seen (T, B, 2) -> logits of the actions (T, B, 2), values (T, B) and the state after."""

    def __init__(self, impl: str, hidden: int) -> None:
        super().__init__()
        self.impl = impl
        self.lstm = LIBRARIES[impl].LSTM(2, hidden)
        self.policy = nn.Linear(hidden, 2)
        self.value = nn.Linear(hidden, 1)

    def forward(self, seen: Tensor, is_first: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        if self.impl == "fastrnn":
            output, state = self.lstm(seen, state, reset_mask=is_first.t())
        else:
            outputs = []
            for now, begins in zip(seen, is_first):
                goes_on = (~begins).to(now.dtype)[None, :, None]
                output, state = self.lstm(now[None], (state[0] * goes_on, state[1] * goes_on))
                outputs.append(output)
            output = torch.cat(outputs)
        return self.policy(output), self.value(output)[:, :, 0], state


class Player(Learner):
    @classmethod
    def load(cls, args: argparse.Namespace) -> Any:
        try:
            from gymnasium.envs.classic_control.cartpole import CartPoleEnv
        except ImportError as error:
            packages = "gymnasium farama-notifications cloudpickle"
            raise UsageError(f"CartPole needs a package ({error}): pip install --no-deps {packages}") from None
        return CartPoleEnv

    def __init__(self, impl: str, args: argparse.Namespace, data: Any) -> None:
        super().__init__(impl, args, data)
        self.environments = [data() for _ in range(args.batch)]
        starts = [env.reset(seed=1000 * args.seed + i)[0] for i, env in enumerate(self.environments)]
        self.seen = torch.tensor([[start[0], start[2]] for start in starts], dtype=self.dtype)
        self.is_first = torch.ones(args.batch, dtype=torch.bool)
        zeros = torch.zeros(1, args.batch, args.hidden, dtype=self.dtype, device=self.device)
        self.state: State = (zeros, zeros)
        self.ages = [0] * args.batch  # steps of the running episodes, which are their returns so far
        self.returns: list[int] = []  # of the episodes that ended in this epoch
        self.seconds = {"acting": 0.0, "learning": 0.0}

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.args.float64 else torch.float32

    def build(self) -> nn.Module:
        return Model(self.impl, self.args.hidden).to(self.dtype)

    def warm_up(self) -> None:
        seen, is_first = self.seen[None].to(self.device), self.is_first[None].to(self.device)
        self.model(seen, is_first, self.state)[1].sum().backward()
        self.optimizer.zero_grad()

    def batches(self) -> range:
        self.returns = []
        return range(self.args.updates)

    def step(self, batch: int) -> Tensor:
        """Act for one rollout, learn from it."""
        start = time.perf_counter()
        rollout = self.act()
        middle = time.perf_counter()
        loss = self.learn(rollout)
        self.seconds["acting"] += middle - start
        self.seconds["learning"] += time.perf_counter() - middle
        return loss

    @torch.no_grad()
    def act(self) -> Rollout:
        before, steps = self.state, []
        for _ in range(self.args.steps):
            seen, is_first = self.seen.to(self.device), self.is_first.to(self.device)
            logits, value, self.state = self.model(seen[None], is_first[None], self.state)
            log_probs = logits[0].log_softmax(1)
            # Drawn on the CPU, so that the choice does not depend on the device.
            actions = (torch.rand(len(seen)).to(self.device) < log_probs[:, 1].exp()).long()
            rewards, is_last = self.step_environments(actions.tolist())
            chosen = log_probs.gather(1, actions[:, None])[:, 0]
            steps.append((seen, is_first, actions, chosen, value[0], rewards, is_last))
        seen, is_first, actions, log_probs, values, rewards, is_last = (torch.stack(part) for part in zip(*steps))
        _, last, _ = self.model(self.seen[None].to(self.device), self.is_first[None].to(self.device), self.state)
        return Rollout(seen, is_first, actions, log_probs, torch.cat([values, last]), rewards, is_last, before)

    def step_environments(self, actions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Move all environments; an episode that ends is followed by a new one at once."""
        seen_by_all, ended = [], []
        for i, (env, action) in enumerate(zip(self.environments, actions)):
            seen, _, has_fallen, _, _ = env.step(action)
            self.ages[i] += 1
            ended.append(bool(has_fallen) or self.ages[i] >= STEP_LIMIT)
            if ended[-1]:
                self.returns.append(self.ages[i])
                self.ages[i] = 0
                seen, _ = env.reset()
            seen_by_all.append([seen[0], seen[2]])
        self.seen = torch.tensor(seen_by_all, dtype=self.dtype)
        self.is_first = torch.tensor(ended)
        return torch.full((len(ended),), REWARD, dtype=self.dtype, device=self.device), self.is_first.to(self.device)

    def learn(self, rollout: Rollout) -> Tensor:
        """Several passes over the rollout, some of the environments at a time; returns the mean loss."""
        advantages, following = torch.zeros_like(rollout.rewards), torch.zeros_like(rollout.rewards[0])
        for t in reversed(range(len(advantages))):
            goes_on = 1 - rollout.is_last[t].to(self.dtype)
            surprise = rollout.rewards[t] + DISCOUNT * goes_on * rollout.values[t + 1] - rollout.values[t]
            advantages[t] = following = surprise + DISCOUNT * TRACE * goes_on * following
        goals = advantages + rollout.values[:-1]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        losses = []
        for _ in range(PASSES):
            order = torch.randperm(self.args.batch, generator=self.order)
            for rows in order.to(self.device).chunk(PARTS):
                loss = self.loss((rollout, rows, advantages[:, rows], goals[:, rows]))
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip or torch.inf)
                self.optimizer.step()
                losses.append(loss.detach())
        return torch.stack(losses).mean()

    def loss(self, batch: tuple[Rollout, Tensor, Tensor, Tensor]) -> Tensor:
        rollout, rows, advantages, goals = batch
        state = (rollout.state[0][:, rows], rollout.state[1][:, rows])
        logits, values, _ = self.model(rollout.seen[:, rows], rollout.is_first[:, rows], state)
        log_probs = logits.log_softmax(2)
        chosen = log_probs.gather(2, rollout.actions[:, rows, None])[:, :, 0]
        ratio = (chosen - rollout.log_probs[:, rows]).exp()
        gain = torch.minimum(ratio * advantages, ratio.clamp(1 - RATIO_CLIP, 1 + RATIO_CLIP) * advantages).mean()
        entropy = -(log_probs.exp() * log_probs).sum(2).mean()
        return -gain + VALUE_WEIGHT * (values - goals).square().mean() - self.args.entropy * entropy

    def evaluate(self) -> dict[str, float]:
        return {"return": sum(self.returns) / max(1, len(self.returns))}

    def report(self) -> list[str]:
        returns = [epoch.metrics["return"] for epoch in self.history]
        updates = len(self.history) * self.args.updates
        each = {name: 1000 * seconds / updates for name, seconds in self.seconds.items()}
        return [
            f"return {returns[0]:.1f} in the first epoch, {returns[-1]:.1f} in the last, best {max(returns):.1f}",
            f"an update: acting {each['acting']:.0f} ms, learning {each['learning']:.0f} ms",
        ]

    def state_dict(self) -> dict[str, Any]:
        generators = [env.np_random.bit_generator.state for env in self.environments]
        places = [[float(x) for x in env.state] for env in self.environments]
        own = {"seen": self.seen, "is_first": self.is_first, "state": self.state, "ages": self.ages}
        return {**super().state_dict(), **own, "generators": generators, "places": places, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen, self.is_first, self.ages = state["seen"], state["is_first"], state["ages"]
        self.state = tuple(part.to(self.device) for part in state["state"])
        self.seconds = state["seconds"]
        for env, generator, place in zip(self.environments, state["generators"], state["places"]):
            env.np_random.bit_generator.state = generator
            env.state = tuple(place)


def options() -> argparse.ArgumentParser:
    parser = make_parser("rl_recurrent.py", __doc__.splitlines()[0], epochs=12, batch=8, lr=1e-3)
    parser.set_defaults(clip=0.5)
    parser.add_argument("--hidden", type=whole(1), default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=whole(2), default=128, metavar="N", help="of a rollout, default: %(default)s")
    parser.add_argument("--updates", type=whole(1), default=10, metavar="N", help="in an epoch, default: %(default)s")
    parser.add_argument("--float64", action="store_true", help="compute in double precision")
    parser.add_argument("--entropy", type=real(0), default=0.01, metavar="X", help="its weight, default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run(Player, options(), argv)


if __name__ == "__main__":
    sys.exit(main())
