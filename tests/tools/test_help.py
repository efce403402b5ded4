"""`python -m fastrnn --help` names every command and every setting, and each command explains its options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fastrnn
from fastrnn import __main__ as command

COMMANDS = ("info", "check", "prove", "tune", "bench")
OF_THE_BUILD = {"FASTRNN_CUDA", "FASTRNN_PURE", "FASTRNN_REQUIRE_EXT"}


def test_usage_names_every_command_and_setting(capsys):
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name}\b", text, re.MULTILINE) for name in COMMANDS)
    sources = [path.read_text(encoding="utf-8") for path in Path(fastrnn.__file__).parent.rglob("*.py")]
    read = {name for source in sources for name in re.findall(r'environ(?:\.get\(|\[)\s*"(FASTRNN_\w+)"', source)}
    assert len(read) >= 5 and not {name for name in read - OF_THE_BUILD if name not in text}


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
