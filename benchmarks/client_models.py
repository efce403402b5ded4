"""The clients of `clients.py`: public packages, each with a model of its own and a small batch.

A function returns the model and a call that gives the loss and other results. It runs once for each side, so it imports
its package inside. Sizes are the package's defaults where it has some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

Build = Callable[[], tuple[nn.Module, Callable[[], Sequence[Tensor]]]]


@dataclass(frozen=True)
class Client:
    """A program: `bare` is installed without its requirements, `needs` with them; `without` names files to remove.

    `by` is how it gets to fastrnn: `patch_torch` around its building, or `convert_` on the model.
    """

    package: str
    licence: str
    model: str
    build: Build
    bare: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    by: str = "patch_torch"


CLIENTS: dict[str, Client] = {}
CUDA_OF_TORCHAUDIO = ("torchaudio/lib/*.so",)  # PyPI has it for CUDA alone; the models are in Python
DARTS = ("pandas", "scikit-learn", "statsmodels", "xarray", "holidays", "nfoursid", "lightning")


def client(
    requirement: str, licence: str, model: str, *more: str, needs: tuple[str, ...] | None = None, **options
) -> Callable[[Build], Build]:
    """Adds a function to CLIENTS, under its name. With `needs`, where the package asks for much that its model does not
    use, it is installed bare, and `more` too."""

    def add(build: Build) -> Build:
        package, wanted = requirement.partition("==")[0], (requirement, *more)
        bare, rest = ((), wanted) if needs is None else (wanted, needs)
        CLIENTS[build.__name__] = Client(package, licence, model, build, bare, rest, **options)
        return build

    return add


def lengths_of(rows: int, least: int, most: int) -> list[int]:
    """Lengths from `least` to `most`, in falling order."""
    return torch.linspace(most, least, rows).round().int().tolist()


@client("deepecho==0.8.1", "BUSL-1.1", "PARNet: GRU 32, 32 packed rows of 20 to 100 steps")
def deepecho():
    from deepecho.models.par import PARNet

    net = PARNet(data_size=24, context_size=8)
    rows = rnn.pack_sequence([torch.rand(length, 24) for length in lengths_of(32, 20, 100)], enforce_sorted=False)
    context, wanted = torch.rand(32, 8), rnn.pad_packed_sequence(rows)[0]

    def call():
        found = rnn.pad_packed_sequence(net(rows, context))[0]
        return F.mse_loss(found[:-1], wanted[1:]), found

    return net, call


@client("pfrl==0.4.0", "MIT", "RecurrentSequential: GRU 128 over 16 packed episodes of 40 to 200 steps")
def pfrl():
    from pfrl.nn import RecurrentSequential

    net = RecurrentSequential(nn.Linear(8, 64), nn.Tanh(), nn.GRU(64, 128), nn.Linear(128, 4))
    episodes = rnn.pack_sequence([torch.randn(length, 8) for length in lengths_of(16, 40, 200)])

    def call():
        found, (state,) = net(episodes, None)
        return found.data.square().mean(), found.data, state

    return net, call


@client(
    "speechbrain==1.1.2",
    "Apache-2.0",
    "nnet.RNN.GRU: 2 layers 256, both directions, lengths",
    "torchaudio==2.11.0",
    needs=("hyperpyyaml", "joblib", "sentencepiece", "huggingface_hub", "soundfile", "scipy"),
    without=CUDA_OF_TORCHAUDIO,
)
def speechbrain():
    from speechbrain.nnet.RNN import GRU

    net = GRU(256, input_shape=[8, 150, 80], num_layers=2, bidirectional=True)
    x, lengths = torch.randn(8, 150, 80), torch.tensor(lengths_of(8, 75, 150)) / 150

    def call():
        found, state = net(x, lengths=lengths)
        return found.square().mean(), found, state

    return net, call


@client("skorch==1.4.0", "BSD-3-Clause", "NeuralNetClassifier of a GRU 64")
def skorch():
    from skorch import NeuralNetClassifier

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(12, 64, batch_first=True), nn.Linear(64, 9)

        def forward(self, X):
            return self.head(self.rnn(X)[1][-1])

    net = NeuralNetClassifier(Last, criterion=nn.CrossEntropyLoss, train_split=None, verbose=0).initialize()
    batch = torch.randn(32, 30, 12), torch.arange(32) % 9

    def call():
        found = net.train_step_single(batch)
        return found["loss"].detach(), found["y_pred"]

    return net.module_, call


@client(
    "resemblyzer==0.1.4",
    "Apache-2.0",
    "VoiceEncoder with its weights: LSTM 256 x 3, 12 voices of 160 frames",
    needs=("librosa", "webrtcvad", "setuptools<80"),
)
def resemblyzer():
    from resemblyzer import VoiceEncoder

    net = VoiceEncoder("cpu", verbose=False)
    mels = torch.rand(12, 160, 40)

    def call():
        embeddings = net(mels)
        return (embeddings @ embeddings.T).square().mean(), embeddings

    return net, call


@client("darts==0.48.1", "Apache-2.0", "RNNModel: GRU 64 x 2, 32 series of 48 hours", needs=DARTS)
def darts():
    from darts.models.forecasting.rnn_model import _RNNModule
    from darts.utils.data.torch_datasets.utils import ModuleStage, PLModuleInput

    sizes = {"input_size": 3, "hidden_dim": 64, "num_layers": 2, "target_size": 3, "nr_params": 1}
    net = _RNNModule(name="GRU", **sizes, input_chunk_length=48, output_chunk_length=1)
    series = torch.randn(32, 49, 3)

    def call():
        found = net(PLModuleInput(past_target=series[:, :-1], stage=ModuleStage.TRAIN))
        return F.mse_loss(found.prediction, series[:, 1:, :, None]), found.prediction, found.state

    return net, call


@client(
    "gluonts==0.17.0",
    "Apache-2.0",
    "DeepAR: LSTM 40 x 2, 32 series, 48 hours and 24 ahead",
    needs=("pandas<3", "pydantic", "toolz<1", "scipy", "lightning"),
)
def gluonts():
    from gluonts.torch.model.deepar.module import DeepARModel

    net = DeepARModel(freq="h", context_length=48, prediction_length=24)
    given = net.describe_inputs(32).zeros()
    given |= {name: torch.rand(t.shape) for name, t in given.items() if t.dtype.is_floating_point}
    future = {"future_target": torch.rand(32, 24), "future_observed_values": torch.ones(32, 24)}

    def call():
        losses = net.loss(**given, **future)
        return losses.mean(), losses

    return net, call


@client(
    "asteroid==0.7.0",
    "MIT",
    "DPRNN: LSTM 128 in both directions, 2 blocks, along and across chunks",
    "torchaudio==2.11.0",
    "asteroid-filterbanks",
    "pb-bss-eval",
    "torch-stoi",
    "torch-optimizer",
    "pytorch-ranger",
    needs=("scipy", "pandas", "julius", "soundfile", "lightning", "huggingface_hub", "requests", "einops"),
    without=CUDA_OF_TORCHAUDIO,
)
def asteroid():
    from asteroid.masknn import DPRNN

    net = DPRNN(in_chan=64, n_src=2, n_repeats=2)
    mixture = torch.rand(1, 64, 1000)

    def call():
        mask = net(mixture)
        return F.mse_loss(mask, torch.ones_like(mask)), mask

    return net, call


@client(
    "tianshou==2.0.1",
    "MIT",
    "Recurrent: LSTM 128, 32 histories of 16 observations",
    "pettingzoo",
    needs=("gymnasium", "deepdiff", "h5py", "overrides", "sensai-utils", "tensorboard", "numba", "pandas<3", "tqdm"),
)
def tianshou():
    from tianshou.utils.net.common import Recurrent

    net = Recurrent(layer_num=1, state_shape=(8,), action_shape=(4,))
    observed = torch.randn(32, 16, 8)

    def call():
        found, state = net(observed)
        return found.square().mean(), found, state["hidden"], state["cell"]

    return net, call


@client("sb3-contrib==2.9.2", "MIT", "RecurrentPPO's policy: 2 LSTMs 256, 8 episodes of 64 steps with restarts")
def sb3_contrib():
    from gymnasium.spaces import Box, Discrete
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    net = RecurrentActorCriticPolicy(Box(-1, 1, (8,)), Discrete(4), lambda _: 3e-4)
    observed, actions, zeros = torch.randn(512, 8), torch.arange(512) % 4, torch.zeros(1, 8, 256)
    starts, states = (torch.arange(512) % 37 == 0).float(), RNNStates((zeros, zeros), (zeros, zeros))

    def call():
        values, log_prob, entropy = net.evaluate_actions(observed, actions, states, starts)
        return (values.square() - log_prob - 0.01 * entropy).mean(), values, log_prob

    return net, call


@client("torchrl==0.14.1", "MIT", "LSTMModule 128, 8 trajectories of 64 steps with restarts")
def torchrl():
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    net = LSTMModule(input_size=16, hidden_size=128, in_key="observation", out_key="features")
    first = (torch.arange(8 * 64) % 50 == 0).view(8, 64, 1)
    given = {"observation": torch.randn(8, 64, 16), "is_init": first}
    given |= {f"recurrent_state_{name}": torch.zeros(8, 64, 1, 128) for name in "hc"}

    def call():
        with set_recurrent_mode(True):
            found = net(TensorDict(given, batch_size=[8, 64]))["features"]
        return found.square().mean(), found

    return net, call


@client(
    "neuralforecast==3.3.0",
    "Apache-2.0",
    "LSTM 128 x 2, 32 windows of 48 hours, 24 ahead",
    needs=("ray[tune]", "lightning", "utilsforecast", "coreforecast", "optuna", "safetensors", "scipy"),
)
def neuralforecast():
    from neuralforecast.models import LSTM

    net = LSTM(h=24, input_size=48, max_steps=1)
    window = {"insample_y": torch.randn(32, 48, 1)} | dict.fromkeys(("futr_exog", "hist_exog", "stat_exog"))

    def call():
        found = net(window)
        return F.l1_loss(found, torch.ones_like(found)), found

    return net, call


@client(
    "torchaudio==2.11.0",
    "BSD-2-Clause",
    "Tacotron2: decoder of 2 LSTM cells 1024, encoder in both directions",
    needs=(),
    without=CUDA_OF_TORCHAUDIO,
)
def tacotron2():
    from torchaudio.models import Tacotron2

    net = Tacotron2()
    text, lengths = torch.randint(0, 148, (2, 20)), torch.tensor([20, 16])
    mel, frames = torch.randn(2, 80, 16), torch.tensor([16, 12])

    def call():
        found, post, gates, _ = net(text, lengths, mel, frames)
        return F.mse_loss(post, mel) + F.mse_loss(found, mel), post, gates

    return net, call


@client(
    "torchaudio==2.11.0",
    "BSD-2-Clause",
    "HDemucs: LSTMs in both directions between convolutions, 16,000 samples of stereo",
    needs=(),
    without=CUDA_OF_TORCHAUDIO,
)
def hdemucs():
    from torchaudio.models import HDemucs

    net = HDemucs(["voice", "rest"], channels=16)
    mixture = torch.randn(1, 2, 16000)

    def call():
        found = net(mixture)
        return found.square().mean(), found

    return net, call


@client(
    "openunmix==1.3.0",
    "MIT",
    "OpenUnmix: LSTM 256 x 3 in both directions, 8 spectrograms of 64 frames",
    "torchaudio==2.11.0",
    needs=("tqdm",),
    without=CUDA_OF_TORCHAUDIO,
    by="convert_",  # it imports LSTM by name
)
def openunmix():
    from openunmix.model import OpenUnmix

    net = OpenUnmix(nb_bins=512, max_bin=256)
    spectrogram = torch.rand(8, 2, 512, 64)

    def call():
        found = net(spectrogram.clone())
        return F.mse_loss(found, spectrogram), found

    return net, call


@client("stanza==1.15.0", "Apache-2.0", "CharacterLanguageModel: LSTM 1024, 4 packed lines of 20 to 60 characters")
def stanza():
    from stanza.models.common.char_model import CharacterLanguageModel

    args = {"char_emb_dim": 100, "char_hidden_dim": 1024, "char_num_layers": 1, "char_dropout": 0.05}
    net = CharacterLanguageModel(args | {"char_rec_dropout": 0, "char_unit_dropout": 0}, {"char": range(90)})
    lengths, text = lengths_of(4, 20, 60), torch.randint(0, 90, (4, 61))

    def call():
        output, (h, c), scores = net(text[:, :-1], lengths)
        return F.cross_entropy(scores.transpose(1, 2), text[:, 1:]), output, h, c

    return net, call
