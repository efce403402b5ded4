"""What load_cell says of a header that is wrong, one sentence with the line; what it keeps, and when it compiles."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from own_cells import KEPT, SCALED, load

import fastrnn
from fastrnn._kernels import cell_library, ext, ops
from fastrnn._kernels.cell_errors import OPERATIONS, Header

ROOT = Path(__file__).resolve().parents[2]
CXX = next((name for name in ("g++", "c++") if shutil.which(name)), None)
LACKING = "there is no g++" if CXX is None else ops.missing("cpu")
compiled = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))

# A compiler that takes everything and is done in no time; it writes down what it is asked.
FAKE = """#!/bin/sh
case "$*" in
  *-dM*) echo '#define __VERSION__ "{version}"'; exit 0 ;;
esac
echo "$*" >> {log}
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then sleep 0.2; echo library > "$2"; fi
  shift
done
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake(version) puts a compiler in the place of g++; fake.calls() are its command lines."""

    class Fake:
        def __call__(self, version="1.0"):
            path = tmp_path / f"cxx-{version}"
            path.write_text(FAKE.format(version=version, log=tmp_path / "log"))
            path.chmod(0o755)
            monkeypatch.setenv("CXX", str(path))

        def calls(self):
            log = tmp_path / "log"
            return log.read_text().splitlines() if log.exists() else []

    made = Fake()
    made()
    return made


def build(folder: Path, text: str = SCALED, isa: str = "avx512_bf16", version: str = "0.1", name=None) -> Path:
    return cell_library.build(Header("cell.h", text, name), isa, folder / "cells", version)


def test_a_library_is_compiled_once_for_what_it_is_made_of(fake, tmp_path):
    first = build(tmp_path)
    calls = fake.calls()
    assert first.read_text() == "library\n" and len(calls) == 6  # the check, four sources, the link
    assert "-fsyntax-only" in calls[0] and "-shared" in calls[-1]
    assert build(tmp_path) == first and len(fake.calls()) == 6
    others = {build(tmp_path, SCALED + "// changed"), build(tmp_path, isa="avx2"), build(tmp_path, version="0.2")}
    fake("2.0")
    others.add(build(tmp_path))
    assert len(others | {first}) == 5 and sorted(others | {first}) == sorted((tmp_path / "cells").iterdir())


def test_sources_that_change_make_another_library(fake, tmp_path, monkeypatch):
    first = build(tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    monkeypatch.setattr(cell_library, "SOURCES", tmp_path / "csrc")
    with (tmp_path / "csrc/cpu/forward.h").open("a") as file:
        file.write("// changed\n")
    cell_library._digest.cache_clear()
    try:
        assert build(tmp_path) != first
    finally:
        cell_library._digest.cache_clear()


def test_those_that_build_at_once_build_once(fake, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: build(tmp_path), range(4)))
    assert len(made) == 1 and len(fake.calls()) == 6 and list((tmp_path / "cells").iterdir()) == list(made)


BUILDER = """
import sys
from pathlib import Path
from fastrnn._kernels import cell_library
from fastrnn._kernels.cell_errors import Header
print(cell_library.build(Header("cell.h", sys.stdin.read(), None), "plain", Path(sys.argv[1]), "0.1"))
"""


def test_two_processes_at_once(fake, tmp_path):
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "cells")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        process.stdin.write(SCALED)
        process.stdin.close()
    printed = {process.stdout.read().strip() for process in both}
    assert [process.wait() for process in both] == [0, 0]
    assert len(printed) == 1 and len(fake.calls()) == 5  # one level less
    assert [str(path) for path in (tmp_path / "cells").iterdir()] == list(printed)


def test_a_build_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "cxx"))
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler was found"):
        build(tmp_path)
    (tmp_path / "cxx").write_text(FAKE.format(version="3", log=tmp_path / "log") + "exit 1\n")
    (tmp_path / "cxx").chmod(0o755)
    with pytest.raises(ValueError, match=r"^cell\.h:2: the compiler says: nothing$"):
        build(tmp_path)
    assert not list((tmp_path / "cells").iterdir())


@pytest.mark.parametrize("named", ["/nowhere/c++", "g++ 'without an end"])
def test_without_a_compiler(named, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", named)
    with pytest.raises(RuntimeError) as error:
        build(tmp_path)
    assert str(error.value) == (
        f"fastrnn.load_cell: no C++ compiler was found (tried {named}): install g++ 10 or later, or name one in "
        "the environment variable CXX"
    )


def test_without_the_extension(tmp_path, monkeypatch):
    header = tmp_path / "own.h"
    header.write_text(SCALED.replace("JanetScaled", "NoExtension"))
    monkeypatch.setattr(ext, "_module", None)
    monkeypatch.setattr(ext, "reason", "it was never built")
    with pytest.raises(RuntimeError, match=r"load_cell: the compiled extension is missing: it was never built$"):
        fastrnn.load_cell(header)


@compiled
def test_a_damaged_library_is_built_again(tmp_path, monkeypatch):
    load("scaled")
    right, compiles = next(Path(KEPT, "cells").glob("JanetScaled-*.so")).read_bytes(), []

    def compile(*given):
        compiles.append(given[-1])
        given[-1].write_bytes(b"no library" if len(compiles) == 1 else right)

    monkeypatch.setattr(cell_library, "_compile", compile)
    assert cell_library.address_in(lambda: build(tmp_path), "fastrnn_user_cell")
    assert len(compiles) == 2 and compiles[0] == compiles[1]


@compiled
def test_a_damaged_library_that_another_process_builds_again(tmp_path, monkeypatch):
    """It has done so by the time this one may write."""
    load("scaled")
    right, library = next(Path(KEPT, "cells").glob("JanetScaled-*.so")).read_bytes(), tmp_path / "cell.so"
    library.write_bytes(b"no library")

    @contextlib.contextmanager
    def alone(folder):
        library.write_bytes(right)
        yield

    monkeypatch.setattr(cell_library, "_alone", alone)
    assert cell_library.address_in(lambda: library, "fastrnn_user_cell") and library.exists()


def test_a_damaged_library_that_cannot_be_removed(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    (tmp_path / "cell.so").write_bytes(b"no library")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RuntimeError, match=r"expected to keep a library in .*, got read-only: FASTRNN_CACHE_DIR names"):
        cell_library.address_in(lambda: tmp_path / "cell.so", "fastrnn_user_cell")


def at_line(text: str, line: int, new: str) -> str:
    """The text with another line, counted from 1 and indented as the old one."""
    lines = text.splitlines()
    indent = len(lines[line - 1]) - len(lines[line - 1].lstrip())
    return "\n".join([*lines[: line - 1], " " * indent + new, *lines[line:]])


CELL = """struct Own {
  static constexpr const char* kGates[] = {"f", "g"};
  static constexpr fastrnn::State kStates[] = {{"h", 0}, {"c", 0}};
  static constexpr const char* kParams[] = {"scale"};
  template <class A>
  static FASTRNN_CELL void forward(const fastrnn::In<A>& in, A* next) {
    const A f = sigmoid_(in.x[0] + in.h[0]);
    next[1] = f * in.prev[1] + (A(1) - f) * tanh_(in.x[1] + in.h[1]);
    next[0] = next[1] * in.params[0];
  }
};
"""
LONG = "A v = f; for (int i = 0; i < 99; ++i) v = v + in.x[1]; next[1] = v;"
GATES, STATES = "static constexpr const char* kGates[] = {%s};", "static constexpr fastrnn::State kStates[] = {%s};"
FORWARD = "forward must be: template <class A> static FASTRNN_CELL void forward(const fastrnn::In<A>& in, A* next)"
UNKNOWN = f"is unknown here: a forward has {OPERATIONS}"
OPERATOR = f"on its values: a forward has {OPERATIONS}"
NAMES = "kParams must be different names, and none of weight_ih, weight_hh, bias_ih, bias_hh, weight_hr; got "
# What is wrong: the line that is exchanged, by what, and the sentence; its line, where it is another.
WRONG = {
    "a state is not set": (8, "", "forward must set every state, and sets no next[1]", 6),
    "a state is constant": (8, "next[1] = A(1);", "forward must set every state, to what depends on its inputs", 6),
    "unknown function": (7, "const A f = softplus_(in.x[0]);", f"softplus_ {UNKNOWN}"),
    "function of std": (7, "const A f = std::tanhf(in.x[0]);", f"tanhf {UNKNOWN}"),
    "division": (7, "const A f = in.x[0] / in.h[0];", f"there is no such operator/ {OPERATOR}"),
    "plain constant": (7, "const A f = 1.0 - in.x[0];", f"there is no such operator- {OPERATOR}"),
    "branch": (7, "const A f = in.x[0] > in.h[0] ? in.x[0] : in.h[0];", f"there is no such operator> {OPERATOR}"),
    "constants": (7, "const A f = in.x[0] + A(1) * A(2);", "an operation on two constants: write its result instead"),
    "function of a constant": (7, "const A f = tanh_(A(1));", "a function of a constant: write its result instead"),
    "too many operations": (8, LONG, "a cell's forward has more than 96 operations"),
    "gate that is not there": (7, "const A f = in.x[2] + in.h[0];", "in.x[2] is not there: kGates names 2"),
    "parameter that is not there": (9, "next[0] = in.params[1];", "in.params[1] is not there: kParams names 1"),
    "state that is not there": (9, "next[0] = in.x[0]; next[2] = in.x[0];", "next[2] is not there: kStates names 2"),
    "noise": (7, "const A f = in.noise[0];", "in has no noise: it has x, h, prev and params"),
    "no gates": (2, "", "kGates is missing, which names the gates: static constexpr const char* kGates[]", 1),
    "numbers as gates": (2, "static constexpr int kGates[] = {1, 2};",
        "kGates must be a static constexpr const char* kGates[]"),
    "a number of gates": (2, "static constexpr int kGates = 2;",
        "kGates must be a static constexpr const char* kGates[]"),
    "five gates": (2, GATES % '"a", "b", "c", "d", "e"',
        "kGates has more than 4 names, which is what the kernels take"),
    "no states": (3, "",
        "kStates is missing, which names the states and their initial values: "
        "static constexpr fastrnn::State kStates[]", 1),
    "states without values": (3, 'static constexpr const char* kStates[] = {"h", "c"};',
        "kStates must be a static constexpr fastrnn::State kStates[]"),
    "five states": (3, STATES % '{"h", 0}, {"c", 0}, {"d", 0}, {"e", 0}, {"f", 0}',
        "kStates has more than 4 states, which is what the kernels take"),
    "h that starts elsewhere": (3, STATES % '{"h", 1}, {"c", 0}', "kStates must begin with h, which starts at 0"),
    "numbers as parameters": (4, "static constexpr double kParams[] = {1};",
        "kParams must be a static constexpr const char* kParams[]"),
    "a parameter like a weight": (4, 'static constexpr const char* kParams[] = {"weight_hh"};', NAMES + "weight_hh"),
    "a parameter twice": (4, 'static constexpr const char* kParams[] = {"a", "a"};', NAMES + "a, a"),
    "scalars": (4, 'static constexpr const char *kParams[] = {"scale"}, *kScalars[] = {"rate"};',
        "kScalars is for cells of fastrnn's own: write a constant A(0.5), or a parameter"),
    "forward not static": (6, "FASTRNN_CELL void forward(const fastrnn::In<A>& in, A* next) {", FORWARD),
    "forward by another name": (6, "static FASTRNN_CELL void back(const fastrnn::In<A>& in, A* next) {", FORWARD, 1),
    "forward not marked": (6, "static void forward(const fastrnn::In<A>& in, A* next) {",
        "forward must be marked FASTRNN_CELL, and call nothing but a cell's operations"),
    "syntax": (7, "const A f = sigmoid_(in.x[0] + in.h[0])", "the compiler says: expected ',' or ';' before 'next'", 8),
    "a namespace": (1, "namespace mine { struct Own {", "the struct must stand outside of every namespace"),
    "another header": (5, '#include "mine.h"\n  template <class A>',
        "a cell's header includes no other: it is kept whole"),
}  # fmt: skip


@compiled
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_one_sentence_with_its_line(wrong, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", CXX)
    replaced, new, sentence, *elsewhere = WRONG[wrong]
    header = tmp_path / "own.h"
    header.write_text(at_line(CELL, replaced, new) + "}" * new.count("namespace"))
    with pytest.raises(ValueError) as error:
        fastrnn.load_cell(header)
    assert str(error.value) == f"{header}:{elsewhere[0] if elsewhere else replaced}: {sentence}"
    assert not list(Path(os.environ["FASTRNN_CACHE_DIR"], "cells").glob("build-*"))


@pytest.mark.parametrize(
    "text, name, sentence",
    [
        ("// struct Own {\n", None, "a cell is a struct, and the header has no struct"),
        (
            CELL + CELL.replace("Own", "Two"),
            None,
            "a cell is a struct, and the header has the structs Own, Two: say which, as name=",
        ),
        (CELL, "Two", "expected a struct Two, the header has Own"),
    ],
)
def test_which_struct(text, name, sentence, tmp_path):
    header = tmp_path / "own.h"
    header.write_text(text)
    with pytest.raises(ValueError) as error:
        fastrnn.load_cell(header, name)
    assert str(error.value) == f"{header}:1: {sentence}"


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"load_cell: expected a header, there is no file .*nothing\.h$"):
        fastrnn.load_cell(tmp_path / "nothing.h")


@pytest.mark.parametrize(
    "text",
    [
        CELL.replace("struct Own", "struct Own final"),
        CELL.replace("struct Own", "struct alignas(16) [[maybe_unused]] Own"),
        "enum class Mode : int { first };\nenum struct Other { first };\n" + CELL,
    ],
)
def test_other_ways_to_write_a_struct(text):
    assert Header("own.h", text, None).name == Header("own.h", text, "Own").name == "Own"


@pytest.mark.parametrize("written", ["kParams[2] =", "kParams[]", "kParams[kCount] ="])
def test_names_of_parameters_however_they_are_written(written):
    text = CELL.replace("{\n", f'{{\n  static constexpr const char* {written} {{"p", "weight_hh"}};\n', 1)
    with pytest.raises(ValueError, match=r"kParams must be different names, and none of .*; got p, weight_hh$"):
        Header("own.h", text, None)


def test_encodings(tmp_path, monkeypatch):
    monkeypatch.setattr("fastrnn.own_cells._load", lambda path, text, name: text)
    header = tmp_path / "own.h"
    header.write_text(CELL, encoding="utf-8-sig")
    assert fastrnn.load_cell(header) == CELL
    header.write_bytes("// a\n// gr\u00f6\u00dfe\n".encode("latin-1"))
    with pytest.raises(ValueError) as error:
        fastrnn.load_cell(header)
    assert str(error.value) == f"{header}:2: expected text in UTF-8, got the byte 0xf6"


def test_where_nothing_can_be_kept(fake, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"expected to keep a library in .*cells, got .*: FASTRNN_CACHE_DIR names"):
        build(tmp_path / "file")
