"""What a first call starts in the tests, in place of `python -m fastrnn`: it does as $STAND_IN says.

"real" measures, on the CPU kernels, shapes that take no time. All else is told without torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

VERDICT = "verdict-stand-in-3000-9.0.json"


def tiny(pipe, task):
    """The real measurement on shapes that take no time."""
    from fastrnn._prove import shapes, worker

    shapes._CHECKED = shapes._CHECKED[:1]
    shapes._TIMED, shapes._TIMED_STEP, shapes._TIMED_AS = ((2, 2, 8),), (), {}
    worker.work(pipe, task)


def real() -> int:
    from dataclasses import replace

    import stand_in

    from fastrnn import __main__ as command
    from fastrnn._prove import cli

    stand_in.pretend()
    measured = cli.prove

    def prove(task, *rest, **named):
        return measured(replace(task, device="cpu", backend="cpu", seconds=0.001), *rest, doing=tiny, **named)

    cli.prove = prove
    return command.main(sys.argv[1:])


def write() -> None:
    """Findings on the pair asked for, beside those that are there. $STAND_IN_STAMP has the stamp."""
    path = Path(os.environ["FASTRNN_CACHE_DIR"], VERDICT)
    pair = sys.argv[sys.argv.index("--only") + 1].split(":")
    known = json.loads(path.read_text()).get("findings", {}) if path.exists() else {}
    speeds = {"plain": [[64, 32, 128, 1.5], [1, 1, 256, 0.5]]}
    for kind in ("forward", "training"):
        known[" ".join([*pair, kind])] = {"state": "right", "detail": "", "speeds": speeds, "lacking": {}}
    stamp = json.loads(os.environ["STAND_IN_STAMP"])
    verdict = {"gpu": ["Stand-in 3000", "9.0"], "date": "2026-01-02", "stamp": stamp, "findings": known}
    path.write_text(json.dumps(verdict))


def main() -> int:
    what = os.environ["STAND_IN"]
    with open(os.environ["STAND_IN_LOG"], "a") as log:
        said = {"argv": sys.argv[1:], "pid": os.getpid(), "path": sys.path, "environment": dict(os.environ)}
        log.write(json.dumps(said) + "\n")
    if what == "real":
        return real()
    if "slowly" in what:
        time.sleep(1)
    if what in ("right", "slowly", "right, then a hang"):
        write()
    for _ in range(600 if what == "talk" else 0):
        print("a row", flush=True)
        time.sleep(0.05)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in what:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        subprocess.Popen(["sleep", "60"])
        time.sleep(60)
    if what == "rubbish":
        sys.stdout.buffer.write(bytes(range(256)) * 999)
        sys.stderr.buffer.write(bytes(range(128, 256)) * 999)
        Path(os.environ["FASTRNN_CACHE_DIR"], VERDICT).write_bytes(bytes(range(256)))
    if what.isdecimal():
        print("one line\nthe reason", file=sys.stderr)
        return int(what)
    return 0


if __name__ == "__main__":
    sys.exit(main())
