"""Runs some cases of a seed, or of the sweep, and writes a line for each before, between the sides, and after."""

from __future__ import annotations

import faulthandler
import json
import sys
import warnings

import torch

from . import cases, sweep, verdict


def _say(**line) -> None:
    print(json.dumps(line), flush=True)


def _dispatch_state() -> tuple[str, ...]:
    """Which keys this thread's calls leave out or add: some errors inside torch leave them changed."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    return str(include), str(exclude)


def run(source: str, start: int, count: int) -> None:
    fresh = _dispatch_state()
    for index in range(start, start + count):
        case = sweep.of_index(index) if source == "sweep" else cases.of_seed(source, index)
        _say(index=index, case=str(case), state="torch")
        theirs = verdict.run_torch(case)
        before = _dispatch_state()
        _say(index=index, state="ours")
        ours = verdict.run_ours(case)
        after = _dispatch_state()
        _say(index=index, state="compare")
        kind, text = verdict.judge(case, theirs, ours)
        if after != before:
            kind, text = "finding", f"leaves the thread's dispatch keys as {after}, found them as {before}"
        # What torch computed with weights that do not fit may have written past their end.
        damaged = theirs.error is None and ours.error is not None
        _say(index=index, state="done", verdict=kind, text=text, damaged=damaged)
        if after != fresh:
            return  # what follows would see it; another process goes on


if __name__ == "__main__":
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(sys.argv[1], *map(int, sys.argv[2:4]))
