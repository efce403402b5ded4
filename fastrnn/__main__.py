"""``python -m fastrnn info | check | prove | tune | bench``."""

from __future__ import annotations

import argparse
import sys

from . import _info, bench
from .bench import check
from .verdict import prove, tune

_USAGE = """usage: python -m fastrnn COMMAND [OPTIONS]

  info     build versions, active kernels, and why anything is inactive
  check    every layer and cell against torch.nn on every device and backend here, with gradcheck
  prove    the CUDA kernels against torch.nn on a GPU: from then on they run where they were right and no slower
  tune     the CPU kernels against torch.nn on this machine, in three minutes: calls go to torch where it is ahead
  bench    torch.nn against fastrnn on a shape of yours

python -m fastrnn COMMAND --help lists the options of a command and says what it does; info has none.

environment:
  FASTRNN_BACKEND          cuda, cpu, aten or reference computes every call, or it is an error
  FASTRNN_CPU_CACHE_MB     freed memory that the CPU kernels keep for later calls (default: 256; 0: none)
  FASTRNN_CACHE_DIR        folder of what prove and tune keep (default: $XDG_CACHE_HOME/fastrnn or ~/.cache/fastrnn)
  FASTRNN_CUDA_TIER        step, auto, cta, cluster or grid: which CUDA kernels serve

exit status: 0 all right, 1 something was wrong or failed, 2 wrong usage or nothing to do, 3 a pair of cell and dtype
could not be judged (prove), 130 interrupted
"""


def main(argv: list[str]) -> int:
    """Runs a command; returns the exit status."""
    commands = {"check": check.main, "prove": prove.main, "tune": tune.main, "bench": bench.main}
    if argv[:1] == ["info"]:
        parser = argparse.ArgumentParser(prog="python -m fastrnn info", description=_info.__doc__)
        parser.parse_args(argv[1:])
        print(_info.report())
        return 0
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    asked = bool(argv) and argv[0] in ("-h", "--help")
    print(_USAGE, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
