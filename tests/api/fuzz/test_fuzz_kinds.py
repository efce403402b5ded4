"""500 random calls and the sweep against torch.nn, in processes of their own; ``make fuzz`` runs more."""

from __future__ import annotations

from collections import Counter

import pytest

from fuzz import sweep
from fuzz.__main__ import run

EDGES = [sweep.COUNT * part // 3 for part in range(4)]
# (seed, first case, cases, the share of them that at least has a result: most of the sweep's states are wrong)
PARTS = {"random": ("0", 0, 500, 0.4)} | {
    f"sweep-{part}": ("sweep", EDGES[part], EDGES[part + 1] - EDGES[part], 0.15) for part in range(3)
}


@pytest.mark.parametrize("source, start, cases, share", PARTS.values(), ids=PARTS)
def test_calls_do_what_torch_nn_does(source, start, cases, share, capsys):
    counted, findings = Counter(), []
    for index, case, verdict, text in run(source, start, cases):
        counted[verdict] += 1
        if verdict == "finding":
            findings.append(f"{source}/{index} {case}: {text}")
    with capsys.disabled():
        print(f" {dict(counted)}", end="")
    assert not findings, "\n".join(findings)
    assert counted["same result"] >= cases * share, counted
