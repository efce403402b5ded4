"""fastrnn: recurrent layers for PyTorch on custom C++/CUDA kernels; LSTM, GRU and RNN are drop-ins for ``torch.nn``.

Swap one line, ``nn.LSTM`` for ``fastrnn.LSTM``, or convert a whole model with :func:`convert`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import functional, modules
from ._backends import graph  # noqa: F401  registers torch.ops.fastrnn
from ._backends.dispatch import Explanation, backend
from ._call.extras import Asked
from .cells import (
    CIFGLSTMCell,
    GRUCell,
    IndRNNCell,
    LayerNormGRUCell,
    LayerNormLSTMCell,
    LSTMCell,
    PeepholeLSTMCell,
    RNNCell,
    SLSTMCell,
    Step,
    explain_cell,
)
from .compilation import compile, decompositions, onnx_translations
from .conversion import ConversionReport, convert, convert_, patch_torch, revert, revert_
from .inference import FrozenLayer, Stream, freeze, unfreeze
from .layers import CIFGLSTM, SLSTM, IndRNN, LayerNormGRU, LayerNormLSTM, PeepholeLSTM
from .modules import GRU, LSTM, RNN, explain_layer
from .own_cells import Layer, load_cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from typing_extensions import Unpack

    from .modules import Rows

__version__ = "0.1.0"

__all__ = [
    "CIFGLSTM",
    "GRU",
    "LSTM",
    "RNN",
    "SLSTM",
    "CIFGLSTMCell",
    "ConversionReport",
    "Explanation",
    "FrozenLayer",
    "GRUCell",
    "IndRNN",
    "IndRNNCell",
    "LSTMCell",
    "Layer",
    "LayerNormGRU",
    "LayerNormGRUCell",
    "LayerNormLSTM",
    "LayerNormLSTMCell",
    "PeepholeLSTM",
    "PeepholeLSTMCell",
    "RNNCell",
    "SLSTMCell",
    "Stream",
    "backend",
    "compile",
    "convert",
    "convert_",
    "decompositions",
    "explain",
    "freeze",
    "functional",
    "load_cell",
    "onnx_translations",
    "patch_torch",
    "revert",
    "revert_",
    "unfreeze",
]


def explain(
    module: nn.Module,
    input: Rows,
    hx: Tensor | Sequence[Tensor] | None = None,
    **asked: Unpack[Asked],
) -> Explanation:
    """Says which backend ``module(input, hx, **asked)`` runs on, and why not on the others.

    Args:
        module: a fastrnn layer or cell.
        input, hx, asked: what the module would be called with; checked as the call would check them, and nothing is
            computed.

    Returns:
        An :class:`Explanation`: ``.backend``, ``.reasons`` (backend -> list of reasons against it); printing it shows
        both.

    Raises:
        TypeError: ``module`` is not a fastrnn layer or cell (a frozen layer is neither), or has no such argument.
        RuntimeError: a backend is forced that cannot serve the call.
    """
    if not isinstance(module, (modules.Layer, Step)):
        raise TypeError(
            f"fastrnn.explain: expected a fastrnn layer or cell, got {type(module).__name__}; see fastrnn.convert"
        )
    for name in asked:
        if isinstance(module, Step) or name not in Asked.__annotations__:
            raise TypeError(f"fastrnn.explain: a call of {type(module).__name__} has no argument {name!r}")
    if isinstance(module, Step):
        return explain_cell(module, input, hx)  # type: ignore[arg-type]  # it refuses what a step has not
    return explain_layer(module, input, hx, **asked)
