"""examples/char_lm.py: both sides learn the same, and each part does what it says."""

import csv
from math import exp, nan
from types import SimpleNamespace

import char_lm
import pytest
import torch
from _char_lm import data, model, options, report, train
from char_lm_support import TEXT_LENGTH, losses_of, recipe

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


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("changes", [{}, {"sampling": "random", "dropout": 0.2}, {"embedding": 0}], ids=str)
def test_both_sides_have_the_same_losses(cell, changes, corpus):
    losses = {}
    for impl, library in model.LIBRARIES.items():
        run = train.Run(impl, recipe(corpus, cell=cell, layers=2, **changes), corpus)
        assert type(run.model.rnn) is getattr(library, model.CELLS[cell])
        losses[impl] = losses_of(run)
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
def test_consecutive_sampling_carries_the_state(impl, cell, corpus):
    """With weights that stand still, the chunks of an epoch are one long sequence per stream."""
    losses = {}
    for sampling in ("consecutive", "random"):
        run = train.Run(impl, recipe(corpus, cell=cell, sampling=sampling), corpus)
        run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.0)
        for weight in run.model.rnn.parameters():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(5))  # a state that matters
        losses[sampling] = losses_of(run)

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


def test_evaluation_carries_the_state(corpus):
    run = train.Run("fastrnn", recipe(corpus, batch=1), corpus)
    logits, _ = run.model(corpus.held_out[:-1, None])
    expected = exp(float(torch.nn.functional.cross_entropy(logits[:, 0].detach(), corpus.held_out[1:])))
    assert run.evaluate() == pytest.approx(expected, rel=1e-5)


def test_samples_are_deterministic(text, corpus):
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


def test_one_hot_characters(corpus):
    net = train.Run("fastrnn", recipe(corpus, embedding=0), corpus).model
    seen = net.embed(corpus.train[:3, None])
    assert torch.equal(seen, torch.nn.functional.one_hot(corpus.train[:3, None], len(corpus.vocabulary)).float())


def test_random_chunks_are_pieces_of_the_text():
    numbers, generator, starts = torch.arange(100), torch.Generator().manual_seed(0), set()
    for _ in range(100):
        chunks = list(data.random_chunks(numbers, 4, 7, generator))
        assert len(chunks) == data.chunk_count(numbers, 4, 7) == 3
        for inputs, targets in chunks:
            assert torch.equal(inputs, inputs[0] + torch.arange(7)[:, None]) and torch.equal(targets, inputs + 1)
            starts.update(inputs[0].tolist())
    assert starts == set(range(93))  # from the first to the last that leaves room for a target


def test_fortune_files_are_plain_text(tmp_path):
    path = tmp_path / "poems"
    path.write_text("\x1b[32mA title\x1b[m\n100 % sure\n%\n\x1b[1;33mThe next\x1b[m\n", encoding="utf-8")
    assert data.read_text(path) == "A title\n100 % sure\n\nThe next\n"


def test_the_published_recipe_and_what_may_be_changed_in_it(tmp_path):
    args, corpus, found = options.parse(["--published", "--out", str(tmp_path), "--device", "cpu"])
    assert (found.embedding, found.hidden, found.batch, found.seq_len, args.epochs) == (0, 256, 32, 35, 250)
    assert len(corpus.train) == 10_000
    args, _, found = options.parse(["--published", "--epochs", "3", "--hidden", "8", "--out", str(tmp_path)])
    assert (args.epochs, found.hidden, found.seq_len) == (3, 8, 35)


def test_parity_has_limits_for_the_first_steps_and_up_to_the_lowest_held_out_perplexity():
    def side(opening: float, held_out: float, overfitted: float) -> SimpleNamespace:
        values = enumerate((4.0, held_out, overfitted), start=1)
        history = [train.Epoch(n, 2.0, value, 10, 1.0, [2.0], opening=[2.0, opening]) for n, value in values]
        return SimpleNamespace(device=torch.device("cpu"), history=history)

    def is_equal(opening: float = 2.0, held_out: float = 2.0, overfitted: float = 3.0) -> bool:
        return report.compare(side(2.0, 2.0, 3.0), side(opening, held_out, overfitted)).equal

    assert is_equal() and is_equal(opening=2.0001) and is_equal(held_out=2.05) and is_equal(overfitted=30.0)
    assert not is_equal(opening=2.001) and not is_equal(held_out=2.2)
    assert not is_equal(opening=nan) and not is_equal(held_out=nan)
