"""What a proof starts in the tests, in place of the worker: it does as $STAND_IN says.

"real" measures, on the CPU kernels, shapes that take no time, and "planted" with a GRU that is wrong in training. All
else is told without torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


def say(**message) -> None:
    print(json.dumps(message), flush=True)


def measured(task, planted: bool) -> int:
    import torch

    import fastrnn
    from fastrnn.verdict import prove, worker

    class Planted(fastrnn.GRU):
        def forward(self, *args, **named):
            output, *rest = super().forward(*args, **named)
            return output * 1.1 if torch.is_grad_enabled() else output, *rest

    if planted:
        fastrnn.GRU = Planted
    worker._CHECKED, worker.QUICK_S = worker._CHECKED[:2], 0.001
    worker._TIMED = (("plain", (2, 2, 8, 8), {}), ("step", (1, 2, 8, 8), {"call": "step"}))
    prove.PROGRAM = None  # nothing here starts anything
    return worker.main(task, torch.device("cpu"), "cpu")


def main() -> int:
    task, what = json.loads(sys.argv[-1]), os.environ["STAND_IN"]
    what = json.loads(what).get(task["mode"], "right") if what.startswith("{") else what
    with open(os.environ["STAND_IN_LOG"], "a") as log:
        log.write(json.dumps({"task": task, "pid": os.getpid(), "path": sys.path, "environ": dict(os.environ)}) + "\n")
    if what in ("real", "planted"):
        return measured(task, what == "planted")
    if what.startswith("unready"):
        what = what.removeprefix("unready ")
    else:
        say(at="a shape")
    if "slowly" in what:
        time.sleep(1)
    half = what.startswith("steps, then ")  # and not what follows them
    what = what.removeprefix("steps, then ")
    if half or what in ("right", "slowly", "right, then a hang"):
        speeds = {"plain": [[64, 32, 128, 1.5], [1, 1, 256, 0.5]], "extended": []}
        for precision in ("ieee ", "tf32 ") if task["dtype"] == "float32" else ("",):
            for kind in ("forward", "training"):
                name = f"{task['mode']} {task['dtype']} {precision}{kind}"
                say(ready=name)  # a message that nobody knows
                found = {name: {"state": "right", "detail": "", "speeds": speeds}}
                FOUND.update(found)
        for _ in task["tiers"][: 1 if half else None]:
            say(findings=FOUND)
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
    if "hang" in what:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        time.sleep(60)
    if what == "waits":  # as the worker does
        os.read(0, 1)
    if what == "rubbish":
        sys.stdout.buffer.write(bytes(range(256)) * 999 + b"\n[1]\n5\n{}\n")
    if what.isdecimal():
        say(why="the reason")
        return int(what)
    return 0


FOUND = {}

if __name__ == "__main__":
    sys.exit(main())
