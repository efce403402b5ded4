"""Basic blocks of an entry, each translated to a Python function over all threads that run it together."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from . import mma, opcodes, values
from .memory import BASE
from .parse import Entry, Instruction, Module, PtxError
from .values import DTYPES

EXIT = -1
ENDS = ("bra", "ret", "bar.sync", "barrier.cluster.arrive", "barrier.cluster.wait")
NAMES = {"np": np, "v": values, "mma": mma} | {f"T{name}": dtype for name, dtype in DTYPES.items()}


def base_of(opcode: str) -> str:
    """What kind of instruction it is, for those that end a block."""
    parts = opcode.split(".")
    for count in (3, 2, 1):
        if ".".join(parts[:count]) in ENDS:
            return ".".join(parts[:count])
    return parts[0]


@dataclass
class Block:
    first: Instruction
    last: Instruction
    kind: str  # goto, branch, exit, or that of a barrier
    targets: tuple[int, ...]  # taken, not taken
    collective: bool = False  # needs whole warps
    polls: bool = False  # reads what other threads write, without a barrier
    run: object = None
    has_run: bool = False
    size: int = 0  # instructions
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)


class Translation:
    """``blocks`` in the order of the text, and ``registers``: how many values a thread carries between blocks."""

    def __init__(self, module: Module, entry: Entry) -> None:
        self.module, self.entry = module, entry
        self.constants: dict[str, object] = {}
        self._names: dict[tuple[str, bytes], str] = {}
        _check(entry)
        self.blocks = self._cut(entry.instructions, entry.labels)
        carried = sorted(set().union(*(block.reads for block in self.blocks)))
        self.registers = {name: number for number, name in enumerate(carried)}
        self.instructions = entry.instructions
        self._compile()

    def coverage(self) -> tuple[int, int]:
        """Instructions that have run, and all."""
        return sum(block.size for block in self.blocks if block.has_run), sum(block.size for block in self.blocks)

    def constant(self, text: str, kind: str) -> str:
        return self.keep(values.constant(text, kind))

    def keep(self, value) -> str:
        key = value.dtype.str, value.tobytes()
        if key not in self._names:
            self._names[key] = f"c{len(self._names)}"
            self.constants[self._names[key]] = value
        return self._names[key]

    def symbol(self, name: str) -> int | None:
        if name in self.entry.params:
            return self.entry.params[name]
        return BASE if name in self.module.shared else None

    def _cut(self, code, labels) -> list[Block]:
        starts = {0, *labels.values()} | {i + 1 for i, one in enumerate(code) if base_of(one.opcode) in ENDS}
        starts = sorted(start for start in starts if start < len(code))
        number = {start: i for i, start in enumerate(starts)}
        blocks = []
        for i, (start, end) in enumerate(zip(starts, [*starts[1:], len(code)])):
            last, after = code[end - 1], i + 1 if end < len(code) else EXIT
            kind, targets, body = base_of(last.opcode), (after,), code[start:end]
            if kind == "bra":
                targets = (number[labels[last.operands[-1]]], after)
                kind = "branch" if last.predicate else "goto"
            elif kind == "ret":
                kind, targets = "exit", ()
            elif kind not in ENDS:
                kind = "goto"
            block = Block(code[start], last, kind, targets, size=len(body))
            writer = opcodes.Writer(self, block)
            for instruction in body:
                if base_of(instruction.opcode) not in ENDS:
                    writer.emit(instruction)
            if kind.startswith("bar"):
                writer.check_barrier(last)
                block.collective |= kind == "bar.sync" or last.opcode.endswith(".aligned")
            if kind == "branch":
                block.lines.append(f"return {'~' * last.negated}{writer.read(last.predicate, 'pred', last)}")
            blocks.append(block)
        return blocks

    def _compile(self) -> None:
        text = []
        for i, block in enumerate(self.blocks):
            text.append(f"def block{i}(S):")
            text += [f" {_python(name)} = S.get({self.registers[name]})" for name in sorted(block.reads)]
            stores = [
                f" S.put({self.registers[name]}, {_python(name)})"
                for name in sorted(block.writes)
                if name in self.registers
            ]
            *body, end = block.lines if block.kind == "branch" else [*block.lines, "return None"]
            text += [f" {line}" for line in body] + [*stores, f" {end}"]
        space = {**NAMES, **self.constants}
        exec(compile("\n".join(text), f"<{self.entry.name}>", "exec"), space)
        for i, block in enumerate(self.blocks):
            block.run, block.lines = space[f"block{i}"], []


def _python(register: str) -> str:
    return re.sub(r"\W", "_", register)


def _check(entry: Entry) -> None:
    """That branches alone have predicates, and that every branch goes to an instruction."""
    for one in entry.instructions:
        if base_of(one.opcode) != "bra":
            if one.predicate:
                raise PtxError(f"{entry.name}, {one}: not implemented with a predicate")
        elif entry.labels.get(one.operands[-1], len(entry.instructions)) == len(entry.instructions):
            raise PtxError(f"{entry.name}, {one}: no such label")
