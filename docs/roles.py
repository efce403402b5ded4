"""A griffe extension: docstrings' roles (:func:`name`) become code; what Markdown would read as markup stays text."""

from __future__ import annotations

import re

import griffe

ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
CODE = re.compile(r"(``.+?``|`.+?`)", re.DOTALL)
MARKUP = re.compile(r"^ +[\w, ]+:|[_<*]", re.MULTILINE)  # the name of an argument stays as it is


def as_markdown(text: str) -> str:
    """A docstring's text, as Markdown that reads the same."""
    parts = CODE.split(ROLE.sub(r"`\1`", text))
    parts[::2] = [MARKUP.sub(lambda m: m[0] if len(m[0]) > 1 else f"\\{m[0]}", part) for part in parts[::2]]
    return "".join(parts)


class Roles(griffe.Extension):
    """Applies :func:`as_markdown` to every docstring."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
