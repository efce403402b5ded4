"""Which units keep their states in a step, with zoneout (Krueger et al. 2017): random numbers that depend on the row's
seed, the step, the direction and the unit alone, so that nothing is kept and every part of a sequence finds its own.

The numbers are those of Philox4x32-7 (Salmon et al. 2011), written here independently of ``csrc/common/philox.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .schedule import Schedule

_WORD = 0xFFFFFFFF
_BITS = 24  # of a word, which are compared with the rate


def _multiply(words: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of the products of 32-bit words; what overflows 64 bits with a sign is right bit
    by bit."""
    product = words * factor
    return (product >> 32) & _WORD, product & _WORD


def philox(counter: list[Tensor], key: Tensor) -> list[Tensor]:
    """Four random words for each counter of four words and each key of 64 bits, all in int64."""
    key0, key1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(7):
        high0, low0 = _multiply(counter[0], 0xD2511F53)
        high1, low1 = _multiply(counter[2], 0xCD9E8D57)
        counter = [high1 ^ counter[1] ^ key0, low1, high0 ^ counter[3] ^ key1, low0]
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    return counter


def zones(schedule: Schedule, steps: int, units: int, d: int, like: Tensor) -> list[Tensor | list[float]]:
    """In direction ``d``, for h and for the other states: how much of its value from before each unit keeps.

    By step, (B, H). That is 0 or 1, or the rate where ``schedule`` has no seeds.
    """
    if schedule.seeds is None:
        return [[rate] * steps for rate in schedule.rates]
    seeds = schedule.seeds[d]
    step = torch.arange(schedule.first_step, schedule.first_step + steps, device=seeds.device)[:, None, None] & _WORD
    zero = torch.zeros_like(step)
    unit = torch.arange(units, device=seeds.device) + zero
    words = philox([unit, step, zero, zero], seeds[None, :, None])
    thresholds = [int(rate * (1 << _BITS) + 0.5) for rate in schedule.rates]
    return [((word >> (32 - _BITS)) < threshold).to(like.dtype) for word, threshold in zip(words, thresholds)]
