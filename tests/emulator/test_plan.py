"""The plan that chooses among the CUDA kernels, and what says which they are."""

import itertools
import types

import pytest
import torch

from emulator import build, oracle
from emulator.cases import DTYPE_NUMBER, DTYPES, Layer
from fastrnn._backends import dispatch

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")


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
    monkeypatch.setattr(dispatch, "choose", lambda call, explained=False: "cuda")
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
    assert dispatch.ops.wavefront(like, stack) == (3, 5)
    assert dispatch.ops.wavefront(like, stack._replace(zoned=True)) == (1, 0)  # which takes a launch a step
    text = str(dispatch.explanation(stack._replace(directions=2), like))
    assert "\n  layers: one after another, because a layer needs the whole of the layer below" in text
    cuda.set_device(sms=1)
    text = str(dispatch.explanation(stack._replace(grad=True), like))
    assert "\n  layers: one after another, because two layers do not find room at the same time\n" in text


@pytest.fixture
def ops(monkeypatch, cuda):
    """``fastrnn._kernels.ops`` with the emulator in the place of the extension's CUDA part."""
    monkeypatch.setattr(dispatch.ops, "_cuda", cuda)
    return dispatch.ops


def test_an_environment_variable_opts_in(ops, cuda):
    like = torch.empty(0, dtype=torch.bfloat16)
    ops.override_tier("grid")
    forward = cuda.plan_stack(like, 0, 16, 512, 512, 1, steps=9)["forward"]
    assert forward["resident"][forward["chosen"]]["tier"] == "grid"


def test_a_build_without_cuda_kernels_has_no_tiers(monkeypatch):
    """A wish for one is no error."""
    monkeypatch.setattr(dispatch.ops, "_cuda", None)
    dispatch.ops.override_tier("auto")
    dispatch.ops.keep_tiers(0, [])


def test_the_chunks_of_a_wavefront_can_be_prescribed(cuda):
    like = torch.empty(0, dtype=torch.bfloat16)
    cuda.override_tier("grid")
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
        ("H200", {"H": 64}, ["cta 2 1 64 8 1", "cluster 4 2 32 4 1", "grid 8 2 32 2 1"]),
        ("H200", {"H": 96, "dtype": "float32"}, ["cluster 4 4 24 4 1", "grid 8 3 32 2 1"]),
        ("H200", {"H": 256}, ["cluster 8 8 32 2 1", "grid 8 8 32 2 1"]),
        # There is room for fifteen clusters of eight: beyond, half as many members with twice the units, or more rows.
        ("H200", {"H": 256, "B": 120}, ["cluster 8 8 32 15 1", "grid 8 8 32 15 1"]),
        ("H200", {"H": 256, "B": 128}, ["cluster 8 4 64 16 1", "grid 8 8 32 16 1"]),
        ("H200", {"H": 256, "B": 256}, ["cluster 32 8 32 8 1", "grid 32 8 32 8 1"]),
        ("H200", {"H": 256, "B": 256, "D": 2}, ["cluster 8 4 64 32 1", "grid 32 8 32 8 1"]),
        ("H200", {"H": 256, "B": 256, "dtype": "float32"}, ["cluster 8 8 32 32 1", "grid 8 8 32 16 2"]),
        ("H200", {"H": 512, "backward": True}, ["cluster 8 16 32 2 1", "grid 8 16 32 2 1"]),
        ("H200", {"H": 512, "dtype": "float32", "backward": True}, ["grid 8 16 32 2 1"]),
        # Fewer rows a tile while four layers find room; in a block also where a thread would serve several elements.
        ("H200", {"H": 64, "B": 66}, ["cta 2 1 64 33 1", "cluster 8 2 32 9 1", "grid 8 2 32 9 1"]),
        ("H200", {"H": 64, "B": 67}, ["cta 4 1 64 17 1", "cluster 8 2 32 9 1", "grid 8 2 32 9 1"]),
        ("H200", {"H": 64, "B": 528}, ["cta 4 1 64 132 1", "cluster 8 2 32 66 1", "grid 8 2 32 66 1"]),
        ("H200", {"H": 64, "B": 529}, ["cta 8 1 64 67 1", "cluster 8 2 32 67 1", "grid 32 2 32 17 1"]),
        ("H200", {"H": 32, "B": 256}, ["cta 8 1 32 32 1", "cluster 8 2 16 32 1", "grid 8 1 32 32 1"]),
        ("H200", {"H": 256, "B": 12}, ["cluster 4 8 32 3 1", "grid 8 8 32 2 1"]),
        ("H200", {"H": 256, "B": 13}, ["cluster 8 8 32 2 1", "grid 8 8 32 2 1"]),
        ("H200", {"H": 768}, ["cluster 8 16 48 2 1", "grid 8 24 32 2 1"]),
        ("H200", {"H": 768, "B": 64}, ["cluster 8 16 48 8 1", "grid 32 32 24 2 1"]),
        ("H200", {"H": 1024, "B": 256}, ["grid 32 64 16 2 4"]),
        ("H200", {"H": 2048}, ["grid 8 128 16 1 2"]),
        ("H200", {"H": 2048, "B": 256, "backward": True}, []),
        ("H200", {"H": 64, "dtype": "float64"}, []),
        ("H200", {"H": 64, "cell": oracle.MODES.index("IND_RNN")}, []),
        ("H200", {"H": 64, "cell": oracle.MODES.index("LAYER_NORM_LSTM")}, []),
        ("A100", {"H": 96}, ["cta 2 1 96 8 1", "grid 8 3 32 2 1"]),
        ("A100", {"H": 1024}, ["grid 8 43 24 2 1"]),
        ("A100", {"H": 2048}, []),
        ("RTX 4090", {"H": 1024}, ["grid 8 64 16 2 1"]),
        ("T4", {"H": 64, "dtype": "float16"}, ["cta 2 1 64 8 1"]),
        ("T4", {"H": 64, "dtype": "tf32"}, ["cta 2 1 64 8 1"]),
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


def test_the_nearest_shape_that_a_proof_timed_decides(ops, cuda):
    """Of a kind that was timed; all rows that are equally near have to agree."""
    like = torch.empty(0, dtype=torch.bfloat16)

    def chosen(T, B, H, cell=0, grad=True):
        plan = cuda.plan_stack(like, cell, B, H, H, 1, layers=1, steps=T, grad=grad)
        return [plan[name]["chosen"] for name in ("forward", "backward")]

    rows = [(16, 8, 64, True), (256, 8, 64, False), (16, 8, 512, False), (16, 8, 512, True)]
    cuda.override_tier("measured")
    ops.keep_tiers(-1, [(0, torch.bfloat16, False, True, rows)])
    assert chosen(32, 8, 96) == [0, 0] and chosen(512, 8, 96) == [-1, -1] and chosen(16, 8, 256) == [-1, -1]
    assert chosen(512, 8, 96, grad=False)[0] == chosen(512, 8, 96, cell=1)[0] == 0
    ops.keep_tiers(0, [(0, torch.bfloat16, False, True, rows[:1])])  # another device
    assert chosen(512, 8, 96) == [-1, -1]
    ops.keep_tiers(-1, [])
    assert chosen(512, 8, 96) == [0, 0]
    ops.keep_tiers(0, [])


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
