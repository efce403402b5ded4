"""Hooks of mkdocs.yml: links from pages to files of the repository outside docs/ lead to copies under `repo/`.

So a page has one kind of link, relative to where it lies, which works on a code host, in a checkout and on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "repo/"
LINK = re.compile(r"(\]\()([^()\s#:]+)(#[^()\s]*)?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def in_repository(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    return uri.removeprefix(PREFIX) if uri.startswith(PREFIX) else f"docs/{uri}"


def site_place(path: str) -> str:
    """Where a file of the repository lies on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else PREFIX + path


def targets_of(path: str) -> set[str]:
    """What the Markdown file at ``path`` links to, as paths in the repository."""
    text = FENCE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    return {posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2])) for match in LINK.finditer(text)}


def on_files(files, config):
    """Adds every file outside docs/ that a page, or such a file, links to; and those in the navigation."""
    pending = [in_repository(file.src_uri) for file in files.documentation_pages()]
    pending += re.findall(rf"{PREFIX}(\S+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    done: set[str] = set()
    while pending:
        path = pending.pop()
        if path in done or not (ROOT / path).is_file():
            continue
        done.add(path)
        if files.get_file_from_path(site_place(path)) is None:
            files.append(File.generated(config, site_place(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            pending += targets_of(path)
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns the links of a page into links between places on the site; one to a folder becomes its text."""
    here = in_repository(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), match[2]))
        if not (ROOT / path).exists():
            return match[0]  # for mkdocs to report
        target = site_place(path if (ROOT / path).is_file() else f"{path}/README.md")
        if files.get_file_from_path(target) is None:
            target = page.file.src_uri
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or '.')}{match[3] or ''})"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(moved, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join(parts) + LINK.sub(moved, markdown[end:])
