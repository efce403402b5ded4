"""Every opcode that the interpreter knows, written as Python. Anything else is an error that names the instruction."""

from __future__ import annotations

import re

from . import mma
from .parse import SIZES, Instruction, PtxError
from .transactions import TransactionWriter
from .values import DTYPES

FLOATS = ("f32", "f64")
COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
OPPOSITE = {"ltu": ">=", "geu": "<"}
ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]")
PLAIN = {"add": "{} + {}", "sub": "{} - {}", "and": "{} & {}", "or": "{} | {}", "xor": "{} ^ {}", "not": "~{}"}
SPECIAL = ("tid.x", "ctaid.x", "ctaid.y")


class Writer(TransactionWriter):
    """Writes the instructions of one block. A register is a Python variable of its declared type."""

    def __init__(self, translation, block) -> None:
        self.t, self.block = translation, block

    def emit(self, one: Instruction) -> None:
        base, *parts = one.opcode.split(".")
        method = getattr(self, f"_{base}", None)
        if method is None:
            raise self.unknown(one)
        method(one, parts)

    def unknown(self, one: Instruction) -> PtxError:
        return PtxError(f"{self.t.entry.name}, {one}: not implemented")

    # Operands.

    def read(self, operand: str, kind: str, one: Instruction) -> str:
        """An expression of this type."""
        if operand.startswith("%"):
            name = operand[1:]
            if "." in name:
                return self.special(name, kind, one)
            if operand not in self.block.writes:
                self.block.reads.add(operand)
            return _converted(operand.replace("%", "_"), self.t.entry.type_of(operand), kind)
        symbol = self.t.symbol(operand)
        return self.t.constant(operand if symbol is None else str(symbol), kind)

    def special(self, name: str, kind: str, one: Instruction) -> str:
        if name not in SPECIAL or SIZES[kind] != 4:
            raise self.unknown(one)
        return f"S.special({name!r})"

    def write(self, operand: str, expression: str, kind: str) -> None:
        declared = self.t.entry.type_of(operand)
        self.block.lines.append(f"{operand.replace('%', '_')} = {_converted(f'({expression})', kind, declared)}")
        self.block.writes.add(operand)

    def address(self, operand: str, one: Instruction) -> str:
        found = ADDRESS.fullmatch(operand)
        if found is None:
            raise self.unknown(one)
        offset = int(found[2] or "0", 0)
        if not found[1].startswith("%"):
            symbol = self.t.symbol(found[1])
            if symbol is None:
                raise self.unknown(one)
            return self.t.constant(str(symbol + offset), "u64")
        kind = f"u{8 * SIZES[self.t.entry.type_of(found[1])]}"
        base = self.read(found[1], kind, one)
        return base if offset == 0 else f"{base} + {self.t.constant(str(offset), kind)}"

    def check_barrier(self, one: Instruction) -> None:
        """Of the block: number 0, all threads. Of the cluster: with the ordering that is not relaxed."""
        modifiers = set(one.opcode.split(".")[3:])
        if (one.opcode.startswith("bar.") and one.operands != ["0"]) or modifiers - {"release", "acquire", "aligned"}:
            raise self.unknown(one)

    # Arithmetic.

    def _plain(self, one: Instruction, parts: list[str], form: str) -> None:
        kind = parts[-1]
        if kind not in DTYPES or "ftz" in parts:
            raise self.unknown(one)
        given = [self.read(operand, kind, one) for operand in one.operands[1:]]
        self.write(one.operands[0], form.format(*given), kind)

    def _arithmetic(self, one: Instruction, parts: list[str]) -> None:
        """add, sub: no rounding but to nearest, no saturation."""
        if set(parts[:-1]) - {"rn"}:
            raise self.unknown(one)
        unsigned = [*parts[:-1], parts[-1].replace("s", "u")]  # of the same bits, and cheaper to read
        self._plain(one, unsigned, PLAIN[one.opcode.partition(".")[0]])

    _add = _sub = _arithmetic

    def _logic(self, one: Instruction, parts: list[str]) -> None:
        if len(parts) != 1:
            raise self.unknown(one)
        self._plain(one, parts, PLAIN[one.opcode.partition(".")[0]])

    _and = _or = _xor = _not = _logic

    def _mul(self, one: Instruction, parts: list[str], add: str = "") -> None:
        kind, mode = parts[-1], parts[0]
        if kind in FLOATS and not add and not set(parts[:-1]) - {"rn"}:
            return self._plain(one, parts, "{} * {}")
        if len(parts) != 2 or kind in FLOATS or mode not in ("lo", "wide"):
            raise self.unknown(one)
        if mode == "lo":
            return self._plain(one, [kind.replace("s", "u")], "{} * {}" + add)
        wide = f"{kind[0]}{16 * SIZES[kind]}"
        if wide not in DTYPES or add:
            raise self.unknown(one)
        a, b = (f"{self.read(operand, kind, one)}.astype(T{wide})" for operand in one.operands[1:3])
        return self.write(one.operands[0], f"{a} * {b}", wide)

    def _mad(self, one: Instruction, parts: list[str]) -> None:
        self._mul(one, parts, " + {}")

    def _fma(self, one: Instruction, parts: list[str]) -> None:
        if parts == ["rm", "f32"]:
            return self._plain(one, parts, "v.fma_down({}, {}, {})")
        if parts[0] != "rn" or parts[1:] not in (["f32"], ["f64"]):
            raise self.unknown(one)
        return self._plain(one, parts, "v.fma({}, {}, {})")

    def _div(self, one: Instruction, parts: list[str]) -> None:
        if parts[-1] in FLOATS:
            if parts[0] != "rn":
                raise self.unknown(one)
            return self._plain(one, parts, "{} / {}")
        return self._plain(one, parts, "v.divide({}, {})")

    def _rem(self, one: Instruction, parts: list[str]) -> None:
        self._plain(one, parts, "np.fmod({}, {})")

    def _min(self, one: Instruction, parts: list[str]) -> None:
        """Of floats, a number rather than NaN."""
        if len(parts) != 1:
            raise self.unknown(one)
        self._plain(one, parts, ("np.fmin" if parts[0][0] == "f" else "np.minimum") + "({}, {})")

    def _max(self, one: Instruction, parts: list[str]) -> None:
        if len(parts) != 1 or parts[0][0] == "f":
            raise self.unknown(one)
        self._plain(one, parts, "np.maximum({}, {})")

    def _neg(self, one: Instruction, parts: list[str]) -> None:
        self._plain(one, parts, "-{}")

    def _abs(self, one: Instruction, parts: list[str]) -> None:
        self._plain(one, parts, "np.abs({})")

    def _copysign(self, one: Instruction, parts: list[str]) -> None:
        self._plain(one, parts, "np.copysign({1}, {0})")

    def _rounded(self, one: Instruction, parts: list[str], form: str) -> None:
        if parts not in (["rn", "f32"], ["rn", "f64"]):
            raise self.unknown(one)
        self._plain(one, parts, form)

    def _flushed(self, one: Instruction, parts: list[str], form: str) -> None:
        if parts != ["approx", "ftz", "f32"]:
            raise self.unknown(one)
        self._plain(one, ["f32"], f"v.flush({form})".replace("{}", "v.flush({})"))

    def _rcp(self, one: Instruction, parts: list[str]) -> None:
        if parts == ["approx", "ftz", "f64"]:
            return self._plain(one, ["f64"], "v.reciprocal_gross({})")
        return (self._flushed if "approx" in parts else self._rounded)(one, parts, f"T{parts[-1]}(1) / {{}}")

    def _sqrt(self, one: Instruction, parts: list[str]) -> None:
        self._rounded(one, parts, "np.sqrt({})")

    def _ex2(self, one: Instruction, parts: list[str]) -> None:
        self._flushed(one, parts, "np.exp2({})")

    def _shift(self, one: Instruction, parts: list[str], form: str) -> None:
        count = one.operands[2]
        if not count.isdigit() or int(count) >= 8 * SIZES[parts[0]]:
            raise self.unknown(one)
        self._plain(one, parts, form)

    def _shl(self, one: Instruction, parts: list[str]) -> None:
        self._shift(one, parts, "{} << {}")

    def _shr(self, one: Instruction, parts: list[str]) -> None:
        self._shift(one, parts, "{} >> {}")

    def _bfi(self, one: Instruction, parts: list[str]) -> None:
        d, a, b, begin, length = one.operands
        if not (begin.isdigit() and length.isdigit()):
            raise self.unknown(one)
        a, b = self.read(a, parts[0], one), self.read(b, parts[0], one)
        self.write(d, f"v.insert_bits({a}, {b}, {begin}, {length})", parts[0])

    # Comparison, selection, conversion.

    def _setp(self, one: Instruction, parts: list[str]) -> None:
        compare, kind = parts[0], parts[-1]
        if len(parts) != 2 or "|" in one.operands[0] or kind == "f16":
            raise self.unknown(one)
        a, b = (self.read(operand, kind, one) for operand in one.operands[1:])
        if compare == "nan" and kind in FLOATS:
            form = f"np.isnan({a}) | np.isnan({b})"
        elif compare in COMPARED and not (compare == "ne" and kind in FLOATS):
            form = f"{a} {COMPARED[compare]} {b}"
        elif compare in OPPOSITE and kind in FLOATS:
            form = f"~({a} {OPPOSITE[compare]} {b})"
        else:
            raise self.unknown(one)
        self.write(one.operands[0], form, "pred")

    def _selp(self, one: Instruction, parts: list[str]) -> None:
        d, a, b, p = one.operands
        a, b = self.read(a, parts[0], one), self.read(b, parts[0], one)
        self.write(d, f"v.select({self.read(p, 'pred', one)}, {a}, {b})", parts[0])

    def _mov(self, one: Instruction, parts: list[str]) -> None:
        kind, (to, given) = parts[0], one.operands
        half = f"b{4 * SIZES[kind]}"
        if given.startswith("{"):
            low, high = (self._half(part.strip(), half, one) for part in given[1:-1].split(","))
            return self.write(to, f"v.pack({low}, {high}, T{kind})", kind)
        if to.startswith("{"):
            low, high = (part.strip() for part in to[1:-1].split(","))
            self.block.lines.append(f"low, high = v.unpack({self.read(given, kind, one)})")
            for name, part in ((low, "low"), (high, "high")):
                if name != "_":
                    self.write(name, part, half)
            return None
        return self._plain(one, parts, "{}")

    def _half(self, operand: str, half: str, one: Instruction) -> str:
        return self.read(operand, half, one) if operand.startswith("%") else self.t.constant(operand, half)

    def _cvta(self, one: Instruction, parts: list[str]) -> None:
        if parts != ["to", "global", "u64"]:
            raise self.unknown(one)
        self._plain(one, parts, "{}")

    def _cvt(self, one: Instruction, parts: list[str]) -> None:
        *how, to, given = parts
        d, read = one.operands[0], self.read(one.operands[1], "b16" if given == "bf16" else given, one)
        if (to, how) == ("tf32", ["rna"]):
            return self.write(d, f"v.f32_to_tf32({read})", "b32")
        if to == "bf16" and given == "f32" and how == ["rn"]:
            return self.write(d, f"v.f32_to_bf16({read})", "b16")
        if given == "bf16" and to == "f32" and not how:
            return self.write(d, f"v.bf16_to_f32({read})", "f32")
        if to not in DTYPES or given not in DTYPES:
            raise self.unknown(one)
        if to == given and how == ["sat"]:
            return self.write(d, f"v.saturate({read})", to)
        if to == given and how == ["rni"]:
            return self.write(d, f"np.rint({read})", to)
        if given in ("f16", *FLOATS) and to not in ("f16", *FLOATS):
            raise self.unknown(one)
        if how not in ([], ["rn"]):
            raise self.unknown(one)
        return self.write(d, f"{read}.astype(T{to})", to)

    # Memory.

    def _access(self, one: Instruction, parts: list[str]):
        """Space, width, type."""
        space, *rest = parts
        width = 1
        if rest[0] in ("v2", "v4"):
            width = int(rest.pop(0)[1])
        if space not in ("param", "global", "shared") or len(rest) != 1 or rest[0] not in DTYPES:
            raise self.unknown(one)
        return space, width, rest[0]

    def _ld(self, one: Instruction, parts: list[str]) -> None:
        if parts[:3] == ["acquire", "gpu", "global"]:
            self.block.polls, parts = True, parts[2:]
        parts = [part for part in parts if part != "cg"]
        space, width, kind = self._access(one, parts)
        where = f"{self.address(one.operands[1], one)}, {SIZES[kind]}, {width}, {one.line}"
        to = one.operands[0]
        names = [part.strip() for part in to[1:-1].split(",")] if to.startswith("{") else [to]
        temporary = ", ".join(f"w{i}" for i in range(width))
        self.block.lines.append(f"{temporary}, = S.load_{space}({where})")
        for i, name in enumerate(names):
            if name != "_":
                self.write(name, _converted(f"w{i}", f"u{8 * SIZES[kind]}", kind), kind)

    def _st(self, one: Instruction, parts: list[str]) -> None:
        if parts[0] == "async":
            return self._send(one, parts[1:])
        space, width, kind = self._access(one, parts)
        if space == "param":
            raise self.unknown(one)
        where = f"{self.address(one.operands[0], one)}, {SIZES[kind]}, {width}, {one.line}"
        words = self.words(one.operands[1], kind, one)
        return self.block.lines.append(f"S.store_{space}({where}, {words})")

    def words(self, given: str, kind: str, one: Instruction) -> str:
        """The values that are stored, as unsigned numbers."""
        names = [part.strip() for part in given[1:-1].split(",")] if given.startswith("{") else [given]
        unsigned = f"u{8 * SIZES[kind]}"
        return f"({''.join(f'{_converted(self.read(name, kind, one), kind, unsigned)}, ' for name in names)})"

    def _red(self, one: Instruction, parts: list[str]) -> None:
        if parts != ["release", "gpu", "global", "add", "u32"]:
            raise self.unknown(one)
        value = self.read(one.operands[1], "u32", one)
        self.block.lines.append(f"S.add_global({self.address(one.operands[0], one)}, {value}, {one.line})")

    def _mapa(self, one: Instruction, parts: list[str]) -> None:
        if parts != ["shared::cluster", "u32"]:
            raise self.unknown(one)
        a, rank = (self.read(operand, "u32", one) for operand in one.operands[1:])
        self.write(one.operands[0], f"S.map({a}, {rank}, {one.line})", "u32")

    def _trap(self, one: Instruction, parts: list[str]) -> None:
        self.block.lines.append(f"S.trap({one.line})")

    # Of a whole warp.

    def _mma(self, one: Instruction, parts: list[str]) -> None:
        shape = ".".join(parts[2:])
        if parts[:2] != ["sync", "aligned"] or shape not in mma.SHAPES:
            raise self.unknown(one)
        self.block.collective = True
        kinds = "f32", "b32", "b32", "f32"
        vectors = [[part.strip() for part in operand[1:-1].split(",")] for operand in one.operands]
        a, b, c = (
            "(" + "".join(f"{self.read(name, kind, one)}, " for name in names) + ")"
            for names, kind in zip(vectors[1:], kinds[1:])
        )
        self.block.lines.append(f"w0, w1, w2, w3 = mma.multiply({shape!r}, {a}, {b}, {c}, S.count)")
        for i, name in enumerate(vectors[0]):
            self.write(name, f"w{i}", "f32")

    def _bar(self, one: Instruction, parts: list[str]) -> None:
        """bar.warp.sync; a barrier of the block ends the block of code."""
        if parts != ["warp", "sync"]:
            raise self.unknown(one)
        self.block.collective = True
        self.block.lines.append(f"S.whole({self.read(one.operands[0], 'u32', one)}, {one.line})")

    def _shfl(self, one: Instruction, parts: list[str]) -> None:
        if parts != ["sync", "bfly", "b32"] or len(one.operands) != 5:
            raise self.unknown(one)
        self.block.collective = True
        a, b, c, members = (self.read(operand, "u32", one) for operand in one.operands[1:])
        self.block.lines.append(f"S.whole({members}, {one.line})")
        self.block.lines.append(f"w0, w1 = mma.butterfly({a}, {b}, {c}, S.count)")
        to, _, there = one.operands[0].partition("|")
        self.write(to, "w0", "b32")
        if there:
            self.write(there, "w1", "pred")


def _converted(expression: str, kind: str, to: str) -> str:
    """The bits of a value of one type as another's, cut off or extended where sizes differ."""
    if DTYPES[kind] == DTYPES[to]:
        return expression
    if SIZES[kind] == SIZES[to]:
        return f"{expression}.view(T{to})"
    if kind in FLOATS or to in FLOATS:
        raise PtxError(f"a value of type {kind} in a register of type {to}")
    return f"{expression}.astype(T{to})"
