"""Layers of cells that ``torch.nn`` does not have; constructed, called, saved and loaded as ``torch.nn.LSTM`` is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .modules import Device, Layer
from .registry import ALL_CELLS


class OwnLayer(Layer):
    """What these layers share: parameters by torch's pattern, for the cell that a class names by ``_mode``.

    ``_rows`` has the parameters that hold several of the cell's (``Cell.params``), one a row.
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
    ) -> None:
        # torch checks the arguments and keeps them; its parameters make way for the cell's.
        options = num_layers, bias, batch_first, dropout, bidirectional, proj_size
        super().__init__("LSTM", input_size, hidden_size, *options, device="meta", dtype=dtype)
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

    def _sizes(self, features: int, width: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one direction."""
        cell, units = ALL_CELLS[self._mode], self.hidden_size
        gates = cell.gates * units
        sizes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, features), "weight_hh": (gates, width)}
        if self.bias:
            sizes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
        if self.proj_size:
            sizes["weight_hr"] = (self.proj_size, units)
        return sizes | {name: (rows, units) for name, rows in self._rows.items()}

    def _weights(self) -> list[Tensor]:
        weights = super()._weights()
        if not self._rows:
            return weights
        split: list[Tensor] = []
        for name, weight in zip(self._flat_weights_names, weights):
            rows = self._rows.get(name[: name.rindex("_l")])
            if rows is None or not isinstance(weight, Tensor):
                split.append(weight)
            elif weight.shape != (rows, self.hidden_size):
                got, expected = tuple(weight.shape), (rows, self.hidden_size)
                raise RuntimeError(f"fastrnn.{type(self).__name__}: {name} must have shape {expected}, got {got}")
            else:
                split += weight.unbind()
        return split

    def flatten_parameters(self) -> None:
        """Does nothing: it is for cuDNN, which has no such layer."""


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


class SLSTM(OwnLayer):
    r"""sLSTM with a sigmoid forget gate: exponential input gates, a normaliser n, a stabiliser m.

    (z~, i~, f~, o~) = W x_t + b + U h + b', log f = log sigmoid(f~), m' = max(log f + m, i~),
    c' = e^(log f + m - m') c + e^(i~ - m') tanh(z~), n' = e^(log f + m - m') n + e^(i~ - m'),
    h' = sigmoid(o~) c' / n'; with ``proj_size`` P > 0 then h' = W_hr h'.

    Arguments, inputs, dtypes and errors are those of :class:`fastrnn.LSTM`, and so are the names, shapes and initial
    values of the parameters; gates are stacked z, i, f, o. The states are ``(h, c, n, m)``, each (layers * D, B, H) but
    h, which has P features where projected. Without ``hx``, and after a reset, h, c and n are 0 and m is -60000, in
    place of minus infinity: the first step then forgets them whatever its gates are.

    Source: Beck et al. 2024, "xLSTM", equations 8 to 17.
    """

    _mode = "SLSTM"
