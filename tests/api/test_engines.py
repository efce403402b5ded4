"""Training engines around a model: AMP with a GradScaler, CUDA graphs, Lightning, Accelerate."""

from __future__ import annotations

import copy

import pytest
import torch
from support import LAYERS, build, check, layers, twins, under_autocast
from torch import nn

import fastrnn
from fastrnn.registry import CELLS


class Tagger(nn.Module):
    """A recurrent layer with a linear one behind it."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class LowTagger(Tagger):
    """The same with its layer under autocast to bfloat16."""

    def forward(self, x):
        return self.head(under_autocast(self.rnn, torch.bfloat16, x)[0])


def taggers(cell, kinds=(Tagger, Tagger, Tagger)) -> list[Tagger]:
    """Ours, torch's and torch's in float64, with the same parameters."""
    models = [kind(rnn) for kind, rnn in zip(kinds, twins(cell, 4, 6), strict=True)]
    for model in models[:2]:
        model.head.load_state_dict(models[2].head.state_dict())
    return [*models[:2], models[2].double()]


def step(model, x, lr: float = 0.1) -> dict[str, torch.Tensor]:
    """The parameters after one step of plain SGD."""
    model = copy.deepcopy(model)
    loss = model(x).square().mean()
    loss.backward()
    return {name: p.detach() - lr * p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH"])  # relu's kink makes large errors of small ones
def test_a_scaled_step_under_autocast(mode):
    """bfloat16, where torch has all layers on the CPU: the parameters after the step are within the budget."""
    models = taggers(CELLS[mode], (Tagger, LowTagger, Tagger))
    x, results = torch.randn(5, 3, 4), []
    for model in models[:2]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        results.append(dict(model.named_parameters()))
    exact = step(models[2], x.double())
    for name in exact:
        # Parameters are float32, but what moved them had bfloat16's precision.
        error, torchs = ((r[name].double() - exact[name]).abs().max() for r in results)
        assert error <= 2 * torchs + torch.finfo(torch.bfloat16).eps * 0.1 * exact[name].abs().max(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")
@layers
@pytest.mark.parametrize("backend", ["cuda", None], ids=["cuda", "automatic"])
def test_a_training_step_in_a_cuda_graph(cell, backend):
    """Captured once and replayed with new input: forward, backward and optimizer, as the same steps without one."""
    if backend and fastrnn._kernels.ops.missing(backend):
        pytest.skip(fastrnn._kernels.ops.missing(backend))
    module = build(fastrnn, cell, 8, 16, 2, device="cuda")
    eager, batches = copy.deepcopy(module), torch.randn(4, 5, 3, 8, device="cuda")
    with fastrnn.backend(backend):
        for model, captured in ((module, True), (eager, False)):
            static = batches[0].clone()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

            def train(model=model, static=static, optimizer=optimizer):
                optimizer.zero_grad(set_to_none=False)
                model(static)[0].square().mean().backward()
                optimizer.step()

            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                train()
            torch.cuda.current_stream().wait_stream(side)
            if captured:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    train()
            for x in batches[1:]:
                static.copy_(x)
                graph.replay() if captured else train()
    torch.testing.assert_close(module.state_dict(), eager.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    """One epoch of a Trainer moves the parameters as SGD by hand does, and the checkpoint loads into torch's layer."""
    lightning = pytest.importorskip("lightning", reason="pip install '.[engines]': lightning is not installed")
    ours, theirs, truth = taggers(LAYERS[0])
    x = torch.randn(5, 3, 4)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = ours

        def training_step(self, batch, index):
            return self.model(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    expected, exact = step(theirs, x), step(truth, x.double())
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(Module(), torch.utils.data.DataLoader([x], batch_size=None))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    state = torch.load(tmp_path / "model.ckpt", weights_only=False)["state_dict"]
    theirs.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    for name, p in theirs.named_parameters():
        check(p.detach(), expected[name], exact[name], name)


def test_accelerate():
    """A step through Accelerator.prepare and .backward is the step by hand."""
    accelerate = pytest.importorskip("accelerate", reason="pip install '.[engines]': accelerate is not installed")
    ours, theirs, truth = taggers(LAYERS[1])
    x = torch.randn(5, 3, 4)
    expected, exact = step(theirs, x), step(truth, x.double())
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(ours, torch.optim.SGD(ours.parameters(), lr=0.1))
    accelerator.backward(model(x).square().mean())
    optimizer.step()
    for name, p in accelerator.unwrap_model(model).named_parameters():
        check(p.detach(), expected[name], exact[name], name)
