"""500 random calls against torch.nn, in processes of their own; ``make fuzz`` runs more. See ``__main__.py``."""

from __future__ import annotations

from collections import Counter

from fuzz.__main__ import run

CASES, SEED = 500, 0


def test_calls_do_what_torch_nn_does(capsys):
    counted, findings = Counter(), []
    for index, case, verdict, text in run(SEED, 0, CASES):
        counted[verdict] += 1
        if verdict == "finding":
            findings.append(f"{SEED}/{index} {case}: {text}")
    with capsys.disabled():
        print(f" {dict(counted)}", end="")
    assert counted["same result"] >= CASES // 3, counted
    assert not findings, "\n".join(findings)
