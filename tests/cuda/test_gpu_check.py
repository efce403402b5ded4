"""The script for a GPU, rehearsed with stand-ins for all that it calls: its order, its limits, its last word."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/gpu_check.sh"
LIMIT_S = 540
TOGETHER = {"resources", "memcheck", "racecheck", "flashrnn", "first-call", "gpu-tests"}
BENCHES = [
    "bench-cudnn-best-auto",
    "bench-rl-auto",
    "bench-packed-auto",
    "bench-decode-step",
    "bench-long-auto",
    "bench-long-flashrnn",
    "bench-sizes-auto",
    "bench-sizes-step",
    "bench-odd-auto",
    "bench-odd-step",
]
PARTS = ["machine", "build", *sorted(TOGETHER), "prove", *BENCHES, "tables"]

# Writes down how it was called and does what the part needs to go on; FAIL and HANG name parts of a command line.
PYTHON = """\
#!/usr/bin/env bash
echo "python tier=${FASTRNN_CUDA_TIER:-} $*" >>"$CALLS"
if [ -n "$FAIL" ] && [[ "$*" == *$FAIL* ]]; then echo "stand-in: told to fail" >&2; exit 3; fi
said="$*"
[[ "$*" == *sm_* ]] && echo sm_90
[[ "$*" == *'%d.%d'* ]] && echo 9.0
while [ $# -gt 0 ]; do
  if [ "$1" = --out ]; then echo a row >"$2"; fi
  shift
done
if [ -n "$HANG" ] && [[ "$said" == *$HANG* ]]; then sleep 60; fi
exit 0
"""
NVCC = '#!/bin/sh\necho "nvcc $*" >>"$CALLS"\n'
# The limits are written down; a part that hangs is not waited for as long as it might take.
TIMEOUT = """\
#!/usr/bin/env bash
echo "timeout $2 $6" >>"$CALLS"
exec {timeout} "$1" 3 "${{@:3}}"
"""
# What the script and the stand-ins take from the system; nothing else is there for them.
SYSTEM = "awk,basename,bash,cat,chmod,dirname,env,find,git,grep,mkdir,mktemp,nproc,rm,sh,sleep,tail,tee"


@pytest.fixture
def rehearse(tmp_path):
    """A function that runs a copy of the script; gives its exit status, the ends of its parts, calls and folder."""
    for folder in ("bin", "tree/benchmarks", "tree/csrc/cuda/inst", "tree/wheels"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "tree/benchmarks")
    (tmp_path / "tree/csrc/cuda/inst/lstm.cu").touch()
    for name in SYSTEM.split(","):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    stand_ins = {"python3": PYTHON, "nvcc": NVCC, "nvidia-smi": "#!/bin/sh\n", "c++filt": "#!/bin/sh\ncat\n"}
    stand_ins["timeout"] = TIMEOUT.format(timeout=shutil.which("timeout"))
    # `compute-sanitizer --tool T --error-exitcode 99 --target-processes all COMMAND...`
    stand_ins["compute-sanitizer"] = '#!/bin/sh\necho "sanitizer $2" >>"$CALLS"\nshift 6\nexec "$@"\n'

    def run(fail="", hang="", wheels=True, without=()):
        for name, text in stand_ins.items():
            program = tmp_path / "bin" / name
            program.write_text(text)
            program.chmod(0o755)
        for name in without:
            (tmp_path / "bin" / name).unlink()
        if not wheels:
            (tmp_path / "tree/wheels").rmdir()
        calls, out = tmp_path / "calls", tmp_path / "out"
        environment = {"PATH": f"{tmp_path}/bin", "CALLS": str(calls), "FAIL": fail, "HANG": hang}
        command = [shutil.which("bash"), str(tmp_path / "tree/benchmarks/gpu_check.sh"), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        ends = dict(re.findall(r"^(\S+) +exit +(\d+) after", (out / "summary.txt").read_text(), re.MULTILINE))
        return done.returncode, ends, calls.read_text().splitlines(), out

    return run


def test_all_parts_run_in_order_and_within_the_limit(rehearse):
    status, ends, calls, out = rehearse()
    assert (status, ends) == (0, dict.fromkeys(PARTS, "0"))
    assert [name for name in ends if name not in TOGETHER] == [name for name in PARTS if name not in TOGETHER]
    assert set(list(ends)[2 : 2 + len(TOGETHER)]) == TOGETHER  # before anything is timed
    limits = {name: int(seconds) for _, seconds, name in (call.split() for call in calls if call.startswith("timeout"))}
    assert set(limits) == set(PARTS)
    alone = sum(seconds for name, seconds in limits.items() if name not in TOGETHER)
    assert alone + max(limits[name] for name in TOGETHER) <= LIMIT_S
    grids = {re.search(r"/(bench-\S+).csv", call)[1]: call for call in calls if "/bench-" in call and "--grid" in call}
    assert list(grids) == BENCHES
    for name, call in grids.items():
        tier = "step" if name.endswith("step") else "auto"
        assert call.startswith(f"python tier={tier} benchmarks/run.py --backend cuda ") and "--shuffle" in call
        assert 0 < int(re.search(r"--stop-after (\d+)", call)[1]) < limits[name]
        assert ("--opponent flashrnn" in call) == ("flashrnn" in name)
    tables = next(call for call in calls if "summary.py" in call)
    assert tables.count(f"{out}/bench-") == len(BENCHES)
    assert "python tier= -m fastrnn prove --quick" in calls
    assert any("-arch=sm_90 -Xptxas -v" in call and "lstm.cu" in call for call in calls)


def test_its_arguments_are_those_of_the_programs(rehearse, monkeypatch, capsys):
    """What the script says to run.py is what run.py understands."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import run

    for call in rehearse()[2]:
        if "benchmarks/run.py" in call:
            assert run.main([*call.split("benchmarks/run.py ")[1].split(), "--list"]) == 0, call
    assert "LSTM" in capsys.readouterr().out


def test_a_part_that_fails_is_told_and_the_others_run(rehearse):
    status, ends, calls, out = rehearse(fail="tests/cuda/test_gpu.py")
    told = dict.fromkeys(("memcheck", "racecheck", "first-call"), "3")
    assert status == 1 and ends == dict.fromkeys(PARTS, "0") | told
    assert "told to fail" in (out / "memcheck.log").read_text()
    assert sum("--grid" in call for call in calls) == 1 + len(BENCHES)


def test_a_part_that_hangs_is_ended_and_keeps_what_it_wrote(rehearse):
    status, ends, _, out = rehearse(hang="--grid packed")
    assert status == 1 and ends == dict.fromkeys(PARTS, "0") | {"bench-packed-auto": "124"}
    assert (out / "bench-packed-auto.csv").read_text() == "a row\n"


def test_without_flashrnns_wheel_its_parts_are_left_out(rehearse):
    status, ends, calls, _ = rehearse(wheels=False)
    assert status == 0 and not [name for name in ends if "flashrnn" in name]
    assert len(ends) == len(PARTS) - 2 and not any("opponent flashrnn" in call for call in calls)


def test_what_is_not_installed_is_named(rehearse):
    status, ends, _, out = rehearse(without=("nvidia-smi", "compute-sanitizer"))
    assert status == 1
    for part, missing in (("machine", "nvidia-smi"), ("memcheck", "compute-sanitizer")):
        assert ends[part] == "127" and f"{missing}: command not found" in (out / f"{part}.log").read_text()
