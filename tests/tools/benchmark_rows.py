"""Made-up result rows, for the tests of what reads them."""

from __future__ import annotations

from dataclasses import replace

import cases
import results

from fastrnn.bench.case import Case
from fastrnn.bench.measure import Measurement, Served, Setting
from fastrnn.bench.timing import Pace, Spread

SETTING = Setting(pace=Pace(seconds=0.0, least=2, most=2))
TINY = Case("LSTM", T=3, B=2, I=4, H=5)
PLACE = dict.fromkeys(results.PLACE, "") | {"device": "Test CPU", "torch": "2.0", "fastrnn": "0.1", "commit": "abc"}


def row_of(case, ratio=2.0, status="ok", backend="auto", extension="yes", **changes):
    times = {"floor_ms": 0.25, "ours": Spread(1.0, 0.9, 1.1, 5), "other": Spread(ratio, 1.9, 2.1, 5)}
    times = times if status == "ok" else {}
    kept = {"ours_bytes": 50, "other_bytes": 100} if case.mode == "training" and status == "ok" else {}
    found = Measurement(status, served=Served("cpu"), detail='a, "quoted" word', **times, **kept)
    setting = replace(SETTING, backend=backend)
    place = PLACE | {"extension": extension}
    return results.to_row(results.job_fields("cpu", "torch", case, setting, place), found, "cpu") | changes


def cpu_rows(ratio, **changes):
    wanted = cases.select(cases.GRIDS["cpu"], "cell=GRU,dtype=float32")
    return [row_of(case, ratio, **changes) for case in wanted]
