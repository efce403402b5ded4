"""examples/char_lm.py: a resumed run is the uninterrupted one, and bad arguments are refused."""

import signal
from pathlib import Path

import char_lm
import pytest
import torch
from _char_lm import model, train
from _shared import files
from char_lm_support import PROGRAM, results, saved

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


@pytest.mark.parametrize("during", ["__init__", "close"])
def test_an_interrupted_bar_is_closed_before_the_last_word(during, arguments, monkeypatch):
    """One that is left open clears its line when it is collected, after what says how to go on."""
    bars = []

    class Bar(char_lm.tqdm):
        def __init__(self, *args, **options):
            bars.append(self)
            super().__init__(*args, **options)

    def interrupted(self, *args, **options):
        monkeypatch.setattr(Bar, during, original)
        signal.raise_signal(signal.SIGINT)
        original(self, *args, **options)

    original = getattr(Bar, during)
    monkeypatch.setattr(Bar, during, interrupted)
    monkeypatch.setattr(char_lm, "tqdm", Bar)
    monkeypatch.setattr(char_lm, "print_interrupted", lambda *_: bars.append([bar.disable for bar in bars]))
    assert char_lm.main(arguments) == 130
    assert bars[-1] == [True]


def test_an_interrupt_while_saving_waits():
    done = []
    with pytest.raises(KeyboardInterrupt), files.interrupt_postponed():
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
        files.write_atomically(path, write_half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_run_keeps_the_checkpoints_of_the_old_one(arguments, tmp_path):
    assert char_lm.main([*arguments, "--impl", "torch", "--epochs", "1"]) == 0
    old = (tmp_path / "checkpoint-torch.pt").read_bytes()
    assert char_lm.main([*arguments, "--impl", "torch", "--epochs", "1", "--seed", "9"]) == 0
    assert (tmp_path / "checkpoint-torch.pt.previous").read_bytes() == old
    assert saved(tmp_path, "torch")["arguments"]["seed"] == 9


def test_every_nth_epoch_is_saved_and_reported(arguments, tmp_path, capsys):
    arguments += ["--impl", "fastrnn", "--every", "2"]
    assert char_lm.main([*arguments, "--epochs", "5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "  fastrnn.LSTM  " in line]
    assert [line.split()[0] for line in lines] == ["2", "4", "5"]
    assert saved(tmp_path, "fastrnn")["epoch"] == 5
    assert char_lm.main([*arguments, "--epochs", "6", "--resume"]) == 0
    assert saved(tmp_path, "fastrnn")["epoch"] == 6


# --- refusals ------------------------------------------------------------------------------------------------------

REFUSALS = [
    (["--bidirectional"], "argument --bidirectional: expected a model that reads forwards only, got one"),
    (["--layers", "0"], "argument --layers: expected a whole number >= 1, got '0'"),
    (["--epochs", "ten"], "argument --epochs: expected a whole number >= 1, got 'ten'"),
    (["--dropout", "1"], "argument --dropout: expected a number >= 0 and < 1, got '1'"),
    (["--lr", "inf"], "argument --lr: expected a number > 0, got 'inf'"),
    (["--clip", "nan"], "argument --clip: expected a number >= 0, got 'nan'"),
    (["--device", "meta"], "argument --device: expected a device that torch can use here, got 'meta' ("),
    (["--prime", ""], "argument --prime: expected at least one character, got ''"),
    (["--prime", "the Q?"], "argument --prime: expected characters that occur in the text, got '?Q'"),
    (["--seq-len", "1000"], "argument --text: expected 4001 characters or more to train on (batch 4 x seq-len 1000 "),
    (["--text", "no/such.txt"], "argument --text: expected a readable text file, got 'no/such.txt' (No such file"),
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
