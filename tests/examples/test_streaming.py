"""The streaming examples: speech detection through a frozen layer, in Python beside the original and in C++ without
Python."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import vad_stream
from emulator.build import compiler
from support import compiled

import fastrnn

EXAMPLES = Path(vad_stream.__file__).parent
with_original = pytest.mark.skipif(
    importlib.util.find_spec("silero_vad") is None, reason="pip install --no-deps silero-vad: it is missing"
)


@with_original
@compiled
@pytest.mark.parametrize("weights", vad_stream.WEIGHTS)
def test_the_frozen_detector_hears_what_the_original_does(weights, tmp_path, capsys):
    audio = tmp_path / "audio.wav"
    vad_stream.write_wav(audio, vad_stream.make_up(4, seed=3))
    arguments = ["--audio", str(audio), "--weights", weights, "--out", str(tmp_path / "out")]
    assert vad_stream.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "125 chunks" in printed and "the two hear the same" in printed
    assert printed.count("real-time factor") == 3
    assert (tmp_path / "out" / "latency.png").read_bytes().startswith(b"\x89PNG")


@with_original
def test_a_wrong_detector_fails_the_program(tmp_path, monkeypatch, capsys):
    original = vad_stream.Detector.probability
    monkeypatch.setattr(vad_stream.Detector, "probability", lambda self, output: original(self, output) * 0.999)
    assert vad_stream.main(["--seconds", "2", "--out", str(tmp_path)]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out


def test_a_stream_of_chunks_is_one_call_over_all_frames():
    """Against torch's LSTM over the features of the whole, of which each chunk gives one frame."""
    torch.manual_seed(0)
    detector, samples = vad_stream.Detector().eval(), vad_stream.make_up(2, seed=0)
    frozen = fastrnn.freeze(detector)
    live = vad_stream.Live(frozen, frozen.rnn.stream())
    with torch.inference_mode():
        found, _ = vad_stream.listen([live], vad_stream.chunks_of(samples))
        chunks = vad_stream.chunks_of(samples)[:, 0]
        before = torch.cat([torch.zeros(1, vad_stream.CONTEXT), chunks[:-1, -vad_stream.CONTEXT :]])
        frames = detector.features(torch.cat([before, chunks], 1)).transpose(0, 1)
        output, _ = fastrnn.revert(detector).rnn(frames)
        expected = detector.probability(output.transpose(0, 1)).flatten()
    torch.testing.assert_close(found[0].float(), expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_read_is_refused(tmp_path, monkeypatch, capsys):
    def nothing(distribution):
        raise importlib.metadata.PackageNotFoundError(distribution)

    with pytest.raises(vad_stream.UsageError, match="expected a WAV file"):
        vad_stream.read_wav(Path(__file__))
    monkeypatch.setattr(vad_stream, "RATE", 8000)
    vad_stream.write_wav(tmp_path / "slow.wav", torch.zeros(800))
    monkeypatch.undo()
    with pytest.raises(vad_stream.UsageError, match=r"of 1 channel, 2 bytes a sample, 16000 Hz, got 1, 2, 8000"):
        vad_stream.read_wav(tmp_path / "slow.wav")
    monkeypatch.setattr(importlib.metadata, "files", nothing)
    assert vad_stream.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.rstrip().endswith("pip install --no-deps silero-vad")


# --- C++ --------------------------------------------------------------------------------------------------------------


def cmake() -> str | None:
    """The command, of the system or of PyPI's package."""
    return shutil.which("cmake") or shutil.which("cmake", path=os.path.dirname(sys.executable))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """examples/cpp_streaming, built."""
    if cmake() is None or compiler() is None:
        pytest.skip("needs cmake (pip install cmake) and a C++ compiler")
    folder = tmp_path_factory.mktemp("cpp_streaming")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (
        [cmake(), "-S", EXAMPLES / "cpp_streaming", "-B", folder, prefix],
        [cmake(), "--build", folder, "-j", os.environ.get("MAX_JOBS", "2")],
    ):
        made = subprocess.run(command, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    return folder / "stream"


@pytest.mark.slow
@compiled
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_cpp_streams_what_python_does(weights, program, tmp_path):
    spec = importlib.util.spec_from_file_location("package", EXAMPLES / "cpp_streaming" / "package.py")
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    assert package.main(["--random", "--weights", weights, "--out", str(tmp_path)]) == 0
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [program, tmp_path / "model.pt2", tmp_path / "audio.wav"]
    made = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert made.returncode == 0, made.stderr
    *lines, last = made.stdout.splitlines()
    assert re.fullmatch(r"625 chunks of 32 ms: median .* us, p99 .* us, real-time factor 0\.\d+", last)
    frozen = fastrnn.freeze(package.random_detector(), vad_stream.WEIGHTS[weights])
    live = vad_stream.Live(frozen, frozen.rnn.stream())
    with torch.inference_mode():
        expected, _ = vad_stream.listen([live], vad_stream.chunks_of(vad_stream.read_wav(tmp_path / "audio.wav")))
    found = torch.tensor([float(line.split()[-1]) for line in lines], dtype=torch.float64)
    assert expected.std() > 0.02
    torch.testing.assert_close(found, expected[0], rtol=0, atol=2e-5 if weights == "float32" else 1e-3)


@pytest.mark.slow
def test_cpp_says_what_is_wrong(program, tmp_path):
    (tmp_path / "no.wav").write_text("no")
    for arguments, status, message in (
        ([], 2, "usage: "),
        (["model.pt2", tmp_path / "missing.wav"], 1, "cannot open "),
        (["model.pt2", tmp_path / "no.wav"], 1, "is no WAV file"),
    ):
        made = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert made.returncode == status and message in made.stderr
