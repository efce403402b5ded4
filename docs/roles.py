"""A griffe extension: docstrings' roles (:func:`name`) become code; what Markdown would read as markup stays text."""

from __future__ import annotations

import re

import griffe

ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
CODE = re.compile(r"(``.+?``|`.+?`)", re.DOTALL)


def as_markdown(text: str) -> str:
    """A docstring's text, as Markdown that reads the same."""
    parts = CODE.split(ROLE.sub(r"`\1`", text))
    parts[::2] = [re.sub(r"([_<*])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


class Roles(griffe.Extension):
    """Applies :func:`as_markdown` to every docstring."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
