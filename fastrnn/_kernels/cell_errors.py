"""What a compiler says of a user's cell, as one sentence that names the header and the line.

``csrc/user/check.cpp`` states what a header must have; what ``forward`` may not do stops the compiler while it runs
``forward`` on symbols (``csrc/cells/graph.h``).
"""

from __future__ import annotations

import re
from pathlib import Path

OPERATIONS = "+ - * quotient max_ exp_ log_ tanh_ sigmoid_ log_sigmoid_ relu_ and constants A(0.5)"
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
"""What a layer calls its other parameters."""
_PLACE = r"^(.+?)[:(](\d+)\)?:(?:\d+:)? *"  # nvcc's have the line in brackets
_ERROR = re.compile(_PLACE + r"(?:fatal )?error: (.*)$")
_ASSERTION = re.compile(r"static assertion failed.*: ((kGates|kStates|kParams|kScalars|kNoise|kRecurrent|forward) .*)$")
_PREAMBLE = re.compile(r"non-constant condition for static assertion|called in a constant expression")
_BEYOND = re.compile(r"subscript value '(-?\d+)' is outside the bounds of array '(\w+)' of type '.*\[(\d+)\]'")
_NAMESPACE = re.compile(r"in namespace '::' does not name a type|no type named '\w+' in the global namespace")
_UNKNOWN = (
    r"'([\w:]+)' was not declared in this scope",
    r"use of undeclared identifier '([\w:]+)'",
    r"no matching function for call to '([\w:]+)",
    r"call to function '([\w:]+)' that is neither visible",
    r"'([\w:]+)' is not a member of 'std'",
)
_STRUCT = r"(?<!enum )\b(?:struct|class)\s+(?:(?:alignas\s*\([^()]*\)|\[\[.*?\]\])\s*)*"
"""What a struct begins with, to its name."""
_OPERATOR = (r"no match for '(operator[^' ]+)'", r"no match for ternary '(operator.*?)'")


class Header:
    """A user's header: the path in messages, its text, and the struct that is the cell.

    Raises:
        ValueError: the text has no struct of that name, or none or several and no name is given; it includes another
            header; parameters have names that cannot be.
    """

    def __init__(self, path: str, text: str, name: str | None) -> None:
        self.path, self.text = path, text
        self._code = _without_comments(text)
        own = re.search(r'^[ \t]*#[ \t]*include[ \t]*"', self._code, re.MULTILINE)
        if own:
            raise ValueError(self.at(self._line_at(own.start()), "a cell's header includes no other: it is kept whole"))
        structs = dict.fromkeys(
            match[1] for match in re.finditer(_STRUCT + r"(\w+)(?:\s+final)?\s*(?:\{|:(?!:))", self._code)
        )
        if name is None and len(structs) != 1:
            found = f"has the structs {', '.join(structs)}: say which, as name=" if structs else "has no struct"
            raise ValueError(self.at(1, f"a cell is a struct, and the header {found}"))
        if name is not None and name not in structs:
            raise ValueError(self.at(1, f"expected a struct {name}, the header has {', '.join(structs) or 'none'}"))
        self.name = name or next(iter(structs))
        self._begin = re.search(rf"{_STRUCT}{self.name}\b", self._code).start()
        params = self._strings_of("kParams")
        if len(set(params)) < len(params) or any(not p.isidentifier() or p in WEIGHTS for p in params):
            text = f"kParams must be different names, and none of {', '.join(WEIGHTS)}; got {', '.join(params)}"
            raise ValueError(self.at(self.line_of("kParams"), text))

    def at(self, line: int, text: str) -> str:
        """The sentence about a line."""
        return f"{self.path}:{line}: {text}"

    def line_of(self, *texts: str) -> int:
        """The first line with the first of the texts that is anywhere; else that of the struct."""
        found = (self._search(rf"\b{re.escape(text)}(?!\w)") for text in (*texts, self.name))
        return self._line_at(next(filter(None, found)).start())

    def states_not_set(self) -> list[int]:
        """The states that nothing seems to be assigned to."""
        count = len(self._strings_of("kStates"))
        return [s for s in range(count) if not self._search(rf"\bnext\s*\[\s*{s}\s*\]\s*=")]

    def _search(self, pattern: str) -> re.Match | None:
        """In the struct, and what stands after it."""
        return re.compile(pattern).search(self._code, self._begin)

    def _strings_of(self, member: str) -> list[str]:
        """The strings in a member's initial value."""
        found = self._search(rf"\b{member}\s*\[[^]]*\]\s*=?\s*\{{([^;]*);")
        return re.findall(r'"([^"]*)"', found[1]) if found else []

    def _line_at(self, position: int) -> int:
        return self._code.count("\n", 0, position) + 1


def _without_comments(text: str) -> str:
    """The text with comments blanked, lines kept."""
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
    return pattern.sub(lambda m: m[0] if m[0][0] == '"' else re.sub(r"[^\n]", " ", m[0]), text)


def sentence(output: str, header: Header) -> str:
    """What is wrong, from the compiler's ``output``, whose places in the header go by ``header.path``."""
    if _NAMESPACE.search(output):
        return header.at(header.line_of(header.name), "the struct must stand outside of every namespace")
    lines = output.splitlines()
    errors = [(index, match) for index, line in enumerate(lines) if (match := _ERROR.match(line))]
    # GCC says first that there is something, then what.
    errors = [(index, match) for index, match in errors if not _PREAMBLE.search(match[3])] or errors
    if not errors:
        return header.at(
            header.line_of(header.name), f"the compiler says: {' '.join(output.split())[-200:] or 'nothing'}"
        )
    index, (file, number, message) = errors[0][0], errors[0][1].groups()
    if file == header.path:
        return header.at(int(number), _plain(message))
    if assertion := _ASSERTION.search(message):
        return header.at(header.line_of(assertion[2]), assertion[1].strip('"'))
    if beyond := _BEYOND.search(message):
        return _not_there(header, int(beyond[1]), beyond[2], int(beyond[3]))
    thrown = _thrown(lines)
    if thrown and "every state" in thrown:
        names = " and ".join(f"next[{s}]" for s in header.states_not_set())
        text = f"and sets no {names}" if names else "to what depends on its inputs"
        return header.at(header.line_of("forward"), f"forward must set every state, {text}")
    return header.at(_nearest(lines, index, header) or header.line_of("forward"), thrown or _plain(message))


def _not_there(header: Header, index: int, array: str, length: int) -> str:
    """An entry of a list of ``trace`` in ``csrc/cells/graph.h``."""
    member = {"params": "kParams", "scalars": "kScalars", "prev": "kStates", "next": "kStates"}.get(array, "kGates")
    if array in ("params", "scalars"):
        index, length = index - 1, length - 1  # they begin with one that is not theirs
    name = f"{'' if array == 'next' else 'in.'}{array}[{index}]"
    return header.at(
        header.line_of(f"{array}[{index}]", "forward"), f"{name} is not there: {member} names {max(length, 0)}"
    )


def _nearest(lines: list[str], index: int, header: Header) -> int | None:
    """The line of the header that led to an error elsewhere: GCC says so before the error, clang after it."""
    place = re.compile(re.escape(header.path) + r"[:(](\d+)\)?:")
    for line in (*reversed(lines[:index]), *lines[index + 1 :]):
        if found := place.match(line):
            return int(found[1])
    return None


def _thrown(lines: list[str]) -> str | None:
    """What ``csrc/cells/graph.h`` throws in a line that the compiler names."""
    for line in lines:
        found = re.match(_PLACE, line)
        if not found or Path(found[1]).name != "graph.h":
            continue
        source = Path(found[1]).read_text().splitlines()
        if text := re.search(r'throw "(.+)";', source[int(found[2]) - 1]):
            most = re.search(r"kMostNodes = (\d+)", "\n".join(source))
            return text[1].replace("kMostNodes", most[1] if most else "kMostNodes")
    return None


def _plain(message: str) -> str:
    for pattern in _UNKNOWN:
        if found := re.search(pattern, message):
            return f"{found[1]} is unknown here: a forward has {OPERATIONS}"
    for pattern in _OPERATOR:
        if found := re.search(pattern, message):
            return f"there is no such {found[1]} on its values: a forward has {OPERATIONS}"
    if "invalid operands to binary expression" in message:
        return f"there is no such operator on its values: a forward has {OPERATIONS}"
    if found := re.search(r"has no member named '(\w+)'|no member named '(\w+)'", message):
        return f"in has no {found[1] or found[2]}: it has x, h, prev and params"
    if "non-'constexpr'" in message or "non-constexpr function" in message:
        return "forward must be marked FASTRNN_CELL, and call nothing but a cell's operations"
    return f"the compiler says: {message.removesuffix(' [-fpermissive]')}"
