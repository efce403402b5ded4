"""``python -m fastrnn info | check | prove | tune | bench``."""

from __future__ import annotations

import sys

from . import _info, bench
from .bench import check
from .verdict import prove, tune

_USAGE = """usage: python -m fastrnn COMMAND

  info     what was built against what, what is active, and why anything is not
  check    every layer and cell against torch.nn on every device and backend here, with gradcheck
  prove    the CUDA kernels against torch.nn on a GPU, ahead of first calls: they run where they are right and no slower
  tune     the CPU kernels against torch.nn on this machine, in three minutes: calls go to torch where it is ahead
  bench    torch.nn against fastrnn on a shape of yours (--help lists the options)
"""


def main(argv: list[str]) -> int:
    """Runs a command; returns the exit status."""
    commands = {"check": check.main, "prove": prove.main, "tune": tune.main, "bench": bench.main}
    if argv == ["info"]:
        print(_info.report())
        return 0
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    asked = bool(argv) and argv[0] in ("-h", "--help")
    print(_USAGE, end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
