"""Streaming speech detection through a frozen layer, frame by frame beside the original model.

    python examples/vad_stream.py
    python examples/vad_stream.py --audio speech.wav --weights int8

silero-vad gives every 32 ms of sound a probability that somebody speaks: the magnitudes of a short Fourier transform,
four convolutions, an LSTM of 128 units and a linear layer. Here the network is written in torch.nn with fastrnn.LSTM,
takes the original's weights, and is frozen; --weights rounds the LSTM's matrices to bfloat16 or int8. Chunks of 32 ms
come one at a time, as from a microphone, and the state of the LSTM stays in a fastrnn.Stream.

The original, the same network with torch.nn's LSTM, and the one with the frozen LSTM hear the same chunks in turns. The
program prints how far the probabilities of the first and the last are apart, and the time that a chunk takes; the exit
status is 1 where the probabilities differ by more than --weights explains.

Data: the TorchScript model inside the package silero-vad (MIT): `pip install --no-deps silero-vad`. --audio reads a WAV
file (16-bit PCM, mono, 16 kHz); without it the program makes up sounds like vowels, with pauses and noise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import wave
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from _shared import UsageError, packaged_file, real, whole
from _shared.files import write_atomically
from _shared.run import describe_place
from torch import Tensor, nn

import fastrnn

PACKAGE, FILE = "silero-vad", "silero_vad/data/silero_vad.jit"
RATE, CHUNK, CONTEXT, HIDDEN = 16_000, 512, 64, 128  # samples: a second, a chunk, what is heard again of the last one
WEIGHTS = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}
LIMITS = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.15}
"""Largest differences of a probability that rounding explains."""


class Detector(nn.Module):
    """The network of silero-vad for 16 kHz."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        sizes = [(129, 128, 1), (128, 64, 2), (64, 64, 2), (64, HIDDEN, 1)]
        convolutions = [nn.Conv1d(before, after, 3, stride, 1) for before, after, stride in sizes]
        self.encoder = nn.Sequential(*(layer for each in convolutions for layer in (each, nn.ReLU())))
        self.rnn = fastrnn.LSTM(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 1)

    @classmethod
    def of(cls, original: nn.Module) -> Detector:
        """With the weights of the original."""
        given = {name.removeprefix("_model."): value for name, value in original.state_dict().items()}
        weights = {"transform.weight": given["stft.forward_basis_buffer"]}
        for kind in ("weight", "bias"):
            for index in range(4):
                weights[f"encoder.{2 * index}.{kind}"] = given[f"encoder.{index}.reparam_conv.{kind}"]
            for product in ("ih", "hh"):
                weights[f"rnn.{kind}_{product}_l0"] = given[f"decoder.rnn.{kind}_{product}"]
            weights[f"head.{kind}"] = given[f"decoder.decoder.2.{kind}"]
        weights["head.weight"] = weights["head.weight"].flatten(1)  # a convolution's, of one place
        detector = cls().eval()
        detector.load_state_dict(weights)
        return detector

    def features(self, heard: Tensor) -> Tensor:
        """Samples (B, CONTEXT + CHUNK) -> what the LSTM reads (1, B, HIDDEN)."""
        padded = nn.functional.pad(heard[:, None], (0, CONTEXT), mode="reflect")
        real, imaginary = self.transform(padded).chunk(2, dim=1)
        return self.encoder((real.square() + imaginary.square()).sqrt()).permute(2, 0, 1)

    def probability(self, output: Tensor) -> Tensor:
        """What the LSTM says (1, B, HIDDEN) -> the probability of speech (B, 1)."""
        return self.head(output[0].relu()).sigmoid()

    def forward(self, chunk: Tensor, context: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """A chunk (B, CHUNK) and what the call before returned -> the probability, and what the next call takes."""
        heard = torch.cat([context, chunk], 1)
        output, (h, c) = self.rnn(self.features(heard), (h, c))
        return self.probability(output), chunk[:, -CONTEXT:].clone(), h, c


class Carried:
    """An LSTM of torch.nn that keeps its state between calls, as a fastrnn.Stream does."""

    def __init__(self, rnn: nn.LSTM) -> None:
        self.rnn, self.state = rnn, None

    def __call__(self, x: Tensor) -> Tensor:
        output, self.state = self.rnn(x, self.state)
        return output


class Live:
    """A detector that hears one stream; ``lstm`` computes the next step of its LSTM."""

    def __init__(self, detector: Detector, lstm: Callable[[Tensor], Tensor]) -> None:
        self.detector, self.lstm = detector, lstm
        self.context = torch.zeros(1, CONTEXT)

    def __call__(self, chunk: Tensor) -> Tensor:
        heard = torch.cat([self.context, chunk], 1)
        self.context = chunk[:, -CONTEXT:]
        return self.detector.probability(self.lstm(self.detector.features(heard)))


def read_wav(path: Path) -> Tensor:
    """The samples (N,) of a file, within -1 .. 1."""
    try:
        with wave.open(str(path), "rb") as file:
            found = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise UsageError(f"expected a WAV file, got {path} ({error})") from None
    if found != (1, 2, RATE):
        raise UsageError(
            f"expected a WAV file of 1 channel, 2 bytes a sample, {RATE} Hz, got {found[0]}, {found[1]}, {found[2]} in "
            f"{path}"
        )
    return torch.from_numpy(np.frombuffer(data, "<i2") / np.float32(32768))


def write_wav(path: Path, samples: Tensor) -> None:
    """The opposite of :func:`read_wav`."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).round().to(torch.int16).numpy().astype("<i2").tobytes())


def make_up(seconds: float, seed: int) -> Tensor:
    """Sounds like vowels: a voice's harmonics, louder around two formants that change four times a second; pauses after
    every second and a half; faint noise."""
    generator = torch.Generator().manual_seed(seed)
    time_ = torch.arange(int(seconds * RATE)) / RATE
    syllables = (time_ * 4).long()
    count = int(syllables.max()) + 1
    formants = torch.rand(count, 2, generator=generator) * torch.tensor([500.0, 1300.0]) + torch.tensor([300.0, 900.0])
    pitch = 110 + 25 * torch.sin(2 * torch.pi * 0.7 * time_)
    phase = 2 * torch.pi * torch.cumsum(pitch.double() / RATE, 0)
    voice = torch.zeros_like(time_)
    for harmonic in range(1, 30):
        distance = (harmonic * pitch[:, None] - formants[syllables]) / 120
        voice += ((-distance.square() / 2).exp().sum(1) + 0.02) / harmonic**0.5 * torch.sin(harmonic * phase).float()
    envelope = torch.sin(torch.pi * (time_ * 4 % 1)) * (time_ % 2.5 < 1.5)
    samples = 0.15 * envelope * voice + 0.002 * torch.randn(time_.shape, generator=generator)
    return samples.clamp(-1, 1)


def chunks_of(samples: Tensor) -> Tensor:
    """The whole chunks (N, 1, CHUNK) of samples."""
    return samples[: len(samples) // CHUNK * CHUNK].view(-1, 1, CHUNK)


def listen(models: Sequence[Callable[[Tensor], Tensor]], inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """Every input through every model in turns: the one number that each answers, and seconds, (models, inputs)."""
    answers, seconds = (torch.zeros(len(models), len(inputs), dtype=torch.float64) for _ in range(2))
    for index, input in enumerate(inputs):
        for turn in range(len(models)):
            which = (index + turn) % len(models)  # who goes first changes, so that order favours nobody
            start = time.perf_counter()
            answer = models[which](input)
            seconds[which, index] = time.perf_counter() - start
            answers[which, index] = float(answer)
    return answers, seconds


def lstms_alone(original: nn.Module, plain: Detector, frozen: Detector, samples: Tensor) -> Tensor:
    """Seconds of the steps of the three LSTMs without the network around them, (3, chunks)."""
    chunks = chunks_of(samples)
    before = torch.cat([torch.zeros(1, 1, CONTEXT), chunks[:-1, :, -CONTEXT:]])
    features = [frozen.features(torch.cat(pair, 1)) for pair in zip(before, chunks)]
    carried, stream, state = Carried(plain.rnn), frozen.rnn.stream(), (torch.zeros(1, HIDDEN), torch.zeros(1, HIDDEN))

    def original_step(x: Tensor) -> Tensor:
        nonlocal state
        state = original._model.decoder.rnn(x[0], state)
        return state[0][0, 0]

    steps = [original_step, lambda x: carried(x)[0, 0, 0], lambda x: stream(x)[0, 0, 0]]
    return listen(steps, features)[1]


def describe(seconds: Tensor) -> str:
    """Median, p99 and the real-time factor of the times of chunks."""
    values = sorted(seconds.tolist())
    factor = sum(values) / (len(values) * CHUNK / RATE)
    p99 = values[len(values) * 99 // 100]
    return f"median {statistics.median(values) * 1e6:7.1f} us, p99 {p99 * 1e6:7.1f} us, real-time factor {factor:.5f}"


def draw(names: Sequence[str], probabilities: Tensor, seconds: Tensor, title: str, path: Path) -> None:
    """The probabilities over time, and how many chunks take how long."""
    from _shared.plot import STYLES, plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=9)
    count = seconds.shape[1]
    for name, values, times, style in zip(names, probabilities, seconds, (STYLES[0], {"linewidth": 2.5}, STYLES[1])):
        left.plot(torch.arange(count) * CHUNK / RATE, values, label=name, **style)
        lines = right.plot(times.sort().values * 1e6, torch.arange(1, count + 1) / count, label=name, **style)
        for share in (0.5, 0.99):
            right.axvline(float(times.quantile(share)) * 1e6, color=lines[0].get_color(), linewidth=0.7)
    left.set(xlabel="time in seconds", ylabel="probability of speech")
    right.set(xlabel="time of a chunk in us (lines: median, p99)", ylabel="share of the chunks", xscale="log")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    right.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vad_stream.py", description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, metavar="FILE", help="WAV, default: made-up sounds")
    parser.add_argument("--seconds", type=real(1), default=20.0, metavar="X", help="of them, default: %(default)s")
    parser.add_argument("--weights", choices=WEIGHTS, default="float32", help="of the LSTM, default: %(default)s")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=whole(1), default=1, metavar="N", help="of the CPU, default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/vad_stream"), metavar="DIR", help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = options()
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        original = torch.jit.load(str(packaged_file(PACKAGE, FILE))).eval()
        samples = read_wav(args.audio) if args.audio else make_up(args.seconds, args.seed)
        if len(samples) < CHUNK:
            raise UsageError(f"expected at least {CHUNK} samples, got {len(samples)}")
        args.out.mkdir(parents=True, exist_ok=True)
    except (UsageError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return compare(original, samples, args)


def compare(original: nn.Module, samples: Tensor, args: argparse.Namespace) -> int:
    """The models over the samples; prints, draws, and returns the exit status."""
    detector = Detector.of(original)
    plain, frozen = fastrnn.revert(detector), fastrnn.freeze(detector, WEIGHTS[args.weights])
    names = ["silero-vad, TorchScript", "torch.nn", f"frozen, {args.weights}"]
    print(f"audio:  {len(samples) / RATE:.1f} s, {len(samples) // CHUNK} chunks of 32 ms")
    print(f"place:  {describe_place('cpu')}")
    with torch.inference_mode():
        for part in (chunks_of(samples)[:20], chunks_of(samples)):  # first calls are slower, and not counted
            original.reset_states()
            live = [Live(plain, Carried(plain.rnn)), Live(frozen, frozen.rnn.stream())]
            probabilities, seconds = listen([lambda chunk: original(chunk, RATE), *live], part)
        alone = lstms_alone(original, plain, frozen, samples).median(1).values * 1e6
    apart = (probabilities[0] - probabilities[2]).abs().max().item()
    decisions = int(((probabilities[0] > 0.5) != (probabilities[2] > 0.5)).sum())
    limit = LIMITS[args.weights]
    verdict = "the two hear the same" if apart <= limit else f"NOT EQUAL, expected at most {limit}"
    print(f"speech: in {int((probabilities[0] > 0.5).sum())} of {probabilities.shape[1]} chunks")
    print(f"parity: probabilities differ by {apart:.1e} at most, {decisions} decisions differ: {verdict}")
    for name, times, step in zip(names, seconds, alone):
        print(f"speed:  {name:<24} {describe(times)}; the LSTM's step alone {step:5.1f} us")
    figure = args.out / "latency.png"
    title = f"vad_stream.py, {describe_place('cpu')}"
    write_atomically(figure, lambda path: draw(names, probabilities, seconds, title, path))
    print(f"figure: {figure}")
    return int(not apart <= limit)


if __name__ == "__main__":
    sys.exit(main())
