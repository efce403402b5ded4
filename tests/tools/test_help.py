"""`python -m fastrnn --help` names every command and every setting, and each command explains its options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastrnn import __main__ as command

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("info", "check", "prove", "tune", "bench")


def settings(*places: str) -> set[str]:
    """The environment variables that the sources in these places name."""
    paths = [path for place in places for path in (ROOT / place, *(ROOT / place).rglob("*")) if path.is_file()]
    sources = [path.read_text(encoding="utf-8") for path in paths if path.suffix in (".py", ".h", ".cpp")]
    return set(re.findall(r'"(FASTRNN_\w+)"', "".join(sources))) - {"FASTRNN_WITH_CUDA"}  # a macro


def test_usage_names_every_command_and_setting(capsys):
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name}\b", text, re.MULTILINE) for name in COMMANDS)
    assert set(re.findall(r"^  (FASTRNN_\w+)", text, re.MULTILINE)) == settings("fastrnn", "csrc")


def test_the_table_of_settings_is_whole():
    table = re.findall(r"^\| `(FASTRNN_\w+)` \|", (ROOT / "docs/install.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == sorted(settings("fastrnn", "csrc", "setup.py")) and len(table) <= 7


def test_usage_is_an_error_without_a_command(capsys):
    assert command.main([]) == 2 and command.main(["nothing"]) == 2
    assert "usage: python -m fastrnn" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0 and f"usage: python -m fastrnn {name}" in capsys.readouterr().out


def test_info_refuses_options(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["info", "--nothing"])
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("bench --hidden 0", "--hidden: expected a whole number of at least 1, got '0'"),
        ("bench --batch 1e3", "--batch: expected a whole number of at least 1, got '1e3'"),
        ("bench --resets nan", "--resets: expected a share between 0 and 1, got 'nan'"),
        ("bench --seconds inf", "--seconds: expected a positive number of seconds, got 'inf'"),
        ("bench --seconds=-1", "--seconds: expected a positive number of seconds, got '-1'"),
        ("bench --device foo", "--device: expected cpu, cuda or cuda:N, got 'foo'"),
        ("bench --device meta", "--device: expected cpu, cuda or cuda:N, got 'meta'"),
        ("bench --device cuda:99", "--device: expected a device here, got cuda:99: torch"),
        ("bench --option num_heads", "--option: expected NAME=VALUE, or several with commas between them, got 'num_"),
        ("bench --option num_heads=1,num_heads=2", "zoneout, num_heads once at most, got num_heads"),
        ("bench --option forget_gate=exp", "zoneout, num_heads once at most, got forget_gate"),
        ("bench --hidden 4 --option num_heads=3", "num_heads must be a divisor of hidden_size = 4, got 3"),
        ("bench --cell slstm --hidden 4 --option num_heads=3", "num_heads must be a divisor of hidden_size = 4, got 3"),
        ("bench --cell slstm --option forget_gate=x", "forget_gate must be 'sigmoid' or 'exp', got 'x'"),
        ("bench --backend foo", "--backend: invalid choice: 'foo' (choose from"),
        ("bench --backend cuda", "--backend: expected one that serves this call, got cuda: "),
        ("bench --backend aten --cell slstm", "--backend: expected one that serves this call, got aten: torch has no "),
        ("bench --resets 0.1 --packed", "--resets: expected padded input in one direction, got --packed"),
        ("bench --precision tf32", "--precision: expected float32 on CUDA, got float32 on cpu"),
        ("tune --seconds nan", "--seconds: expected a positive number of seconds, got 'nan'"),
        ("prove --device cpu", "--device: expected cuda or cuda:N, got 'cpu'"),
        ("prove --forget --only GRU:float32", "--forget: expected no --only, for all of a GPU is deleted, got GRU:"),
    ],
)
def test_wrong_usage_is_one_sentence(given, text, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(given.split())
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    last = said.err.splitlines()[-1]
    assert last.startswith(f"python -m fastrnn {given.split()[0]}: error: argument --") and text in last
