"""Every Python block of README.md runs as it stands, each in a fresh namespace; its links lead somewhere.

A block that needs a GPU, a C++ compiler or a package outside the tests' own says so in the line above:
``<!-- needs: gpu, compiler, onnx -->``.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from emulator.build import compiler

README = Path(__file__).parents[1] / "README.md"


def blocks(text: str) -> list[tuple[int, str, list[str]]]:
    """(line, source, needs) of every Python block."""
    found = []
    for match in re.finditer(r"^(?:<!-- needs: ([^>]+?) -->\n)?```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        needs = [name.strip() for name in match[1].split(",")] if match[1] else []
        found.append((text.count("\n", 0, match.start(2)) + 1, match[2], needs))
    return found


def lacking(needs: list[str]) -> str | None:
    """What this machine lacks of ``needs``."""
    for name in needs:
        if name == "gpu":
            if not torch.cuda.is_available():
                return "needs a GPU: torch.cuda.is_available() is False"
        elif name == "compiler":
            if compiler() is None:
                return "needs a C++ compiler, for torch's Inductor"
        elif importlib.util.find_spec(name) is None:
            return f"needs {name}, which is not installed"
    return None


BLOCKS = blocks(README.read_text(encoding="utf-8"))


def test_blocks_are_found():
    text = README.read_text(encoding="utf-8")
    assert len(BLOCKS) == text.count("```python") >= 10
    assert sum(bool(needs) for *_, needs in BLOCKS) == text.count("<!-- needs:")
    assert blocks("a\n<!-- needs: x, gpu -->\n```python\n1\n```\n") == [(4, "1\n", ["x", "gpu"])]
    assert "no_such_package" in lacking(["torch", "no_such_package"])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("line, source, needs", BLOCKS, ids=[f"line-{line}" for line, *_ in BLOCKS])
def test_block(line, source, needs, tmp_path, monkeypatch):
    reason = lacking(needs)
    if reason:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    exec(compile("\n" * (line - 1) + source, str(README), "exec"), {"__name__": "__main__"})


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (README.parent / link).exists()]
    assert not missing and len(links) > 10
