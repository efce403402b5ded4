"""examples/char_lm.py: both sides learn the same, a resumed run is the uninterrupted one, bad arguments are refused."""

import csv
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from math import exp, log
from pathlib import Path

import pytest
import torch

import fastrnn

PROGRAM = Path(__file__).parents[1] / "examples" / "char_lm.py"
sys.path.insert(0, str(PROGRAM.parent))

import char_lm  # noqa: E402  (the path to it is set above)
from _char_lm import checkpoint, data, model, report, train  # noqa: E402

TEXT_LENGTH = 1500


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """At these sizes a second thread only waits for the first; on a busy machine both wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text() -> str:
    """Words in random order: learnable, and held-out text that is not in the training text."""
    pick = random.Random(1)
    words = ["the", "state", "of", "a", "cell", "is", "carried", "from", "one", "step", "to", "another"]
    return " ".join(pick.choice(words) for _ in range(TEXT_LENGTH))[:TEXT_LENGTH]


@pytest.fixture(scope="module")
def text_file(text, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def arguments(text_file, tmp_path) -> list[str]:
    """A run of a fraction of a second, into tmp_path."""
    files = ["--text", str(text_file), "--out", str(tmp_path)]
    sizes = "--hidden 12 --embedding 6 --batch 4 --seq-len 16 --epochs 2 --sample 20 --device cpu"
    return [*files, *shlex.split(sizes)]


def recipe(corpus: data.Corpus, **changes) -> train.Recipe:
    values = {
        "cell": "lstm", "layers": 1, "hidden": 12, "embedding": 6, "dropout": 0.0, "batch": 4, "seq_len": 16,
        "lr": 3e-3, "clip": 1.0, "sampling": "consecutive", "seed": 3, "device": "cpu", "text_sha256": corpus.sha256,
    }  # fmt: skip
    return train.Recipe(**{**values, **changes})


def saved(folder: Path, impl: str) -> dict:
    return torch.load(checkpoint.checkpoint_path(folder, impl), weights_only=True)


def results(state: dict) -> list[dict]:
    """The history of a checkpoint without its timings."""
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in state["history"]]


# --- what the program is for ---------------------------------------------------------------------------------------


def test_the_whole_program(arguments, tmp_path, capsys):
    assert char_lm.main(arguments) == 0

    output = capsys.readouterr().out
    for expected in (
        "parity: perplexities differ by at most",
        "over 20 steps",
        "the two learn the same",
        "speed:",
        "unigram model has",
    ):
        assert expected in output
    assert "fastrnn.LSTM continues" in output
    assert "fastrnn's backends for this layer: " in output

    figure = (tmp_path / "perplexity.png").read_bytes()
    assert figure.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(figure) > 20_000

    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["layer"], row["epoch"]) for row in rows] == [
        ("torch.nn.LSTM", "1"), ("torch.nn.LSTM", "2"), ("fastrnn.LSTM", "1"), ("fastrnn.LSTM", "2"),
    ]  # fmt: skip
    whole_chunks = (TEXT_LENGTH * 9 // 10 - 1) // 4 // 16
    for row in rows:
        assert int(row["tokens"]) == whole_chunks * 4 * 16
        assert float(row["tokens_per_second"]) == pytest.approx(int(row["tokens"]) / float(row["seconds"]))
    for ours, theirs in zip(rows[2:], rows[:2], strict=True):
        for column in ("train_perplexity", "held_out_perplexity"):
            assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-4)

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-fastrnn.pt", "checkpoint-torch.pt", "metrics.csv", "perplexity.png",
    ]  # fmt: skip


def test_the_swap_is_what_is_compared(text):
    corpus = data.Corpus.from_text("words", text)
    for cell, name in model.CELLS.items():
        assert type(train.Run("torch", recipe(corpus, cell=cell), corpus).model.rnn) is getattr(torch.nn, name)
        assert type(train.Run("fastrnn", recipe(corpus, cell=cell), corpus).model.rnn) is getattr(fastrnn, name)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(("sampling", "dropout"), [("consecutive", 0.0), ("random", 0.2)])
def test_both_sides_have_the_same_losses(cell, sampling, dropout, text):
    corpus = data.Corpus.from_text("words", text)
    losses = {}
    for impl in model.LIBRARIES:
        run = train.Run(impl, recipe(corpus, cell=cell, layers=2, sampling=sampling, dropout=dropout), corpus)
        losses[impl] = []
        run.train_epoch(lambda loss, impl=impl: losses[impl].append(float(loss)))
    assert len(losses["torch"]) == 21
    assert losses["fastrnn"] == pytest.approx(losses["torch"], rel=1e-5)
    assert losses["torch"][-1] < losses["torch"][0]  # it is learning that is compared


def test_a_side_that_learns_something_else_fails_the_program(arguments, monkeypatch, capsys):
    class Forgetful(fastrnn.LSTM):
        """Ignores the state it is given."""

        def forward(self, characters, state=None):
            return super().forward(characters, None)

    monkeypatch.setattr(fastrnn, "LSTM", Forgetful)
    assert char_lm.main(arguments) == 1
    assert "NOT EQUAL" in capsys.readouterr().out


# --- interrupt and resume ------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, turn: int, step: int) -> None:
    """Make the given turn at training (the runs alternate) end in a Ctrl-C after some steps."""
    original, turns = train.Run._training_steps, []

    def interrupted(self):
        turns.append(self)
        for number, loss in enumerate(original(self)):
            yield loss
            if len(turns) == turn and number == step:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train.Run, "_training_steps", interrupted)


@pytest.mark.parametrize("mode", ["--sampling consecutive", "--sampling random --layers 2 --dropout 0.3"])
def test_resuming_gives_the_uninterrupted_run(mode, arguments, tmp_path, monkeypatch, capsys):
    arguments += [*mode.split(), "--epochs", "3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert char_lm.main([*arguments, "--out", str(whole)]) == 0

    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupt_at(patch, turn=4, step=7)  # torch, fastrnn, fastrnn, torch: one side is then an epoch ahead
        assert char_lm.main([*arguments, "--out", str(parts)]) == 130
    assert {impl: saved(parts, impl)["epoch"] for impl in model.LIBRARIES} == {"torch": 1, "fastrnn": 2}
    output = capsys.readouterr().out
    assert "finished epochs are safe" in output
    assert output.rstrip().endswith("--resume")

    assert char_lm.main([*arguments, "--out", str(parts), "--resume"]) == 0
    for impl in model.LIBRARIES:
        expected, got = saved(whole, impl), saved(parts, impl)
        assert results(got) == results(expected)  # to the last bit
        torch.testing.assert_close(got["model"], expected["model"], rtol=0, atol=0)
        torch.testing.assert_close(got["optimizer"]["state"], expected["optimizer"]["state"], rtol=0, atol=0)


def test_an_interrupt_before_the_first_epoch_says_so(arguments, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, turn=1, step=2)
    assert char_lm.main(arguments) == 130
    assert "nothing to resume" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to another process, which only POSIX can")
def test_ctrl_c_in_a_real_process(arguments, tmp_path):
    command = [sys.executable, str(PROGRAM), *arguments, "--epochs", "100000", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "metrics.csv").exists():
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, "no epoch was finished in a minute"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "--resume" in output.splitlines()[-1]
    assert not list(tmp_path.glob(".*")), "a half-written file was left behind"

    epochs = saved(tmp_path, "torch")["epoch"]
    assert epochs >= 1
    assert output.count("torch.nn.LSTM  ") == epochs  # every epoch it reported is in the checkpoint
    assert char_lm.main([*arguments, "--epochs", str(epochs + 1), "--resume"]) == 0
    assert saved(tmp_path, "torch")["epoch"] == saved(tmp_path, "fastrnn")["epoch"] == epochs + 1


def test_an_interrupt_while_saving_waits():
    done = []
    with pytest.raises(KeyboardInterrupt), checkpoint.interrupt_postponed():
        signal.raise_signal(signal.SIGINT)
        done.append("saved")
    assert done == ["saved"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(path, write_half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_run_keeps_the_checkpoints_of_the_old_one(arguments, tmp_path):
    assert char_lm.main([*arguments, "--impl", "torch", "--epochs", "1"]) == 0
    old = (tmp_path / "checkpoint-torch.pt").read_bytes()
    assert char_lm.main([*arguments, "--impl", "torch", "--epochs", "1", "--seed", "9"]) == 0
    assert (tmp_path / "checkpoint-torch.pt.previous").read_bytes() == old
    assert saved(tmp_path, "torch")["arguments"]["seed"] == 9


# --- refusals ------------------------------------------------------------------------------------------------------

REFUSALS = [
    (["--bidirectional"], "argument --bidirectional: expected a model that reads forwards only, got one"),
    (["--cell", "lstmm"], "argument --cell: invalid choice: 'lstmm'"),
    (["--layers", "0"], "argument --layers: expected a whole number >= 1, got '0'"),
    (["--hidden", "2.5"], "argument --hidden: expected a whole number >= 1, got '2.5'"),
    (["--seq-len", "-1"], "argument --seq-len: expected a whole number >= 1, got '-1'"),
    (["--epochs", "ten"], "argument --epochs: expected a whole number >= 1, got 'ten'"),
    (["--dropout", "1"], "argument --dropout: expected a number >= 0 and < 1, got '1'"),
    (["--lr", "0"], "argument --lr: expected a number > 0, got '0'"),
    (["--lr", "inf"], "argument --lr: expected a number > 0, got 'inf'"),
    (["--clip", "nan"], "argument --clip: expected a number >= 0, got 'nan'"),
    (["--temperature", "-0.1"], "argument --temperature: expected a number >= 0, got '-0.1'"),
    (["--device", "warp"], "argument --device: expected a device that torch can use here, got 'warp' ("),
    (["--device", "meta"], "argument --device: expected a device that torch can use here, got 'meta' ("),
    (["--prime", ""], "argument --prime: expected at least one character, got ''"),
    (["--prime", "the Q?"], "argument --prime: expected characters that occur in the text, got '?Q'"),
    (
        ["--seq-len", "1000"],
        "argument --text: expected 4001 characters or more to train on (batch 4 x seq-len 1000 + 1)",
    ),
    (["--max-chars", "30"], "argument --text: expected 65 characters or more"),
    (["--text", "no/such.txt"], "argument --text: expected a readable text file, got 'no/such.txt' (No such file"),
    (["--text", str(PROGRAM.parent)], "(Is a directory)"),
    (["--out", str(PROGRAM)], "argument --out: expected a folder to write to, got"),
]


@pytest.mark.parametrize(("bad", "message"), REFUSALS, ids=[" ".join(bad)[:30] for bad, _ in REFUSALS])
def test_bad_arguments_are_refused_before_anything_is_computed(bad, message, arguments, monkeypatch, capsys):
    monkeypatch.setattr(char_lm, "train", None)  # would raise TypeError if it were called
    with pytest.raises(SystemExit) as stopped:
        char_lm.main([*arguments, *bad])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_text_that_is_not_utf8_is_refused(arguments, tmp_path, capsys):
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9 " * 1000)
    with pytest.raises(SystemExit):
        char_lm.main([*arguments, "--text", str(path)])
    assert "argument --text: expected UTF-8 text, got byte 0xe9 at offset 3" in capsys.readouterr().err


def test_only_a_checkpoint_of_the_same_run_is_resumed(arguments, tmp_path, text, capsys):
    assert char_lm.main([*arguments, "--resume"]) == 2
    assert "got no such file: run without --resume first" in capsys.readouterr().err

    assert char_lm.main([*arguments, "--impl", "fastrnn", "--epochs", "1"]) == 0
    before = (tmp_path / "checkpoint-fastrnn.pt").read_bytes()
    capsys.readouterr()
    for change, message in [
        (["--cell", "gru"], "whose cell is 'lstm' there, 'gru' here"),
        (["--hidden", "13", "--lr", "0.1"], "whose hidden is 12 there, 13 here; lr is 0.003 there, 0.1 here"),
        (["--max-chars", str(len(text) - 1)], "whose text-sha256 is"),
    ]:
        assert char_lm.main([*arguments, *change, "--resume"]) == 2
        assert message in capsys.readouterr().err

    (tmp_path / "checkpoint-fastrnn.pt").write_bytes(before[: len(before) // 2])
    assert char_lm.main([*arguments, "--impl", "fastrnn", "--resume"]) == 2
    assert "expected a checkpoint of this program, got" in capsys.readouterr().err


def test_training_that_runs_away_stops_with_a_reason(arguments, tmp_path, capsys):
    assert char_lm.main([*arguments, "--lr", "1e30", "--clip", "0"]) == 1
    assert "expected finite perplexities, got" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.pt"))


# --- the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("impl", list(model.LIBRARIES))
def test_consecutive_sampling_carries_the_state(impl, cell, text):
    """With weights that stand still, the chunks of an epoch are one long sequence per stream."""
    corpus = data.Corpus.from_text("words", text)
    losses: dict[str, list[float]] = {"consecutive": [], "random": []}
    for sampling, into in losses.items():
        run = train.Run(impl, recipe(corpus, cell=cell, sampling=sampling), corpus)
        run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.0)
        for weight in run.model.rnn.parameters():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(5))  # a state that matters
        run.train_epoch(lambda loss, into=into: into.append(float(loss)))

    steps, batch, seq_len = run.steps, 4, 16
    length = (len(corpus.train) - 1) // batch
    streams = torch.stack([corpus.train[b * length : b * length + steps * seq_len + 1] for b in range(batch)], dim=1)
    for carried, sequences in [(True, [streams]), (False, [streams[i : i + 17] for i in range(0, steps * 16, 16)])]:
        nll = []
        for sequence in sequences:
            logits, _ = run.model(sequence[:-1])
            picked = logits.log_softmax(-1).gather(-1, sequence[1:, :, None])
            nll += [-float(part.detach().mean()) for part in picked.split(seq_len)]
        assert (losses["consecutive"] == pytest.approx(nll, rel=1e-4)) == carried
    assert losses["random"] != pytest.approx(losses["consecutive"], rel=1e-4)


def test_evaluation_carries_the_state(text):
    corpus = data.Corpus.from_text("words", text)
    run = train.Run("fastrnn", recipe(corpus, batch=1), corpus)
    logits, _ = run.model(corpus.held_out[:-1, None])
    expected = exp(float(torch.nn.functional.cross_entropy(logits[:, 0].detach(), corpus.held_out[1:])))
    assert run.evaluate() == pytest.approx(expected, rel=1e-5)


def test_samples_are_deterministic(text):
    corpus = data.Corpus.from_text("words", text)
    net = train.Run("fastrnn", recipe(corpus), corpus).model
    first = model.sample(net, corpus, "the ", 50, 1.0, seed=1)
    assert len(first) == 50
    assert set(first) <= set(text)
    torch.rand(7)  # the global generator has no part in it
    assert model.sample(net, corpus, "the ", 50, 1.0, seed=1) == first
    assert model.sample(net, corpus, "the ", 50, 1.0, seed=2) != first
    greedy = model.sample(net, corpus, "the ", 50, 0.0, seed=1)
    assert model.sample(net, corpus, "the ", 50, 0.0, seed=2) == greedy
    # Greedy text, given back to the model whole, is at each place the likeliest continuation.
    logits, _ = net(corpus.encode("the " + greedy[:-1]).unsqueeze(1))
    assert corpus.decode(logits[3:, 0].argmax(-1)) == greedy


def test_random_chunks_are_pieces_of_the_text():
    numbers = torch.arange(100)
    generator = torch.Generator().manual_seed(0)
    chunks = list(data.random_chunks(numbers, 4, 7, generator))
    assert len(chunks) == data.chunk_count(numbers, 4, 7) == 3
    for inputs, targets in chunks:
        assert inputs.shape == (7, 4)
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(inputs, inputs[0] + torch.arange(7)[:, None])
    starts = [
        int(s) for _ in range(100) for inputs, _ in data.random_chunks(numbers, 4, 7, generator) for s in inputs[0]
    ]
    assert set(starts) == set(range(93))  # from the first to the last that leaves room for a target


def test_the_documentation_text_repeats_no_paragraph():
    paragraphs = data.python_topics().split("\n\n")
    assert len(paragraphs) > 1000
    assert max(Counter(paragraphs).values()) == 1
    assert any("for_stmt" in paragraph for paragraph in paragraphs)


def test_unigram_perplexity_is_that_of_the_held_out_text(text):
    corpus = data.Corpus.from_text("words", text)
    train_text, held_out = text[: TEXT_LENGTH * 9 // 10], text[TEXT_LENGTH * 9 // 10 :]
    counts, size = Counter(train_text), len(set(text))
    nll = [-log((counts[c] + 1) / (len(train_text) + size)) for c in held_out[1:]]
    assert data.unigram_perplexity(corpus, batch=1, seq_len=16) == pytest.approx(exp(sum(nll) / len(nll)))


def test_parity_has_limits_for_the_first_steps_and_for_the_whole_run():
    def compare(opening: float = 2.0, held_out: float = 2.0) -> report.Comparison:
        sides = []
        for first, last in [(2.0, 2.0), (opening, held_out)]:
            run = object.__new__(train.Run)
            run.device = torch.device("cpu")
            run.history = [train.Epoch(1, 2.0, last, 10, 1.0, [2.0], opening=[2.0, first])]
            sides.append(run)
        return report.compare(*sides)

    assert compare().equal
    assert compare(opening=2.0001).equal
    assert not compare(opening=2.001).equal
    assert compare(held_out=2.05).equal
    assert not compare(held_out=2.2).equal
    assert compare(held_out=2.2).whole == pytest.approx(0.1)
    assert not compare(opening=float("nan")).equal
    assert not compare(held_out=float("nan")).equal
