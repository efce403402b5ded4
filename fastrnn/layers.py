"""Layers of cells that ``torch.nn`` does not have; constructed, called, saved and loaded as ``torch.nn.LSTM`` is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .modules import Device, Layer
from .registry import ALL_CELLS, Cell


def own_sizes(cell: Cell, rows: dict[str, int], units: int) -> dict[str, tuple[int, ...]]:
    """The parameters of a direction that are the cell's own: those of ``rows``, which hold several, one a row; else one
    for each of the cell's."""
    return {name: (count, units) for name, count in rows.items()} or dict(zip(cell.params, cell.param_sizes(units)))


def split_rows(owner: str, rows: dict[str, int], named: Iterable[tuple[str, Tensor]], units: int) -> list[Tensor]:
    """The weights of ``named``, those of ``rows`` one row after another.

    Raises:
        RuntimeError: one of them is not (rows, units).
    """
    split: list[Tensor] = []
    for name, weight in named:
        count = rows.get(name.partition("_l")[0])
        if count is None or not isinstance(weight, Tensor):
            split.append(weight)
        elif weight.shape != (count, units):
            got = tuple(weight.shape)
            raise RuntimeError(f"fastrnn.{owner}: {name} must have shape {(count, units)}, got {got}")
        else:
            split += weight.unbind()
    return split


class OwnLayer(Layer):
    """What these layers share: parameters by torch's pattern, for the cell that a class names by ``_mode``.

    ``_rows`` has the parameters that hold several of the cell's (``Cell.params``), one a row; else each is a parameter.
    """

    _mode = ""
    _rows: dict[str, int] = {}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        num_heads: int = 1,
    ) -> None:
        # torch checks the arguments and keeps them; its parameters make way for the cell's.
        options = num_layers, bias, batch_first, dropout, bidirectional, proj_size
        super().__init__("LSTM", input_size, hidden_size, *options, device="meta", dtype=dtype)
        if proj_size and not ALL_CELLS[self._mode].projects:
            raise ValueError(f"{type(self).__name__}: proj_size must be 0, got {proj_size}: each unit reads its own h")
        self.mode = self._mode
        self._parameters.clear()
        self._all_weights.clear()
        width, suffixes = proj_size or hidden_size, ("", "_reverse")[: 2 if bidirectional else 1]
        for layer in range(num_layers):
            features = len(suffixes) * width if layer else input_size
            for suffix in suffixes:
                sizes = {f"{name}_l{layer}{suffix}": size for name, size in self._sizes(features, width).items()}
                for name, size in sizes.items():
                    self.register_parameter(name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)))
                self._all_weights.append(list(sizes))
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()
        self.reset_parameters()
        self._set_options(num_heads, zoneout, recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout)

    def _sizes(self, features: int, width: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one direction."""
        cell, units = ALL_CELLS[self._mode], self.hidden_size
        gates = cell.gates * units
        sizes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, features)}
        if cell.recurrent:
            sizes["weight_hh"] = (gates, width)
        if self.bias:
            sizes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
        if self.proj_size:
            sizes["weight_hr"] = (self.proj_size, units)
        return sizes | own_sizes(cell, self._rows, units)

    def _weights(self) -> list[Tensor]:
        weights = super()._weights()
        if not self._rows:
            return weights
        named = zip(self._flat_weights_names, weights)
        return split_rows(type(self).__name__, self._rows, named, self.hidden_size)

    def reset_parameters(self) -> None:
        """Fills the parameters with initial values: as ``torch.nn``'s are, or as the class says."""
        super().reset_parameters()
        self._reset_own(dict(self.named_parameters()))

    @staticmethod
    def _reset_own(weights: dict[str, Tensor]) -> None:
        """Fills those whose initial values are others than of ``torch.nn``."""


class PeepholeLSTM(OwnLayer):
    r"""LSTM whose gates see the cell state.

    i, f = sigmoid(W x_t + b + U h + b' + p c), g = tanh(W x_t + b + U h + b'), c' = f c + i g,
    o = sigmoid(W x_t + b + U h + b' + p_o c'), h' = o tanh(c'); with ``proj_size`` P > 0 then h' = W_hr h'.

    Arguments, inputs, outputs, states ``(h, c)``, dtypes and errors are those of :class:`fastrnn.LSTM`, and so are the
    names, shapes and initial values of the parameters; besides, ``weight_peephole_l{k}`` (3, H), and the same with
    ``_reverse``, has p in the rows i, f, o. Initially it is uniform in +-1/sqrt(H) like all others.

    Source: Gers and Schmidhuber 2000; Gers, Schraudolph and Schmidhuber 2002.
    """

    _mode = "PEEPHOLE_LSTM"
    _rows = {"weight_peephole": 3}


class CIFGLSTM(OwnLayer):
    r"""LSTM with coupled input and forget gates: f = 1 - i.

    i, o = sigmoid(W x_t + b + U h + b'), g = tanh(W x_t + b + U h + b'), c' = (1 - i) c + i g, h' = o tanh(c'); with
    ``proj_size`` P > 0 then h' = W_hr h'.

    Arguments, inputs, outputs, states ``(h, c)``, dtypes and errors are those of :class:`fastrnn.LSTM`, and so are the
    names and initial values of the parameters; the three gates are stacked i, g, o.

    Source: Greff et al. 2017, "LSTM: A Search Space Odyssey", variant CIFG.
    """

    _mode = "CIFG_LSTM"


class IndRNN(OwnLayer):
    r"""Independently recurrent network: each unit reads only its own previous state.

    h' = relu(W x_t + b + b' + u h), with u (H,) in the place of a matrix.

    Arguments, inputs, outputs, dtypes and errors are those of :class:`fastrnn.RNN`, with one state ``h``, and so are
    the names, shapes and initial values of the parameters but for u: ``weight_hh_l{k}`` (H,), and the same with
    ``_reverse``, initially uniform in [0, 1), so that units remember for different times. There is no projection:
    ``proj_size`` is a ValueError. Values can grow without bound where abs(u) > 1: the paper clips u to 2^(1/T).

    Source: Li et al. 2018, "Independently Recurrent Neural Network (IndRNN)", equation 2.
    """

    _mode = "IND_RNN"

    @staticmethod
    def _reset_own(weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            if name.startswith("weight_hh"):
                nn.init.uniform_(weight)


class _LayerNorm(OwnLayer):
    @staticmethod
    def _reset_own(weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            if name.startswith("weight_norm"):
                nn.init.ones_(weight)
            elif name.startswith("bias_norm"):
                nn.init.zeros_(weight)


class LayerNormLSTM(_LayerNorm):
    r"""LSTM with layer normalisation.

    x = N(W x_t; a, b), h = N(U h; a', b'), i, f, o = sigmoid(x + h), g = tanh(x + h), c' = f c + i g,
    h' = o tanh(N(c'; a_c, b_c)); with ``proj_size`` P > 0 then h' = W_hr h'.
    N(v; a, b) = (v - mean(v)) / sqrt(var(v) + 1e-5) a + b, elementwise in a and b. Mean and variance are over all 4H
    values of W x_t, all 4H of U h, all H of c'; c stays as it is.

    Arguments, inputs, outputs, states ``(h, c)``, dtypes and errors are those of :class:`fastrnn.LSTM`, and so are the
    names, shapes and initial values of the parameters; b and b' are ``bias_ih`` and ``bias_hh``. Besides, with
    ``_l{k}`` and ``_reverse``: ``weight_norm_ih`` and ``weight_norm_hh`` (4H,) are a and a', ``weight_norm_c`` and
    ``bias_norm_c`` (H,) are a_c and b_c. Gains start at 1 and ``bias_norm_c`` at 0; without ``bias`` it is still there.

    Statistics are computed in the accumulate type, in two passes.

    Source: Ba, Kiros and Hinton 2016, "Layer Normalization", supplement.
    """

    _mode = "LAYER_NORM_LSTM"


class LayerNormGRU(_LayerNorm):
    r"""GRU with layer normalisation.

    x = N(W x_t; a, b), h = N(U h; a', b'), r, z = sigmoid(x + h), n = tanh(x_n + r h_n), h' = n + z (h_{t-1} - n), with
    N as in :class:`LayerNormLSTM`, over all 3H values of W x_t and of U h. The paper's GRU has the same equations, but
    statistics of their own for r and z together and for n.

    Arguments, inputs, outputs, dtypes and errors are those of :class:`fastrnn.GRU`, and so are the names, shapes and
    initial values of the parameters; b and b' are ``bias_ih`` and ``bias_hh``. Besides, with ``_l{k}`` and
    ``_reverse``: ``weight_norm_ih`` and ``weight_norm_hh`` (3H,) are a and a', initially 1. There is no projection.

    Source: Ba, Kiros and Hinton 2016, "Layer Normalization"; statistics as in haste's ``LayerNormGRU``.
    """

    _mode = "LAYER_NORM_GRU"


def slstm_mode(owner: str, forget_gate: str) -> str:
    """The mode of an sLSTM with this forget gate.

    Raises:
        ValueError: there is no such gate.
    """
    modes = {"sigmoid": "SLSTM", "exp": "SLSTM_EXP"}
    if not isinstance(forget_gate, str) or forget_gate not in modes:
        raise ValueError(f"{owner}: forget_gate must be 'sigmoid' or 'exp', got {forget_gate!r}")
    return modes[forget_gate]


class SLSTM(OwnLayer):
    r"""sLSTM: exponential input gates, a normaliser n, a stabiliser m.

    (z~, i~, f~, o~) = W x_t + b + U h + b', log f = log sigmoid(f~) with ``forget_gate="sigmoid"`` and f~ with
    ``"exp"``, m' = max(log f + m, i~),
    c' = e^(log f + m - m') c + e^(i~ - m') tanh(z~), n' = e^(log f + m - m') n + e^(i~ - m'),
    h' = sigmoid(o~) c' / n'; with ``proj_size`` P > 0 then h' = W_hr h'.

    Arguments, inputs, dtypes and errors are those of :class:`fastrnn.LSTM`, and so are the names, shapes and initial
    values of the parameters; gates are stacked z, i, f, o. The states are ``(h, c, n, m)``, each (layers * D, B, H) but
    h, which has P features where projected. Without ``hx``, and after a reset, h, c and n are 0 and m is -60000, in
    place of minus infinity: the first step then forgets them whatever its gates are.

    Raises:
        ValueError: ``forget_gate`` is another word.

    Source: Beck et al. 2024, "xLSTM", equations 8 to 17.
    """

    forget_gate = "sigmoid"

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0, device: Device = None,
        dtype: torch.dtype | None = None, *, recurrent_dropout: float = 0.0, weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0, num_heads: int = 1, forget_gate: str = "sigmoid",
    ) -> None:  # fmt: skip
        self.forget_gate, self._mode = forget_gate, slstm_mode("SLSTM", forget_gate)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype,
            recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout, zoneout=zoneout, num_heads=num_heads,
        )  # fmt: skip

    def extra_repr(self) -> str:
        chosen = f", forget_gate={self.forget_gate}" if self.forget_gate != "sigmoid" else ""
        return super().extra_repr() + chosen
