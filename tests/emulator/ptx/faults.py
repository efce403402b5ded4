"""Faults planted in the PTX of one entry: the tests must notice them."""

from __future__ import annotations

import re

from . import compiled
from .blocks import Translation
from .parse import Module


class Planted:
    """Replaces place number ``number`` of a pattern in the entries whose names have ``within``.

    An Executed takes it as ``change``. ``places`` says how many places there were in the last such entry that ran.
    """

    def __init__(self, within: str, pattern: str, replacement, number: int = 0) -> None:
        self.within, self.pattern, self.replacement, self.number = within, re.compile(pattern), replacement, number
        self.places, self._made = 0, {}

    def __call__(self, source: str, architecture: int, name: str, translated: Translation) -> Translation:
        if self.within not in name:
            return translated
        if name not in self._made:
            self._made[name] = self._plant(compiled.module(source, architecture), name)
        self.places, made = self._made[name]
        return made

    def _plant(self, module: Module, name: str) -> tuple[int, Translation]:
        text = module.text_of(name)
        found = list(self.pattern.finditer(text))
        if len(found) > self.number:
            place = found[self.number]
            text = text[: place.start()] + place.expand(self.replacement) + text[place.end() :]
        changed = Module(module.head + text)
        return len(found), Translation(changed, changed.entry(name))
