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
