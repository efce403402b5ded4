"""The options of layers that torch.nn does not have: what is dropped besides ``dropout``, and heads."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from ._call.extras import Drops
from ._spec import MOST_DIRECTIONS, W_HH
from .registry import ALL_CELLS, CELLS, Cell


class Options(nn.RNNBase):
    """A base of fastrnn's layers."""

    recurrent_dropout = weight_dropout = 0.0
    zoneout: tuple[float, ...] = ()
    num_heads = 1

    def _set_options(self, num_heads: int, zoneout: float | tuple[float, float], **rates: float) -> None:
        """Keeps the options of a constructor that torch.nn does not have.

        Raises:
            ValueError: a rate is no number in [0, 1]; ``num_heads`` does not divide the hidden size.
        """
        pair = zoneout if isinstance(zoneout, (tuple, list)) and len(zoneout) == 2 else (zoneout, zoneout)
        for name, rate in [*rates.items(), ("zoneout", pair[0]), ("zoneout", pair[1])]:
            if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 <= rate <= 1:
                more = ", or one for h and one for the other states" * (name == "zoneout")
                raise ValueError(f"{type(self).__name__}: {name} must be a number in [0, 1]{more}, got {rate!r}")
            if rate and name != "zoneout":
                setattr(self, name, float(rate))
        if any(pair):
            if self.proj_size:
                raise ValueError(f"{type(self).__name__}: zoneout and proj_size exclude each other")
            self.zoneout = (float(pair[0]), float(pair[1]))
        if num_heads != 1 or num_heads is True:
            self._divide(num_heads)

    def _divide(self, heads: int) -> None:
        """Puts (heads, G * H / heads, H / heads) in the place of each recurrent weight."""
        name, hidden, cell = type(self).__name__, self.hidden_size, ALL_CELLS[self.mode]
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or hidden % heads:
            raise ValueError(f"{name}: num_heads must be a divisor of hidden_size = {hidden}, got {heads!r}")
        most = MOST_DIRECTIONS // (2 if self.bidirectional else 1)
        if heads > most:
            both = " of both directions" * self.bidirectional
            raise ValueError(f"{name}: num_heads must be at most {most}{both}, got {heads}")
        if not cell.recurrent:
            raise ValueError(f"{name}: num_heads must be 1, got {heads}: each unit is a head of its own")
        if cell.statistics:
            raise ValueError(f"{name}: num_heads must be 1, got {heads}: all units of a row are normalised together")
        if self.proj_size:
            raise ValueError(f"{name}: num_heads and proj_size exclude each other")
        self.num_heads, units = heads, hidden // heads
        for key, weight in self.named_parameters():
            if re.fullmatch(r"weight_hh_l\d+(_reverse)?", key):  # a cell may have a weight_hh_scale, too
                setattr(self, key, nn.Parameter(weight.new_empty(heads, cell.gates * units, units)))
        self._init_flat_weights()
        self.reset_parameters()

    @property
    def own_options(self) -> dict[str, Any]:
        """The options that torch.nn does not have, those that are set."""
        names = "recurrent_dropout", "weight_dropout", "zoneout", "num_heads"
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Options, name)}

    def extra_repr(self) -> str:
        return super().extra_repr() + "".join(f", {name}={value}" for name, value in self.own_options.items())

    def flatten_parameters(self) -> None:
        """As torch's, which prepares the weights for cuDNN; nothing where cuDNN is not asked."""
        if self.num_heads == 1 and self.mode in CELLS:
            super().flatten_parameters()

    def _drops(self, h: Tensor, input: Tensor | PackedSequence) -> Drops:
        """What a call with the initial ``h`` (layers * D * heads, B, R) drops of its states, for all layers.

        Drawn in the order of the caller's rows: packed or padded, a seed gives the same.
        """
        mask = seeds = None
        if self.training and self.recurrent_dropout:
            mask = F.dropout(torch.ones(h.shape, dtype=h.dtype, device=h.device), self.recurrent_dropout)
        if self.training and self.zoneout:
            seeds = torch.randint(2**63 - 1, h.shape[:2], device=h.device)
        if isinstance(input, PackedSequence) and input.sorted_indices is not None:
            mask, seeds = (t if t is None else t.index_select(1, input.sorted_indices) for t in (mask, seeds))
        return Drops(mask, seeds, self.zoneout)

    def _dropped(self, cell: Cell, weights: list[Tensor]) -> list[Tensor]:
        """``weights`` with dropout on the recurrent ones."""
        each = len(weights) // (self.num_layers * (2 if self.bidirectional else 1))
        place = W_HH if cell.recurrent else each - len(cell.params) + cell.params.index("weight_hh")
        return [F.dropout(w, self.weight_dropout) if i % each == place else w for i, w in enumerate(weights)]
