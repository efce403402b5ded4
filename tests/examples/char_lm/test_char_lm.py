"""examples/char_lm.py: both sides learn the same, and each part does what it says."""

import csv
from collections import Counter
from math import exp, log

import char_lm
import pytest
import torch
from _char_lm import data, model, report, train
from char_lm_support import TEXT_LENGTH, recipe

import fastrnn

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

    def places() -> list[int]:
        return [int(s) for inputs, _ in data.random_chunks(numbers, 4, 7, generator.manual_seed(1)) for s in inputs[0]]

    first = places()
    torch.rand(7)  # dropout draws from the global generator, the places must not
    assert places() == first
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


def test_parity_has_limits_for_the_first_steps_and_up_to_the_lowest_held_out_perplexity():
    def compare(opening: float = 2.0, held_out: float = 2.0, overfitted: float = 3.0) -> report.Comparison:
        sides = []
        for first, second, third in [(2.0, 2.0, 3.0), (opening, held_out, overfitted)]:
            run = object.__new__(train.Run)
            run.device = torch.device("cpu")
            values = enumerate((4.0, second, third), start=1)
            run.history = [train.Epoch(n, 2.0, value, 10, 1.0, [2.0], opening=[2.0, first]) for n, value in values]
            sides.append(run)
        return report.compare(*sides)

    assert compare().equal
    assert compare(opening=2.0001).equal
    assert not compare(opening=2.001).equal
    assert compare(held_out=2.05).equal
    assert not compare(held_out=2.2).equal
    assert compare(held_out=2.2).whole == pytest.approx(0.1)
    assert compare(overfitted=30.0).equal and compare().epochs == 2
    assert not compare(opening=float("nan")).equal
    assert not compare(held_out=float("nan")).equal
