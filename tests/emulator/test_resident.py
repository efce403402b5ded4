"""The kernels that run a whole sequence in one launch, in the emulator, and the plan that chooses among them."""

import itertools
import types

import pytest
import torch

from emulator import build, oracle
from emulator.cases import (
    DTYPE_NUMBER,
    DTYPES,
    RESIDENT,
    RESIDENT_SHAPES,
    Layer,
    check_special_values,
    check_unread_states,
    masked_layers,
    parameters,
    small_layers,
    timed_layers,
)
from fastrnn._backends import dispatch

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")

CELLS = oracle.FUSED
CASES, SECOND_CASES = parameters(RESIDENT), parameters(RESIDENT, every=2)
EACH_TIER = pytest.mark.parametrize("wish", [wish for _, wish, _ in RESIDENT], ids=[name for name, *_ in RESIDENT])


def bits(layer, cuda):
    output, hn, saved = layer.forward(cuda)
    grad_x, grad_hx, grad_weights = layer.backward(cuda, output, saved)
    return [output, *hn, *saved, grad_x, *grad_hx, *grad_weights]


@pytest.mark.parametrize("cell, wish, precision", CASES)
def test_every_kernel_against_the_formulas(cuda, cell, wish, precision):
    cuda.override_tier(**wish)
    for layer in small_layers(cell, precision, shapes=RESIDENT_SHAPES):
        layer.check(cuda)


@pytest.mark.parametrize("cell, wish, precision", SECOND_CASES)
def test_every_kernel_with_lengths_resets_and_one_direction(cuda, cell, wish, precision):
    cuda.override_tier(**wish)
    for layer in timed_layers(cell, precision):
        layer.check(cuda)
    check_unread_states(cuda, cell, precision)


@pytest.mark.parametrize("cell, wish, precision", SECOND_CASES)
def test_every_kernel_with_an_operand_mask(cuda, cell, wish, precision):
    cuda.override_tier(**wish)
    for layer in masked_layers(cell, precision):
        layer.check(cuda)


@pytest.mark.parametrize("cell, wish, precision", SECOND_CASES)
def test_nan_and_infinities_with_every_kernel(cuda, cell, wish, precision):
    cuda.override_tier(**wish)
    check_special_values(cuda, cell, precision)


@EACH_TIER
@pytest.mark.parametrize("cell", CELLS)
def test_what_holds_without_lengths_and_resets_holds_with_them(cuda, cell, wish):
    cuda.override_tier(**wish)
    layer = next(timed_layers(cell, "bfloat16"))
    layer.check_nothing_overwritten(cuda)
    layer.check_needs(cuda)
    (output, hn, _), (again, hn_again, nothing) = layer.forward(cuda), layer.forward(cuda, save=False)
    assert torch.equal(output, again) and all(map(torch.equal, hn, hn_again)) and nothing == []


@EACH_TIER
def test_one_launch_serves_both_directions_of_a_whole_sequence(cuda, wish):
    cuda.override_tier(**wish)
    Layer(0, "bfloat16", (3, 9, 2, 17), 2).forward(cuda)
    members = {"cta": 1, "cluster": 3 if wish.get("units") else 2, "grid": 3 if wish.get("units") else 1}[wish["tier"]]
    teams = 1 if wish.get("rows") == 32 else 2
    want = {"blocks": 2 * teams * members, "cluster": members if wish["tier"] == "cluster" else 1}
    want["cooperative"] = wish["tier"] == "grid"
    assert {name: cuda.last_launch()[name] for name in want} == want


@EACH_TIER
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_overwritten_and_a_second_backward_agrees_bit_for_bit(cuda, cell, wish):
    cuda.override_tier(**wish)
    Layer(cell, "bfloat16", (3, 9, 2, 17), 2, packed=True).check_nothing_overwritten(cuda)


@EACH_TIER
def test_forward_and_backward_of_different_tiers_fit_together(cuda, wish):
    layer = Layer(0, "float16", (4, 9, 2, 17), 2, packed=True)
    output, _, saved = layer.forward(cuda)
    want = layer.backward(cuda, output, saved)
    cuda.override_tier(**wish)
    for got, expected in zip(layer.backward(cuda, output, saved)[2], want[2], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=2e-2)


@EACH_TIER
@pytest.mark.parametrize("cell", CELLS)
def test_without_save_or_biases_the_results_are_right(cuda, cell, wish):
    cuda.override_tier(**wish)
    layer = Layer(cell, "bfloat16", (4, 9, 2, 17), 2, packed=True, biased=False)
    layer.check(cuda)
    (output, hn, _), (again, hn_again, nothing) = layer.forward(cuda), layer.forward(cuda, save=False)
    assert torch.equal(output, again) and all(map(torch.equal, hn, hn_again)) and nothing == []


@pytest.mark.parametrize("cell", CELLS)
def test_weights_beyond_the_registers(cuda, cell):
    """One member and one slice of K with more chunks than a lane's registers hold, and several groups a warp."""
    for tier, H in (("cta", 96), ("cluster", 150), ("grid", 150)):
        for precision in ("bfloat16", "float32"):
            hidden = 64 if (tier, precision) == ("cta", "float32") else H
            cuda.override_tier(tier, units=0 if tier == "cta" else 32)
            Layer(cell, precision, (2, 3, 2, hidden)).check(cuda)


@pytest.mark.parametrize("tier", ["cluster", "grid"])
@pytest.mark.parametrize("cell", CELLS)
def test_members_of_more_units_whose_threads_serve_several_rows(cuda, cell, tier):
    for units, precision in ((64, "bfloat16"), (48, "float32")):
        cuda.override_tier(tier, rows=8, units=units)
        Layer(cell, precision, (3, 9, 2, 100), 2, packed=True).check(cuda)


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


def test_float64_and_projected_layers_keep_their_step_kernels(cuda):
    cuda.override_tier("grid")
    for layer in (Layer(0, "float64", (2, 3, 2, 9)), Layer(0, "float32", (2, 3, 2, 9), projection=4)):
        layer.check(cuda)
        assert not cuda.last_launch()["cooperative"]


def test_the_plan_names_what_serves_and_what_could(cuda):
    like = torch.empty(0, dtype=torch.bfloat16)
    plan = cuda.plan_stack(like, 0, 16, 512, 512, 1, steps=9)
    regime = "medium: one cluster a batch tile"
    first = {"tier": "cluster", "regime": regime, "teams": 2, "members": 16, "units": 32, "rows": 8, "tiles": 1}
    assert plan["forward"]["resident"][0] == first | {"tensor_cores": True, "ahead": True}
    assert plan["forward"]["step"] == cuda.plan(0, 2, False, False, 16, 512, 512, 1, 90)
    assert plan["forward"]["chosen"] == plan["backward"]["chosen"] == -1
    cuda.override_tier("auto")
    assert cuda.plan_stack(like, 0, 16, 512, 512, 1, steps=9)["forward"]["chosen"] == 0
    cuda.set_device(cluster_sms=1)
    forward = cuda.plan_stack(like, 0, 16, 512, 512, 1, steps=9)["forward"]
    chosen = forward["resident"][forward["chosen"]]
    assert chosen["tier"] == "grid" and chosen["regime"].startswith("large: ")


def test_explain_shows_the_plan_of_backend_cuda(cuda, monkeypatch):
    """As on a GPU, with the emulator in the place of the extension's CUDA part."""
    monkeypatch.setattr(dispatch.ops.ext, "load", lambda: types.SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(dispatch, "choose", lambda call, input=None: "cuda")
    call = dispatch.Call("GRU", "cuda", torch.float16, T=5, B=3, I=2, H=40, directions=2)
    text = str(dispatch.explanation(call, torch.empty(0, dtype=torch.float16)))
    assert text.startswith(
        "cuda: chosen\n  forward: a launch a step, step (fused with tensor cores); possible: cta (small, 16"
    )
    assert "\n  backward: a launch a step" in text
    assert "layers: " not in text
    assert dispatch.explanation(call).kernels is None
    cuda.override_tier("auto")
    stack, like = call._replace(layers=3, T=1000, directions=1), torch.empty(0, dtype=torch.float16)
    assert "\n  layers: 3 at the same time, in 5 chunks of time\n" in str(dispatch.explanation(stack, like))
    text = str(dispatch.explanation(stack._replace(directions=2), like))
    assert "\n  layers: one after another, because a layer needs the whole of the layer below" in text
    cuda.set_device(sms=1)
    text = str(dispatch.explanation(stack._replace(grad=True), like))
    assert "\n  layers: one after another, because two layers do not find room at the same time\n" in text


def test_an_environment_variable_opts_in(cuda):
    like = torch.empty(0, dtype=torch.bfloat16)
    for tier in (None, "grid"):
        dispatch.ops._opt_in(types.SimpleNamespace(cuda=cuda), tier)
        forward = cuda.plan_stack(like, 0, 16, 512, 512, 1, steps=9)["forward"]
        assert (forward["resident"][forward["chosen"]]["tier"] if forward["chosen"] >= 0 else None) == tier
    dispatch.ops._opt_in(types.SimpleNamespace(), "auto")  # a build without CUDA kernels


def test_the_chunks_of_a_wavefront_can_be_prescribed(cuda):
    like = torch.empty(0, dtype=torch.bfloat16)
    dispatch.ops._opt_in(types.SimpleNamespace(cuda=cuda), "grid")
    for chunks, want in ((5, (2, 5)), (0, (1, 0))):
        cuda.override_wavefront(chunks)
        assert cuda.plan_stack(like, 0, 16, 512, 512, 1, layers=2, steps=100)["layers"][:2] == want
    with pytest.raises(RuntimeError, match="chunks must not be negative, got -1"):
        cuda.override_wavefront(-1)


DEVICES = {
    "H200": {"capability": 90, "sms": 132, "shared_per_block": 232448, "max_cluster": 16},
    "A100": {"capability": 80, "sms": 108, "shared_per_block": 166912, "max_cluster": 0},
    "RTX 4090": {"capability": 89, "sms": 128, "shared_per_block": 101376, "max_cluster": 0},
    "T4": {"capability": 75, "sms": 40, "shared_per_block": 65536, "max_cluster": 0},
}


def tiers(cuda, device, H, B=16, dtype="bfloat16", cell=0, backward=False, D=1):
    found = cuda.plan_tiers(cell, DTYPE_NUMBER[DTYPES[dtype]], dtype == "tf32", backward, B, H, H, D, **DEVICES[device])
    names = ("tier", "rows", "members", "units", "teams", "tiles")
    return [" ".join(str(team[name]) for name in names) for team in found]


# tier, rows, members, units, teams, tiles of every candidate, best first.
@pytest.mark.parametrize(
    "device, arguments, want",
    [
        ("H200", {"H": 64}, ["cta 8 1 64 2 1", "cluster 8 2 32 2 1", "grid 8 2 32 2 1"]),
        ("H200", {"H": 96, "dtype": "float32"}, ["cluster 8 4 24 2 1", "grid 8 3 32 2 1"]),
        ("H200", {"H": 256}, ["cluster 8 8 32 2 1", "grid 8 8 32 2 1"]),
        # There is room for fifteen clusters of eight: beyond, half as many members with twice the units, or more rows.
        ("H200", {"H": 256, "B": 120}, ["cluster 8 8 32 15 1", "grid 8 8 32 15 1"]),
        ("H200", {"H": 256, "B": 128}, ["cluster 8 4 64 16 1", "grid 8 8 32 16 1"]),
        ("H200", {"H": 256, "B": 256}, ["cluster 32 8 32 8 1", "grid 32 8 32 8 1"]),
        ("H200", {"H": 256, "B": 256, "D": 2}, ["cluster 8 4 64 32 1", "grid 32 8 32 8 1"]),
        ("H200", {"H": 256, "B": 256, "dtype": "float32"}, ["cluster 8 8 32 32 1", "grid 8 8 32 16 2"]),
        ("H200", {"H": 512, "backward": True}, ["cluster 8 16 32 2 1", "grid 8 16 32 2 1"]),
        ("H200", {"H": 512, "dtype": "float32", "backward": True}, ["grid 8 16 32 2 1"]),
        ("H200", {"H": 768}, ["cluster 8 16 48 2 1", "grid 8 24 32 2 1"]),
        ("H200", {"H": 1024, "B": 256}, ["grid 32 64 16 2 4"]),
        ("H200", {"H": 2048}, ["grid 8 128 16 1 2"]),
        ("H200", {"H": 2048, "B": 256, "backward": True}, []),
        ("H200", {"H": 64, "dtype": "float64"}, []),
        ("H200", {"H": 64, "cell": oracle.MODES.index("IND_RNN")}, []),
        ("H200", {"H": 64, "cell": oracle.MODES.index("LAYER_NORM_LSTM")}, []),
        ("A100", {"H": 96}, ["cta 8 1 96 2 1", "grid 8 3 32 2 1"]),
        ("A100", {"H": 1024}, ["grid 8 43 24 2 1"]),
        ("A100", {"H": 2048}, []),
        ("RTX 4090", {"H": 1024}, ["grid 8 64 16 2 1"]),
        ("T4", {"H": 64, "dtype": "float16"}, ["cta 8 1 64 2 1"]),
        ("T4", {"H": 64, "dtype": "tf32"}, ["cta 8 1 64 2 1"]),
        ("T4", {"H": 64}, []),
        ("T4", {"H": 256, "dtype": "float16"}, []),
    ],
)
def test_plan(cuda, device, arguments, want):
    assert tiers(cuda, device, **arguments) == want


@pytest.mark.parametrize(
    "H, B, backward, want",
    [
        (512, 64, False, {"cluster": True, "grid": True}),
        (1024, 64, False, {"grid": True}),
        (1024, 128, False, {"grid": False}),
        (768, 64, False, {"cluster": True, "grid": True}),
        (768, 128, False, {"cluster": False, "grid": False}),
        (512, 64, True, {"cluster": True, "grid": True}),
        (512, 128, True, {"cluster": True, "grid": False}),
        (1024, 16, True, {"grid": True}),
        (1024, 64, True, {"grid": False}),
        (2048, 1, True, {"grid": True}),
        (2048, 16, True, {"grid": False}),
    ],
)
def test_who_was_ahead_of_a_launch_a_step(cuda, H, B, backward, want):
    found = cuda.plan_tiers(0, DTYPE_NUMBER[torch.bfloat16], False, backward, B, H, H, 1, **DEVICES["H200"])
    assert {team["tier"]: team["ahead"] for team in found} == want


def test_by_default_resident_kernels_serve_the_gpus_that_were_measured(cuda):
    like = torch.empty(0, dtype=torch.bfloat16)

    def chosen(B, H, T=9):
        return cuda.plan_stack(like, 0, B, H, H, 1, layers=1, steps=T)["forward"]["chosen"]

    cuda.override_tier("measured")
    assert chosen(16, 512) == 0 and chosen(128, 2048) == -1
    assert chosen(16, 512, T=4) == 0 and chosen(16, 512, T=3) == -1
    cuda.override_tier("step")
    assert chosen(16, 512) == -1


def wavefront(cuda, device, layers, T, grad=True, D=1, in_graph=False, chunks=None, **arguments):
    """Layers at the same time and chunks, or why not, for the first candidates of the passes."""
    passes = []
    for backward in (False, True)[: 1 + grad]:
        best = tiers(cuda, device, backward=backward, D=D, **arguments)[:1]
        tier, _, members, _, teams, _ = best[0].split() if best else ["step", "", "1", "", "1", ""]
        passes.append((tier, int(members), int(teams)))
    lanes, count, why_not = cuda.plan_wavefront(passes, DEVICES[device]["sms"], D, layers, T, in_graph, chunks)
    return f"{lanes} in {count}" if count else why_not


@pytest.mark.parametrize(
    "device, arguments, want",
    [
        # Two teams of sixteen blocks: four layers find room. T / 64 chunks in all that the host can keep up with.
        ("H200", {"H": 512, "layers": 2, "T": 1024}, "2 in 4"),
        ("H200", {"H": 512, "layers": 4, "T": 1024}, "4 in 4"),
        ("H200", {"H": 512, "layers": 6, "T": 1024}, "4 in 4"),
        ("H200", {"H": 512, "layers": 6, "T": 10000}, "4 in 21"),
        ("H200", {"H": 512, "layers": 4, "T": 256}, "2 in 2"),
        ("H200", {"H": 512, "layers": 4, "T": 255}, "the sequence is too short for chunks"),
        ("H200", {"H": 512, "layers": 4, "T": 255, "chunks": 9}, "4 in 9"),
        ("H200", {"H": 512, "layers": 4, "T": 5, "chunks": 9}, "4 in 5"),
        ("H200", {"H": 512, "layers": 4, "T": 1024, "chunks": 1}, "it is switched off"),
        # In a graph the host has no part in it.
        ("H200", {"H": 64, "layers": 4, "T": 32, "in_graph": True}, "4 in 2"),
        ("H200", {"H": 64, "layers": 4, "T": 32, "in_graph": True, "grad": False}, "4 in 3"),
        ("H200", {"H": 512, "layers": 6, "T": 1024, "in_graph": True}, "4 in 11"),
        ("H200", {"H": 64, "layers": 16, "T": 11, "in_graph": True, "grad": False}, "16 in 2"),
        ("H200", {"H": 64, "layers": 2, "T": 95, "in_graph": True}, "the sequence is too short for chunks"),
        ("H200", {"H": 512, "layers": 1, "T": 1024}, "there is one layer"),
        ("H200", {"H": 512, "layers": 4, "T": 1024, "D": 2}, "both directions"),
        ("H200", {"H": 1024, "B": 256, "layers": 4, "T": 1024}, "two layers do not find room at the same time"),
        ("H200", {"H": 2048, "B": 256, "layers": 4, "T": 1024}, "a launch for the sequence in every pass"),
        ("H200", {"H": 64, "dtype": "float64", "layers": 4, "T": 1024}, "a launch for the sequence in every pass"),
        ("A100", {"H": 96, "layers": 3, "T": 1024}, "3 in 5"),
        ("A100", {"H": 512, "layers": 4, "T": 1024}, "3 in 5"),
        ("A100", {"H": 1024, "layers": 4, "T": 1024}, "two layers do not find room at the same time"),
        ("RTX 4090", {"H": 512, "layers": 4, "T": 1024}, "4 in 4"),
        ("RTX 4090", {"H": 1024, "layers": 4, "T": 1024}, "two layers do not find room at the same time"),
        ("T4", {"H": 64, "dtype": "float16", "layers": 2, "T": 1024}, "2 in 4"),
        ("T4", {"H": 256, "dtype": "float16", "layers": 2, "T": 1024}, "a launch for the sequence in every pass"),
    ],
)
def test_the_plan_of_a_wavefront(cuda, device, arguments, want):
    assert want in wavefront(cuda, device, **arguments)


def test_a_call_that_is_captured_is_planned_as_one_in_a_graph(cuda):
    like = torch.empty(0, dtype=torch.bfloat16)

    def plan():
        return cuda.wavefront(like, 0, 16, 64, 64, directions=1, layers=4, steps=32, grad=False)

    cuda.override_tier("measured")
    assert plan() == (1, 0, "the sequence is too short for chunks")
    cuda.record(lambda what, run: None)
    assert plan() == (4, 3, None)
    cuda.record(None)
    assert plan()[1] == 0


def test_a_wavefront_leaves_room_for_all_its_layers_and_takes_less_time_by_its_own_reckoning(cuda):
    sizes = itertools.product((20, 132), (1, 16), (2, 3, 8), (1, 32, 100, 300, 1000, 100000), (False, True))
    for sms, members, layers, T, in_graph in sizes:
        passes = [("grid", members, 2)] * 2
        lanes, chunks, why_not = cuda.plan_wavefront(passes, sms, 1, layers, T, in_graph)
        assert (chunks == 0) == (why_not is not None)
        if chunks:
            cost = 24 if in_graph else 64
            assert 2 <= lanes <= layers and lanes * 2 * members <= sms and chunks >= 2
            assert in_graph or chunks <= T // cost // lanes
            assert (chunks + lanes - 1) * (-(-T // chunks) + cost) < lanes * (T + cost)


def test_every_regime_of_the_plan_is_used_and_fits(cuda):
    seen = set()
    for device, properties in DEVICES.items():
        for H in (1, 33, 64, 96, 128, 256, 512, 768, 1024, 2048):
            for dtype in (1, 2, 3):
                for B in (1, 64, 1000):
                    for backward in (False, True):
                        for team in cuda.plan_tiers(0, dtype, False, backward, B, H, H, 2, **properties):
                            seen.add(team["regime"])
                            case = (device, H, dtype, B, backward, team)
                            assert team["members"] * team["units"] >= H, case
                            assert team["teams"] * team["tiles"] * team["rows"] >= B, case
                            assert team["shared_bytes"] <= properties["shared_per_block"], case
                            if team["tier"] == "grid":
                                assert 2 * team["teams"] * team["members"] <= properties["sms"], case
                            if team["tier"] == "cluster":
                                assert 2 <= team["members"] <= properties["max_cluster"], case
    assert len(seen) == 4
