"""fastrnn: recurrent layers for PyTorch on custom C++/CUDA kernels; LSTM, GRU and RNN are drop-ins for ``torch.nn``.

Swap one line, ``nn.LSTM`` for ``fastrnn.LSTM``, or convert a whole model with :func:`convert`.
"""

from . import functional
from ._backends import graph  # noqa: F401  registers torch.ops.fastrnn
from ._backends.dispatch import Explanation, backend
from .cells import (
    CIFGLSTMCell,
    GRUCell,
    IndRNNCell,
    LSTMCell,
    PeepholeLSTMCell,
    RNNCell,
    SLSTMCell,
    Step,
    explain_cell,
)
from .compilation import compile
from .conversion import ConversionReport, convert, convert_, patch_torch, revert, revert_
from .layers import CIFGLSTM, SLSTM, IndRNN, PeepholeLSTM
from .modules import GRU, LSTM, RNN, Layer, explain_layer

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
    "GRUCell",
    "IndRNN",
    "IndRNNCell",
    "LSTMCell",
    "PeepholeLSTM",
    "PeepholeLSTMCell",
    "RNNCell",
    "SLSTMCell",
    "backend",
    "compile",
    "convert",
    "convert_",
    "explain",
    "functional",
    "patch_torch",
    "revert",
    "revert_",
]


def explain(module, input, hx=None, **asked) -> Explanation:
    """Says which backend ``module(input, hx, **asked)`` runs on, and why not on the others.

    Args:
        module: a fastrnn layer or cell.
        input, hx, asked: what the module would be called with; checked as the call would check them, and nothing is
            computed.

    Returns:
        An :class:`Explanation`: ``.backend``, ``.reasons`` (backend -> list of reasons against it); printing it shows
        both.

    Raises:
        TypeError: ``module`` is not a fastrnn module.
        RuntimeError: a backend is forced that cannot serve the call.
    """
    if isinstance(module, Layer):
        return explain_layer(module, input, hx, **asked)
    if isinstance(module, Step):
        return explain_cell(module, input, hx, **asked)
    raise TypeError(
        f"fastrnn.explain: expected a fastrnn layer or cell, got {type(module).__name__}; see fastrnn.convert"
    )
