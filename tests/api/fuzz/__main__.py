"""``python -m fuzz --cases 10000 --seed N`` (from tests/api): fastrnn against torch.nn on random calls, or the sweep's.

A case that ends its process or hangs is a finding like any other; the next process goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from . import sweep

PATIENCE = 60  # seconds without a line
PER_PROCESS = 500


def _lines(stream, into: queue.Queue) -> None:
    for line in stream:
        into.put(line)
    into.put(None)


def batch(seed: int | str, start: int, count: int):
    """Yields (index, description, verdict, text) of the cases that one process gets through."""
    command = [sys.executable, "-m", "fuzz.child", str(seed), str(start), str(count)]
    room = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join([str(room.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=room, env=os.environ | {"PYTHONPATH": paths}, **pipes) as child:
        lines, errors = queue.Queue(), queue.Queue()
        for stream, into in ((child.stdout, lines), (child.stderr, errors)):
            threading.Thread(target=_lines, args=(stream, into), daemon=True).start()
        index, described, state, damaged = start, "(not drawn)", "start", False
        while True:
            try:
                line = lines.get(timeout=PATIENCE)
            except queue.Empty:
                child.kill()
                yield index, described, "finding", f"hangs (side: {state})"
                return
            if line is None:
                break
            if not line.startswith("{"):
                continue
            said = json.loads(line)
            index, state, described = said["index"], said["state"], said.get("case", described)
            if state == "done":
                damaged |= said["damaged"]
                yield index, described, said["verdict"], said["text"]
        status = child.wait()
    if status or state != "done":
        trace = [line.strip() for line in iter(errors.get, None) if line.strip()]
        current = next((n for n, line in enumerate(trace) if line.startswith("Current thread")), None)
        inside = trace[-3:] if current is None else trace[current + 1 : current + 4]
        culprit = {"torch": "torch.nn ends the process", "ours": "ENDS THE PROCESS"}.get(state, f"ends in {state}")
        kind = "torch ends" if state == "torch" or (damaged and state != "ours") else "finding"
        yield index, described, kind, f"{culprit} (status {status}): {' | '.join(inside)}"


def run(seed: int | str, start: int, cases: int):
    """As :func:`batch`, over as many processes as it takes."""
    index = start
    while index < start + cases:
        for result in batch(seed, index, min(PER_PROCESS, start + cases - index)):
            yield result
            index = result[0] + 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, help="how many: 10,000, or all of the sweep")
    parser.add_argument("--seed", default="0", help="a number, or sweep: all cases of fuzz/sweep.py")
    parser.add_argument("--start", type=int, default=0, help="index of the first case; with --cases 1: that one again")
    options = parser.parse_args(argv)
    cases = options.cases or (sweep.COUNT - options.start if options.seed == "sweep" else 10_000)
    counted, findings = Counter(), 0
    for index, described, verdict, text in run(options.seed, options.start, cases):
        counted[verdict] += 1
        if verdict in ("finding", "torch ends"):
            print(f"{options.seed}/{index} {described}\n    {text}", flush=True)
            findings += verdict == "finding"
        elif cases == 1:
            print(f"{options.seed}/{index} {described}\n    {verdict} {text}")
    summary = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counted.items()))
    print(f"{sum(counted.values())} cases of seed {options.seed}: {summary}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
