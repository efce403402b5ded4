"""Where NaN and infinities go in a layer call: for the emulator and for the CPU alike."""

import itertools
import math

import torch

from . import oracle
from .cases import Layer, flat


def kinds(t):
    """2 for NaN, 1 and -1 for the infinities, 0 for what is finite."""
    return torch.where(t.isnan(), 2, torch.where(t.isinf(), t.sign(), 0)).int()


def check_special_values(cuda, cell, precision, make=Layer):
    """NaN and infinities stand where the formulas have them, and nowhere else.

    Of a GRU's infinite gradients only that they are not finite: autograd takes the difference of two.
    """
    unit, rows = 4, slice(4, None, 9)  # of all gates
    places = [("x", 0, (1, 1, 0)), ("grad_output", 0, (0, 1)), ("grad_hn", 0, (0, 1)), ("hx", 0, (0, 1, unit))]
    places += [("hx", -1, (0, 1, unit)), ("grad_hn", -1, (0, 1, unit)), ("weights", 3, rows)]
    if oracle.MODES[cell] not in oracle.WITHOUT_W_HH:
        places += [("weights", 1, (rows, 2))]
    places += [("weights", 2, 9 * gate + unit) for gate in range(oracle.GATES[cell])]
    for (name, number, index), value in itertools.product(places, (math.nan, math.inf, -math.inf)):
        layer = make(cell, precision, (2, 3, 2, 9))
        of = getattr(layer, name)
        (of if isinstance(of, torch.Tensor) else of[number])[index] = value
        for place, (g, w) in enumerate(zip(layer.results(cuda), flat(layer.expected()), strict=True)):
            g, w = kinds(g), kinds(w)
            if "GRU" in oracle.MODES[cell] and name.startswith("grad"):
                g, w = g != 0, w != 0
            assert torch.equal(g, w), f"{value} at {name}[{number}][{index}], result {place}: {g}, expected {w}"
