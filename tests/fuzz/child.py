"""Runs some cases of a seed and writes a line for each before, between the sides, and after."""

from __future__ import annotations

import faulthandler
import json
import sys
import warnings

import torch

from . import cases, verdict


def _say(**line) -> None:
    print(json.dumps(line), flush=True)


def run(number: int, start: int, count: int) -> None:
    for index in range(start, start + count):
        case = cases.drawn(number, index)
        _say(index=index, case=str(case), state="torch")
        theirs = verdict.run_torch(case)
        _say(index=index, state="ours")
        ours = verdict.run_ours(case)
        _say(index=index, state="compare")
        kind, text = verdict.judge(case, theirs, ours)
        _say(index=index, state="done", verdict=kind, text=text)


if __name__ == "__main__":
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(*map(int, sys.argv[1:4]))
