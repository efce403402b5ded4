"""examples/char_lm.py: the textbook recipe, one-hot characters, texts of a terminal, saving every N-th epoch."""

import char_lm
import pytest
import torch
from _char_lm import data, model, options, train
from char_lm_support import recipe, saved


def test_one_hot_characters_reach_both_sides(text):
    corpus = data.Corpus.from_text("words", text)
    losses = {}
    for impl in model.LIBRARIES:
        run = train.Run(impl, recipe(corpus, embedding=0), corpus)
        assert run.model.rnn.input_size == len(corpus.vocabulary)
        seen = run.model.embed(corpus.train[:3, None])
        assert torch.equal(seen.argmax(-1), corpus.train[:3, None])
        assert torch.equal(seen.sum(-1), torch.ones(3, 1))
        losses[impl] = []
        run.train_epoch(lambda loss, impl=impl: losses[impl].append(float(loss)))
    assert losses["fastrnn"] == pytest.approx(losses["torch"], rel=1e-5)


def test_the_published_recipe_and_what_may_be_changed_in_it(tmp_path):
    args, corpus, found = options.parse(["--published", "--out", str(tmp_path), "--device", "cpu"])
    assert (found.embedding, found.hidden, found.batch, found.seq_len) == (0, 256, 32, 35)
    assert args.epochs == 250
    assert len(corpus.train) == 10_000
    args, _, found = options.parse(["--published", "--epochs", "3", "--hidden", "8", "--out", str(tmp_path)])
    assert (args.epochs, found.hidden, found.seq_len) == (3, 8, 35)


def test_a_small_text_is_known_by_heart(text_file, tmp_path, capsys):
    """The recipe in small: the training perplexity comes close to 1, consecutive sampling ahead of random."""
    sizes = (
        "--published --max-chars 400 --hidden 48 --batch 4 --seq-len 16 --epochs 40 --lr 0.01 --every 20 --sample 10"
    )
    reached = {}
    for sampling in ("consecutive", "random"):
        out = tmp_path / sampling
        arguments = ["--text", str(text_file), "--out", str(out), "--impl", "fastrnn", "--sampling", sampling]
        assert char_lm.main([*arguments, *sizes.split(), "--device", "cpu"]) == 0
        reached[sampling] = saved(out, "fastrnn")["history"][-1]["train_perplexity"]
    assert reached["consecutive"] < 1.5
    assert reached["consecutive"] < reached["random"]


def test_every_nth_epoch_is_saved_and_reported(arguments, tmp_path, capsys):
    arguments += ["--impl", "fastrnn", "--every", "2"]
    assert char_lm.main([*arguments, "--epochs", "5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "  fastrnn.LSTM  " in line]
    assert [line.split()[0] for line in lines] == ["2", "4", "5"]
    assert saved(tmp_path, "fastrnn")["epoch"] == 5
    assert char_lm.main([*arguments, "--epochs", "6", "--resume"]) == 0
    assert saved(tmp_path, "fastrnn")["epoch"] == 6


def test_fortune_files_are_plain_text(tmp_path):
    path = tmp_path / "poems"
    path.write_text("\x1b[32mA title\x1b[m\n100 % sure\n%\n\x1b[1;33mThe next\x1b[m\n", encoding="utf-8")
    assert data.read_text(path) == "A title\n100 % sure\n\nThe next\n"
