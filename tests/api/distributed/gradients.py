"""Run by torchrun: each rank has a part of the batch; the gradients must be those of one process with all of it.

    torchrun --nproc-per-node 2 tests/api/distributed/gradients.py

One process is torch.nn in float64. Exits with the error of the first rank that finds a difference.
"""

from __future__ import annotations

import copy
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastrnn

T, B, I, H = 6, 4, 3, 8


class Model(nn.Module):
    """A layer, a cell and a linear layer."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, layer)(I, H, 2, bidirectional=True, batch_first=True)
        self.step = getattr(nn, layer + "Cell")(2 * H, H)
        self.head = nn.Linear(H, 2)

    def forward(self, x):
        state = self.step(self.rnn(x)[0].mean(1))
        return self.head(state[0] if isinstance(state, tuple) else state)


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model(x).square().mean().backward()
    found = {}
    for name, p in model.named_parameters():
        grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        found[name.removeprefix("module.")] = grad.clone()
    return found


def shard(model: nn.Module) -> nn.Module:
    """FSDP2 on every module with weights and on the whole."""
    for module in (model.rnn, model.step, model.head):
        fully_shard(module)
    return fully_shard(model)


ENGINES = {
    "DDP": DistributedDataParallel,
    "DDP, static graph": lambda model: DistributedDataParallel(model, static_graph=True),
    "FSDP2": shard,
}


def differs(found: dict, expected: dict) -> str | None:
    for name, grad in expected.items():
        if not torch.allclose(found[name], grad, rtol=1e-9, atol=1e-12):
            return f"{name}: differs by {(found[name] - grad).abs().max():.2e}"
    return None


def main() -> None:
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # a hint about writing in place, which nothing here does
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    for layer in ("LSTM", "GRU", "RNN"):
        torch.manual_seed(0)
        theirs = Model(layer).double()
        x = torch.randn(B * world, T, I, dtype=torch.float64)
        ours, expected = fastrnn.convert(theirs), gradients(theirs, x)
        mine = x[rank * B : (rank + 1) * B]
        assert differs(gradients(copy.deepcopy(ours), mine), expected), "a part of the batch must not be enough"
        for name, engine in ENGINES.items():
            wrong = differs(gradients(engine(copy.deepcopy(ours)), mine), expected)
            assert wrong is None, f"{layer} under {name}, rank {rank}: {wrong}"
            if rank == 0:
                print(f"{layer} under {name}: as one process")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
