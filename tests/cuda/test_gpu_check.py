"""The script for a GPU, rehearsed with stand-ins for all that it calls: its order, its limits, its last word."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from _pytest.mark.expression import Expression

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/gpu_check.sh"
LIMIT_S = 540
FIRST = ["first-step", "first-cta", "first-cluster-8", "first-cluster-16", "first-grid"]
STEP = {"memcheck", "tests-step"}
RESIDENT = {"racecheck", "initcheck", "synccheck", "tests-cta", "tests-cluster", "tests-grid", "tests-wavefront"}
RESIDENT |= {"tests-own"}
CORRECTNESS = ["machine", "build", *FIRST, *sorted(STEP), *sorted(RESIDENT)]
SIZES = [f"bench-sizes-{tier}" for tier in ("step", "cluster", "grid", "measured")]
SIZES += [f"bench-small-{tier}" for tier in ("step", "cta", "measured")]
GRIDS = [f"{grid}-measured" for grid in ("cudnn-best", "rl", "packed", "decode", "long", "odd", "own")]
FLASHRNN = ["flashrnn", "bench-long-flashrnn"]
PROFILES = ["profile-step", "profile-cluster", "profile-grid"]
SPEED = ["barriers", *SIZES, *(f"bench-{name}" for name in GRIDS), *FLASHRNN, "torchrl", *PROFILES]
SPEED += ["tables"]

# Writes down how it was called and does what the part needs to go on; FAIL and HANG name parts of a command line.
PYTHON = """\
#!/usr/bin/env bash
echo "python tier=${FASTRNN_CUDA_TIER:-} $*" >>"$CALLS"
if [ -n "$FAIL" ] && [[ "$*" == *$FAIL* ]]; then echo "stand-in: told to fail" >&2; exit 3; fi
said="$*"
[[ "$*" == *sm_* ]] && echo sm_90
[[ "$*" == *prove* ]] && echo "a verdict" >"$FASTRNN_CACHE_DIR/verdict.json"
[[ "$*" == *'%d.%d'* ]] && echo 9.0
while [ $# -gt 0 ]; do
  if [ "$1" = --out ]; then echo a row >"$2"; fi
  shift
done
if [ -n "$HANG" ] && [[ "$said" == *$HANG* ]]; then sleep 60; fi
exit 0
"""
NVCC = """\
#!/usr/bin/env bash
echo "nvcc $*" >>"$CALLS"
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then printf '#!/bin/sh\\necho what,size,us\\n' >"$2"; chmod +x "$2"; fi
  shift
done
exit 0
"""
# The limits are written down; a part that hangs is not waited for as long as it might take.
TIMEOUT = """\
#!/usr/bin/env bash
echo "timeout $2 $6" >>"$CALLS"
exec {timeout} "$1" 3 "${{@:3}}"
"""
# What the script and the stand-ins take from the system; nothing else is there for them.
SYSTEM = "bash,cat,chmod,cp,dirname,env,find,flock,git,grep,gzip,mkdir,mktemp,mv,nproc,rm,sh,sleep,tail,tar,tee"


class Rehearsal:
    def __init__(self, folder: Path):
        self.folder, self.out, self.calls = folder, folder / "out", folder / "calls"
        for name in ("bin", "tree/benchmarks", "tree/wheels"):
            (folder / name).mkdir(parents=True)
        for name in ("flashrnn-1-py3-none-any.whl", "torchrl-0-cp312-cp312-linux_x86_64.whl"):
            (folder / "tree/wheels" / name).touch()
        shutil.copy(SCRIPT, folder / "tree/benchmarks")
        for name in SYSTEM.split(","):
            (folder / "bin" / name).symlink_to(shutil.which(name))
        stand_ins = {"python3": PYTHON, "nvcc": NVCC, "nvidia-smi": "#!/bin/sh\n"}
        stand_ins["timeout"] = TIMEOUT.format(timeout=shutil.which("timeout"))
        # `compute-sanitizer --tool T --error-exitcode 99 --target-processes all --print-limit 20 COMMAND...`
        stand_ins["compute-sanitizer"] = '#!/bin/sh\necho "sanitizer $2" >>"$CALLS"\nshift 8\nexec "$@"\n'
        stand_ins["ncu"] = '#!/bin/sh\necho "ncu $*" >>"$CALLS"\n'
        for name, text in stand_ins.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def start(self, command, parts=(), fail="", hang=""):
        environment = {"PATH": f"{self.folder}/bin", "CALLS": str(self.calls), "FAIL": fail, "HANG": hang}
        script = self.folder / "tree/benchmarks/gpu_check.sh"
        words = [shutil.which("bash"), str(script), command, str(self.out), *parts]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def found(self, command):
        """What the folder has to say: the parts' exit statuses in order, and the files of the archive."""
        ends = dict(re.findall(r"^(\S+) +exit +(\d+) after", (self.out / f"{command}.txt").read_text(), re.MULTILINE))
        with tarfile.open(self.out / f"{command}.tar.gz") as archive:
            names = [member.name.removeprefix("./") for member in archive if member.isfile()]
            files = {name: archive.extractfile(f"./{name}").read().decode() for name in names}
        assert len(list(self.out.iterdir())) <= 4
        return ends, files

    def run(self, command, **words):
        process = self.start(command, **words)
        said, _ = process.communicate(timeout=120)
        ends, files = self.found(command)
        return SimpleNamespace(
            status=process.returncode, said=said, ends=ends, files=files, calls=self.calls.read_text().splitlines()
        )


@pytest.fixture
def rehearsal(tmp_path):
    return Rehearsal(tmp_path)


def limits_of(calls):
    return {name: int(seconds) for _, seconds, name in (call.split() for call in calls if call.startswith("timeout"))}


def test_correctness_in_order_and_within_the_limit(rehearsal):
    run = rehearsal.run("correctness")
    assert (run.status, run.ends) == (0, dict.fromkeys(CORRECTNESS, "0"))
    alone = ["machine", "build", *FIRST]
    assert list(run.ends)[: len(alone)] == alone
    assert set(list(run.ends)[len(alone) : len(alone) + len(STEP)]) == STEP
    limits = limits_of(run.calls)
    assert set(limits) == set(CORRECTNESS)
    assert (
        sum(limits[name] for name in alone) + sum(max(limits[n] for n in group) for group in (STEP, RESIDENT))
        <= LIMIT_S
    )
    assert [call for call in run.calls if call.startswith("sanitizer")].count("sanitizer memcheck") == 1
    assert {f"{name}.log" for name in CORRECTNESS} < set(run.files)


def test_only_the_parts_that_are_named(rehearsal):
    run = rehearsal.run("correctness", parts=["build|first-(step|grid)"])
    assert (run.status, list(run.ends)) == (0, ["build", "first-step", "first-grid"])


def test_speed_in_order_and_within_the_limit(rehearsal):
    run = rehearsal.run("speed")
    assert (run.status, list(run.ends), set(run.ends.values())) == (0, SPEED, {"0"})
    limits = limits_of(run.calls)
    assert set(limits) == set(SPEED) and sum(limits.values()) <= LIMIT_S
    calls = {
        found[1]: call for call in run.calls if "--grid" in call and (found := re.search(r"/(bench-\S+).csv", call))
    }
    torchrl = calls.pop("bench-rl-torchrl")
    assert "--opponent torchrl" in torchrl and int(re.search(r"--stop-after (\d+)", torchrl)[1]) < limits["torchrl"]
    assert list(calls) == [name for name in SPEED if name.startswith("bench")]
    for name, call in calls.items():
        tier = name.rpartition("-")[2].replace("flashrnn", "measured")
        assert call.startswith(f"python tier={tier} benchmarks/run.py --backend cuda ") and "--shuffle" in call
        assert 0 < int(re.search(r"--stop-after (\d+)", call)[1]) < limits[name]
        assert ("--opponent flashrnn" in call) == ("flashrnn" in name)
    assert next(call for call in run.calls if "summary.py" in call).count("/bench-") == len(calls) + 1
    assert any("-arch=sm_90 -o" in call and "barriers.cu" in call for call in run.calls)
    assert sum(call.startswith("ncu") for call in run.calls) == len(PROFILES)


def test_a_proof_within_the_limit_whose_verdict_is_kept(rehearsal):
    run = rehearsal.run("proof")
    assert (run.status, run.ends) == (0, {"prove": "0"}) and limits_of(run.calls)["prove"] <= LIMIT_S
    assert "python tier= -m fastrnn prove" in run.calls and run.files["verdict.json"] == "a verdict\n"


def test_its_arguments_are_those_of_the_programs(rehearsal, monkeypatch, capsys):
    """What the script says to run.py is what run.py understands."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import run

    for call in rehearsal.run("speed").calls:
        if "benchmarks/run.py" in call:
            assert run.main([*call.split("benchmarks/run.py ")[1].split(), "--list"]) == 0, call
    assert "LSTM" in capsys.readouterr().out


def test_every_choice_of_tests_has_tests(rehearsal):
    """Each -k of the script names tests; pytest matches its words with a part of a test's name, as here."""
    files = [f"tests/cuda/test_gpu{of}.py" for of in ("", "_wavefront", "_own_cells")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", *files]
    done = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True)
    names = [line for line in done.stdout.splitlines() if "::" in line]
    calls = [call for call in rehearsal.run("correctness").calls if " -k " in call]
    choices = {re.search(r"(tests/\S+) -k (.*)", call).groups() for call in calls}
    assert len(choices) == 13
    for file, words in choices:
        chosen = Expression.compile(words)
        assert any(chosen.evaluate(lambda word, name=name: word in name) for name in names if file in name), words


def test_a_build_that_fails_ends_it_with_the_last_lines(rehearsal):
    run = rehearsal.run("correctness", fail="setup.py build_ext")
    assert run.status == 1 and run.ends == {"machine": "0", "build": "3"}
    assert "stand-in: told to fail" in run.said and "told to fail" in run.files["build.log"]


@pytest.mark.parametrize("fault, code", [("fail", "3"), ("hang", "124")])
def test_a_tier_that_faults_or_hangs_is_told_and_the_others_run(rehearsal, fault, code):
    run = rehearsal.run("correctness", **{fault: "cluster and not four_steps"})
    assert run.status == 1 and run.ends == dict.fromkeys(CORRECTNESS, "0") | {"tests-cluster": code}


def test_a_benchmark_that_hangs_keeps_its_rows(rehearsal):
    run = rehearsal.run("speed", hang="--grid packed")
    assert run.status == 1 and run.ends == dict.fromkeys(SPEED, "0") | {"bench-packed-measured": "124"}
    assert run.files["bench-packed-measured.csv"] == "a row\n"


def test_a_command_that_is_cut_off_has_the_parts_before(rehearsal):
    process = rehearsal.start("correctness", hang="four_steps and cluster-8")
    while (
        not (rehearsal.out / "correctness.txt").exists()
        or "first-cta" not in (rehearsal.out / "correctness.txt").read_text()
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ends, files = rehearsal.found("correctness")
    assert list(ends) == ["machine", "build", "first-step", "first-cta"] and "first-cta.log" in files


def test_without_the_wheels_of_opponents_their_parts_are_left_out(rehearsal):
    shutil.rmtree(rehearsal.folder / "tree/wheels")
    run = rehearsal.run("speed")
    assert run.status == 0 and list(run.ends) == [name for name in SPEED if name not in (*FLASHRNN, "torchrl")]
    assert not any("--opponent" in call for call in run.calls)


def test_what_is_not_installed_is_named(rehearsal):
    for name in ("nvidia-smi", "compute-sanitizer", "nvcc", "ncu"):
        (rehearsal.folder / "bin" / name).unlink()
    missing = {"machine": "nvidia-smi", "memcheck": "compute-sanitizer", "barriers": "nvcc", "profile-step": "ncu"}
    for command, parts in (("correctness", ("machine", "memcheck")), ("speed", ("barriers", "profile-step"))):
        run = rehearsal.run(command)
        assert run.status == 1
        for part in parts:
            assert run.ends[part] == "127" and f"{missing[part]}: command not found" in run.files[f"{part}.log"]


def test_another_command_is_refused(rehearsal):
    process = rehearsal.start("both")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and "usage: benchmarks/gpu_check.sh correctness|speed|proof FOLDER" in said
