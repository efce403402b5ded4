"""``zoneout``: units that keep their states from the step before."""

from __future__ import annotations

import pytest
import torch
from emulator import oracle
from emulator.cases import zoned_layers
from support import KERNELS, compiled, given, name_of, pairs, using
from test_dropping import HEADED, each_cell, layer, seeded
from test_own_cells import ASKED, BACKENDS, backends, check_with_formulas, isas, precisions, states_of
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.reference import zones
from fastrnn.registry import ALL_CELLS

RATES = (0.3, 0.6)


# Of Random123's known answers for seven rounds: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
]


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_the_random_numbers_are_those_of_philox(counter, key, words):
    counter, key, words = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    assert oracle.philox(counter, key) == words
    signed = (key[1] << 32 | key[0]) - (1 << 64) * (key[1] >> 31)
    found = zones.philox([torch.tensor(word) for word in counter], torch.tensor(signed))
    assert [int(word) for word in found] == words


@isas
@precisions
def test_every_instruction_set_draws_the_same(isa, precision):
    with using(isa):
        for case in zoned_layers(0, precision):
            case.check(KERNELS)


@compiled
def test_what_does_not_fit_is_refused():
    def message(change):
        case, *_ = zoned_layers(0, "float32")
        change(case.schedule)
        with pytest.raises(RuntimeError) as error:
            case.forward(KERNELS)
        return str(error.value)

    seeds = torch.zeros(2, 9)
    assert "seeds must be Long on cpu, got Float on cpu" in message(lambda schedule: schedule.update(seeds=seeds))
    assert "seeds must have shape [2, 9], got [9]" in message(lambda schedule: schedule.update(seeds=seeds[0].long()))
    assert "seeds belong to the rates of zoneout" in message(lambda schedule: schedule.update(rates=()))
    assert "rates of zoneout must be in [0, 1], got 1.5" in message(lambda schedule: schedule.update(rates=(0.5, 1.5)))
    assert "and two more with zoneout, got 3" in message(lambda schedule: schedule.update(rates=(0.5, 0.5, 0.5)))


@pairs(cell=ALL_CELLS.values(), backend=BACKENDS, training=[True, False], asked=ASKED)
def test_layers_against_the_formulas(cell, backend, asked, training):
    module = layer(cell, 3, 6, 2, 2, zoneout=RATES).double().train(training)
    draws = {"draws": lambda: {"seeds": torch.randint(2**63 - 1, (4, 4))}} if training else {}
    check_with_formulas(module, backend, **draws, **asked)


heads_or_none = pytest.mark.parametrize(
    "cell, heads", [(cell, 1) for cell in ALL_CELLS.values()] + [(cell, 2) for cell in HEADED], ids=name_of
)


@heads_or_none
@backends
def test_rows_chunks_and_threads_draw_the_same(cell, heads, backend):
    module, x = layer(cell, 3, 40, 2, 2, zoneout=0.4, num_heads=heads), torch.randn(6, 8, 3)
    lengths = torch.tensor([2, 6, 1, 3, 6, 4, 5, 2])
    with fastrnn.backend(backend):
        expected, last = seeded(module, x, lengths=lengths)
        packed, final = seeded(module, pack_padded_sequence(x, lengths, enforce_sorted=False))
        torch.testing.assert_close((pad_packed_sequence(packed)[0], final), (expected, last))
        chunked = seeded(module, x, lengths=lengths, checkpoint_chunks=3)[0]
        torch.testing.assert_close(chunked, expected)
        whole = seeded(module, x)[0]
        with using(threads=2):
            torch.testing.assert_close(seeded(module, x)[0], whole)
        assert torch.equal(seeded(module, x)[0], whole) and not torch.equal(seeded(module, x, seed=6)[0], whole)


@heads_or_none
@backends
def test_units_keep_their_very_values_at_the_rates(cell, heads, backend):
    T, B, H = 30, 20, 64
    module = layer(cell, 3, H, 1, 2, zoneout=RATES, num_heads=heads)
    hx = states_of(cell, 2, B, H)
    x = torch.randn(T, B, 3)
    with fastrnn.backend(backend), torch.no_grad():
        _, _, (steps,) = seeded(module, x, given(hx), all_states=True)
    for k, values in enumerate(steps if cell.states > 1 else [steps]):
        forward, backward = values.unflatten(2, (2, H)).unbind(2)
        same = [forward[1:] == forward[:-1], backward[:-1] == backward[1:]]
        rate = RATES[k > 0]
        for kept in same:
            if cell.nonlinearity == "relu" or cell.mode == "IND_RNN":  # zeros are the same without being kept
                assert kept.double().mean() > rate - 0.02
                continue
            assert abs(kept.double().mean() - rate) < 4 * (rate * (1 - rate) / kept.numel()) ** 0.5 + 1e-3
            for dim in range(3):  # steps, rows, units: none is like its neighbour
                a, b = kept.narrow(dim, 0, kept.size(dim) // 2 * 2).unflatten(dim, (-1, 2)).unbind(dim + 1)
                assert abs((a & b).double().mean() - rate**2) < 0.02
            first, second = kept.chunk(2, dim=2)  # heads, where there are two
            assert abs((first & second).double().mean() - rate**2) < 0.02
        if cell.nonlinearity != "relu" and cell.mode != "IND_RNN":
            assert abs((same[0] & same[1]).double().mean() - rate**2) < 0.02  # nor the directions


@each_cell
def test_the_ends_of_the_rates(cell):
    plain, x = layer(cell, 3, 6, 2), torch.randn(5, 4, 3)
    module = layer(cell, 3, 6, 2, zoneout=1)
    module.load_state_dict(plain.state_dict())
    hx = states_of(cell, 2, 4, 6)
    output, final = module(x, given(hx))
    torch.testing.assert_close(output, hx[0][1].expand(5, 4, 6))
    torch.testing.assert_close(final, given(hx))
    module = layer(cell, 3, 6, 2, zoneout=(0.0, 0.5))
    assert module.zoneout == (0.0, 0.5) and layer(cell, 3, 6, zoneout=0).zoneout == ()


def test_rates_that_are_none_are_refused():
    for rate in (-0.1, 1.1, True, "0.5", None, (0.1, 2), (0.1,), (0.1, 0.2, 0.3)):
        with pytest.raises(ValueError, match=r"LSTM: zoneout must be a number in \[0, 1\], or one for h and one for"):
            fastrnn.LSTM(3, 6, zoneout=rate)
    with pytest.raises(ValueError, match="LSTM: zoneout and proj_size exclude each other"):
        fastrnn.LSTM(3, 6, zoneout=0.1, proj_size=2)
    module, x = fastrnn.LSTM(3, 6, zoneout=0.1).eval(), torch.randn(5, 4, 3)
    with fastrnn.backend("aten"), pytest.raises(RuntimeError, match="recurrent_dropout, zoneout or heads"):
        module(x)
    assert fastrnn.explain(module, x).backend in ("cpu", "reference")
    assert fastrnn.revert_(module).skipped == {"": "torch.nn has no zoneout"}
