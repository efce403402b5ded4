"""The kernels that run a whole sequence in one launch, in the emulator; against the formulas in test_emulator.py."""

import pytest
import torch

from emulator import build, oracle
from emulator.cases import RESIDENT, Layer

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")

CELLS = oracle.FUSED
EACH_TIER = pytest.mark.parametrize("wish", [wish for _, wish, _ in RESIDENT], ids=[name for name, *_ in RESIDENT])


@EACH_TIER
def test_one_launch_serves_both_directions_of_a_whole_sequence(cuda, wish):
    cuda.override_tier(**wish)
    Layer(0, "bfloat16", (3, 9, 2, 17), 2).forward(cuda)
    members = {"cta": 1, "cluster": 3 if wish.get("units") else 2, "grid": 3 if wish.get("units") else 1}[wish["tier"]]
    teams = -(-9 // wish["rows"])
    want = {"blocks": 2 * teams * members, "cluster": members if wish["tier"] == "cluster" else 1}
    want["cooperative"] = wish["tier"] == "grid"
    assert {name: cuda.last_launch()[name] for name in want} == want


@EACH_TIER
def test_forward_and_backward_of_different_tiers_fit_together(cuda, wish):
    layer = Layer(0, "float16", (4, 9, 2, 17), 2, packed=True)
    output, _, saved = layer.forward(cuda)
    want = layer.backward(cuda, output, saved)
    cuda.override_tier(**wish)
    torch.testing.assert_close(layer.backward(cuda, output, saved), want, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("wish", [{"tier": "cta"}, {"tier": "cluster", "units": 32}, {"tier": "grid", "units": 32}])
@pytest.mark.parametrize("cell", CELLS)
def test_weights_beyond_the_registers(cuda, cell, wish, precision):
    """One member and one slice of K with more chunks than a lane's registers hold, and several groups a warp."""
    cuda.override_tier(**wish)
    hidden = {"cta": 64 if precision in ("float32", "tf32") else 96}.get(wish["tier"], 150)
    Layer(cell, precision, (2, 3, 2, hidden)).check(cuda)


@pytest.mark.parametrize("tier", ["cluster", "grid"])
@pytest.mark.parametrize("cell", CELLS)
def test_members_of_more_units_whose_threads_serve_several_rows(cuda, cell, tier):
    for units, precision in ((64, "bfloat16"), (48, "float32")):
        cuda.override_tier(tier, rows=8, units=units)
        Layer(cell, precision, (3, 9, 2, 100), 2, packed=True).check(cuda)


@pytest.mark.parametrize("tier, rows, H", [("cta", 1, 17), ("cta", 3, 90), ("cta", 6, 90), ("cluster", 3, 100)])
def test_tiles_of_which_some_rows_are_used(cuda, tier, rows, H):
    cuda.override_tier(tier, rows=rows)
    for cell, precision in ((0, "bfloat16"), (1, "tf32")):
        if H <= 64 or tier != "cta" or precision != "tf32":
            Layer(cell, precision, (3, 9, 2, H), 2, packed=True).check(cuda)


@pytest.mark.parametrize("tier, rows", [("grid", 4), ("cluster", 16), ("cta", -1)])
def test_tiles_that_no_kernel_has_are_refused(cuda, tier, rows):
    cuda.override_tier(tier, rows=rows)
    with pytest.raises(RuntimeError, match=f"tier {tier} cannot serve LSTM forward"):
        Layer(0, "bfloat16", (3, 9, 2, 40)).forward(cuda)


def test_a_sequence_longer_than_one_launch_can_carry_offsets_of(cuda):
    cuda.override_tier("cta")
    Layer(2, "float32", (501, 2, 1, 3), packed=True).check(cuda)


def test_what_does_not_fit_is_refused_or_falls_to_the_next_tier(cuda):
    layer = Layer(0, "bfloat16", (4, 3, 2, 104))
    kinds = []
    # Everything there; no room for a cluster though the numbers say so; fewer SMs than a team has blocks.
    for device in ({}, {"cluster_sms": 1}, {"cluster_sms": 1, "sms": 2}):
        cuda.set_device(**device)
        cuda.override_tier("auto")
        layer.forward(cuda, save=False)
        last = cuda.last_launch()
        kinds.append("grid" if last["cooperative"] else "cluster" if last["cluster"] > 1 else "step")
    assert kinds == ["cluster", "grid", "step"]
    cuda.override_tier("cluster")
    with pytest.raises(RuntimeError, match=r"tier cluster cannot serve LSTM forward with H = 104.*: the emulator"):
        layer.forward(cuda)
    cuda.override_tier("cta")
    with pytest.raises(RuntimeError, match=r"tier cta cannot serve LSTM forward with H = 104, B = 3 on this device"):
        layer.forward(cuda)
    with pytest.raises(RuntimeError, match="tier must be measured, auto, step, cta, cluster or grid, got warp"):
        cuda.override_tier("warp")
