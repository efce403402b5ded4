"""`python -m fastrnn tune`: times torch.nn and the CPU kernels on this machine for the choice (`choice`)."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import product

from .._backends import choice
from .._backends.choice import AHEAD, COMMAND
from ..bench.case import MODES, Case
from ..bench.cli import SECONDS
from ..bench.environment import ALL_THREADS, warn_if_busy
from ..bench.measure import Setting, measure
from ..bench.timing import Pace
from . import kept

_SHAPES = (
    (1, 1, 256, {}),
    (100, 1, 128, {}),
    (50, 32, 128, {}),
    (1, 16, 256, {}),
    (20, 32, 512, {}),
    (1, 1, 1024, {}),
    (1, 16, 1024, {}),
    (1, 128, 1024, {}),
    (50, 16, 256, {"layers": 2}),
    (50, 16, 256, {"directions": 2}),
)
CASES = tuple(
    Case(cell, T, B, H, H, dtype=dtype, mode=mode, **more)
    for (T, B, H, more), cell, dtype, mode in product(_SHAPES, ("LSTM", "GRU", "RNN"), ("float32", "bfloat16"), MODES)
)
"""Shape by shape, so that where time runs out a shape is missing and not a cell."""
PACE, LIMIT_S = Pace(0.2, least=5), 170.0


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all was right, 1 if a case was wrong or failed, 2 if there is nothing to tune, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Checks the CPU kernels of LSTM, GRU and RNN against torch.nn, times both on this machine, which "
        "should be idle, and keeps what it finds: from then on calls near a shape at which torch was more than "
        f"{1 - AHEAD:.0%} faster go to torch, and all others to the kernels.",
    )
    parser.add_argument(
        "--seconds", type=SECONDS, default=LIMIT_S, help="begin no case after so long (default: %(default)g)"
    )
    parser.add_argument("--forget", action="store_true", help="delete what was kept of this machine instead")
    args = parser.parse_args(argv)
    cpu = choice.this_cpu()
    if cpu is None:
        print(f"{COMMAND}: there are no CPU kernels: python -m fastrnn info says why", file=sys.stderr)
        return 2
    if args.forget:
        there = choice.forget(cpu)
        print(f"forgotten: {choice.path_of(cpu)}" if there else f"nothing was kept for {cpu}")
        return 0
    warn_if_busy()
    try:
        kept.prepare()
        ratios, failed = _measure(args.seconds)
        if not ratios:
            print(f"{COMMAND}: no case was measured: nothing was kept", file=sys.stderr)
            return 1 if failed else 2
        print(f"\ntorch is ahead at {sum(ratio < AHEAD for ratio in ratios.values())} of {len(ratios)} cases measured")
        print(f"written to {choice.save(cpu, ratios)}")
    except KeyboardInterrupt:
        print("interrupted: nothing was kept", file=sys.stderr)
        return 130
    except OSError as reason:
        print(f"{COMMAND}: {reason}", file=sys.stderr)
        return 2
    return 1 if failed else 0


def _measure(limit: float) -> tuple[dict[str, float], int]:
    """torch's time over ours by key, and how many cases were wrong or failed."""
    setting = Setting(backend="cpu", threads=ALL_THREADS, pace=PACE)
    ratios, failed, begin = {}, 0, time.monotonic()
    for number, case in enumerate(CASES, 1):
        if time.monotonic() - begin > limit:
            print(f"stopped after {limit:g} s with {number - 1} of {len(CASES)} cases done")
            break
        (found,) = measure(case, setting)
        if found.status == "ok":
            ratios[choice.key_of(case)] = round(found.ratio, 4)
        failed += found.status != "ok"
        outcome = f"{found.ratio:.2f}x" if found.status == "ok" else f"{found.status}  {found.detail}"
        print(f"{number:>{len(str(len(CASES)))}}/{len(CASES)}  {case}  {outcome}", flush=True)
    return ratios, failed
