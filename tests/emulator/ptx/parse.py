"""The text of a PTX module as entries and instructions. See the PTX ISA, chapters 4 (syntax) and 5 (state spaces)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SIZES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2}
SIZES |= {"b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8, "pred": 1}

PARAM = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)")
ENTRY = re.compile(r"^\s*(?:\.visible\s+)?\.entry\s+([\w$]+)\s*\(", re.M)
SHARED = re.compile(r"^\s*(?:\.extern\s+)?\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\];", re.M)
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


class PtxError(Exception):
    """The module does something that it must not do, or that this interpreter does not know."""


@dataclass
class Instruction:
    line: int  # in the module
    text: str
    opcode: str  # with all modifiers
    operands: list[str]
    predicate: str | None = None
    negated: bool = False

    def __str__(self):
        return f"line {self.line}: {self.text}"


@dataclass
class Entry:
    name: str
    params: dict[str, int]  # where each begins among the bytes of all
    param_sizes: list[tuple[int, int]]  # begin and size, in order
    registers: dict[str, str] = field(default_factory=dict)  # prefix, or whole name: type
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # label: index of the instruction after it

    @property
    def param_bytes(self) -> int:
        return sum(self.param_sizes[-1]) if self.param_sizes else 0

    def type_of(self, register: str) -> str:
        """As .reg declared it."""
        found = self.registers.get(register) or self.registers.get(register.rstrip("0123456789"))
        if found is None:
            raise PtxError(f"{self.name}: {register} was not declared")
        return found


class Module:
    """A PTX file. Entries are parsed when they are asked for."""

    def __init__(self, text: str) -> None:
        self.text = text = re.sub(r"//[^\n]*", "", text)
        target = re.search(r"^\.target\s+sm_(\d+)", text, re.M)
        if target is None:
            raise PtxError("no .target in the module")
        self.target = int(target[1])
        starts = list(ENTRY.finditer(text))
        ends = [start.start() for start in starts[1:]] + [len(text)]
        self._found = {start[1]: (start, end) for start, end in zip(starts, ends)}
        self.names = list(self._found)
        self.head = text[: starts[0].start()] if starts else text
        # Bytes of the dynamic shared memory begin after the static ones; ours has dynamic memory alone.
        self.shared = {name: int(size or 0) for _, name, size in SHARED.findall(text)}
        if any(self.shared.values()):
            raise PtxError("static shared memory is not implemented")
        self._entries: dict[str, Entry] = {}

    def entry(self, name: str) -> Entry:
        if name not in self._entries:
            start, end = self._found[name]
            self._entries[name] = self._parse(name, start.end(), end)
        return self._entries[name]

    def text_of(self, name: str) -> str:
        start, end = self._found[name]
        return self.text[start.start() : end]

    def _parse(self, name: str, begin: int, end: int) -> Entry:
        header, _, body = self.text[begin:end].partition("{")
        entry, at = Entry(name, {}, []), 0
        for align, kind, param, count in PARAM.findall(header.partition(")\n")[0]):
            size = SIZES[kind] * int(count or 1)
            at = -(-at // int(align or SIZES[kind])) * int(align or SIZES[kind])
            entry.params[param] = at
            entry.param_sizes.append((at, size))
            at += size
        line = self.text.count("\n", 0, begin + len(header)) + 1
        for statement, number in _statements(body, line):
            _add(entry, statement, number)
        return entry


def _statements(body: str, line: int):
    """Each statement or label of the body with its line; braces of vector operands stay, those of scopes go."""
    for number, text in enumerate(body.split("\n"), line):
        text = text.strip()
        if label := re.fullmatch(r"(\$?[\w$]+):", text):
            yield label[1] + ":", number
            continue
        if text.startswith("{") and not re.match(r"\{\s*%", text):
            text = text[1:].strip()  # a scope opens
        for part in text.split(";"):
            part = part.strip()
            if part and part not in "{}":
                yield part, number


def _add(entry: Entry, statement: str, number: int) -> None:
    if statement.endswith(":"):
        entry.labels[statement[:-1]] = len(entry.instructions)
    elif found := REGISTERS.fullmatch(statement):
        for name in found[2].split(","):
            entry.registers[re.sub(r"<\d+>", "", name.strip())] = found[1]
    elif statement.startswith("."):
        if not statement.startswith(".pragma"):
            raise PtxError(f"{entry.name}, line {number}: {statement!r} is not implemented")
    else:
        match = STATEMENT.fullmatch(statement)
        if match is None:
            raise PtxError(f"{entry.name}, line {number}: {statement!r} is no instruction")
        negated, predicate, opcode, rest = match.groups()
        operands = OPERAND.findall(rest)
        entry.instructions.append(
            Instruction(number, " ".join(statement.split()), opcode, operands, predicate, bool(negated))
        )
