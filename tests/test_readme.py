"""Every Python block of README.md and docs/ runs as it stands, in a fresh namespace; links and names lead somewhere.

A block that needs a GPU, a C++ compiler or a package outside the tests' own says so in the line above:
``<!-- needs: gpu, compiler, onnx -->``.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from emulator.build import compiler

from fastrnn._kernels import ops

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/**/*.md"))]
DOCUMENTS = [*PAGES, *map(ROOT.joinpath, ("CONTRIBUTING.md", "benchmarks/README.md", "examples/README.md"))]


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
        elif name == "extension":
            if ops.missing("cpu") is not None:
                return f"needs the compiled extension: {ops.missing('cpu')}"
        elif name == "compiler":
            if compiler() is None:
                return "needs a C++ compiler, for torch's Inductor"
        elif importlib.util.find_spec(name) is None:
            return f"needs {name}, which is not installed"
    return None


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


BLOCKS = [
    pytest.param(page, *block, id=f"{name_of(page)}-{block[0]}")
    for page in PAGES
    for block in blocks(page.read_text(encoding="utf-8"))
]


def test_blocks_are_found():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(BLOCKS) == text.count("```python") >= 20
    assert sum(bool(block.values[3]) for block in BLOCKS) == text.count("<!-- needs:")
    assert blocks("a\n<!-- needs: x, gpu -->\n```python\n1\n```\n") == [(4, "1\n", ["x", "gpu"])]
    assert "no_such_package" in lacking(["torch", "no_such_package"])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("page, line, source, needs", BLOCKS)
def test_block(page, line, source, needs, tmp_path, monkeypatch):
    reason = lacking(needs)
    if reason:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    exec(compile("\n" * (line - 1) + source, str(page), "exec"), {"__name__": "__main__"})


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", text):
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor[1:] in slugs(target), f"{path}{anchor}"


def test_documents_stay_short():
    for document, lines in (("README.md", 200), ("benchmarks/NOTES.md", 150)):
        assert len((ROOT / document).read_text(encoding="utf-8").splitlines()) <= lines, document


def test_the_tests_that_features_names_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/features.md").read_text(encoding="utf-8")))
    missing = {name for name in named if not list(ROOT.glob(f"tests/**/{name}.py"))}
    assert len(named) > 15 and not missing


def test_the_walk_names_functions_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walk = text.split("## Path of a call")[1].split("\n## ")[0]
    stops = re.findall(r"^\d+\. `([^`]+)`, `([^`]+)`", walk, re.MULTILINE)
    assert 0 < len(stops) == len(re.findall(r"^\d+\.", walk, re.MULTILINE)) <= 12
    for file, function in stops:
        name = re.split(r"\.|::", function)[-1]
        # Defined there, not declared or called: before a body comes no semicolon.
        defined = rf"\bdef {name}\(" if file.endswith(".py") else rf"\b{name}\([^;]*?\)[^;{{}}]*\{{"
        assert re.search(defined, (ROOT / file).read_text(encoding="utf-8")), f"{file}: {function}"


def test_the_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    blocks = (
        ("<!-- results:", 7, "| GRU |"),
        ("<!-- clients -->", 1, "| `pfrl` |"),
        ("<!-- deployed:", 4, "| OpenVINO |"),
        ("<!-- own:", 1, "| SLSTM num_heads=4 |"),
        ("<!-- deployed:", 1, "| OpenVINO |"),
        ("<!-- results:", 1, "| GRU |"),
    )
    for path, (begin, count, name) in zip((*tables.PAGES, tables.PAGES[-1]), blocks, strict=True):
        page = path.read_text(encoding="utf-8")
        assert tables.with_tables(page) == page and page.count(begin) == count
        assert name in page and tables.with_tables(page.replace(name, "| XYZ |")) == page
    for name in ("tables", "plot", "results", "summary", "cases", "deployed_report"):
        sys.modules.pop(name, None)
