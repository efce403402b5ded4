"""Compiles the speech detector of examples/vad_stream.py, its LSTM frozen, into a package that main.cpp loads.

    python examples/cpp_streaming/package.py --weights int8 --out build/cpp_streaming

Writes model.pt2 and audio.wav, made-up sounds to try it with. The weights are silero-vad's (`pip install --no-deps
silero-vad`), or random ones with --random.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import vad_stream
from _shared import UsageError, packaged_file
from vad_stream import CHUNK, CONTEXT, HIDDEN, WEIGHTS, Detector

import fastrnn


def random_detector() -> Detector:
    """The network with random weights, the same ones each time, large enough that its answers change."""
    detector, generator = Detector().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return detector


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="package.py", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", choices=WEIGHTS, default="float32", help="of the LSTM, default: %(default)s")
    parser.add_argument("--random", action="store_true", help="weights drawn at random, in the place of silero-vad's")
    parser.add_argument("--out", type=Path, default=Path("runs/cpp_streaming"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        if args.random:
            detector = random_detector()
        else:
            detector = Detector.of(torch.jit.load(str(packaged_file(vad_stream.PACKAGE, vad_stream.FILE))))
        args.out.mkdir(parents=True, exist_ok=True)
    except (UsageError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    frozen = fastrnn.freeze(detector, WEIGHTS[args.weights])
    state = torch.zeros(1, CONTEXT), torch.zeros(1, 1, HIDDEN), torch.zeros(1, 1, HIDDEN)
    with torch.no_grad():
        program = torch.export.export(frozen, (torch.zeros(1, CHUNK), *state))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(args.out / "model.pt2"))
    vad_stream.write_wav(args.out / "audio.wav", vad_stream.make_up(20, seed=0))
    print(f"{path}\n{args.out / 'audio.wav'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
