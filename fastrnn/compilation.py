"""``torch.compile``, ``torch.export`` and ``torch.onnx`` for models that hold fastrnn's layers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.torch_version import TorchVersion

from ._backends import loop, onnx


def compile(model: Callable, **options: Any) -> Callable:
    """``torch.compile(model, **options)``, for a model with fastrnn's layers inside.

    torch refuses to trace instances of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``, including fastrnn's, unless
    ``torch._dynamo.config.allow_rnn`` is on. This turns it on during each call of the result and restores it
    afterwards; torch's own layers inside ``model`` are then traced too.

    A layer becomes one operator of the graph, forward and backward. With ``dynamic=True``, or once a second size was
    seen, one graph serves all sequence lengths and batch sizes.

    Args:
        model: a module or a function.
        options: as for ``torch.compile``: ``fullgraph``, ``dynamic``, ``backend``, ``mode``, ``options``, ``disable``.

    Returns:
        What ``torch.compile`` returns. Cells need no switch: torch compiles them as they are.

    Raises:
        TypeError: ``model`` cannot be called.
    """
    if not callable(model):
        raise TypeError(f"fastrnn.compile: expected a module or a function, got {type(model).__name__}")
    compiled = torch.compile(model, **options)
    if compiled is model:  # torch leaves it as it is: disable=True, TORCHDYNAMO_DISABLE
        return model
    if not isinstance(compiled, nn.Module):
        return _allowing_rnn(compiled)
    module: Any = compiled
    module.dynamo_ctx = functools.partial(_compile_allowing_rnn, module.dynamo_ctx)
    module._initialize()  # as torch does again in copies, which keep dynamo_ctx but not what it made
    return compiled


def decompositions() -> dict[Any, Callable]:
    """For ``program.run_decompositions(fastrnn.decompositions())``: torch's table for core ATen operations, and what
    fastrnn's layers become in them, for runtimes that do not know ``torch.ops.fastrnn``.

    A layer becomes a loop, ``torch.ops.higher_order.scan``, for each direction, whose length stays open. It has every
    cell and option; a step's arithmetic is the reference's. Before torch 2.13 gradients through scan can be wrong; a
    UserWarning says so.

    Raises:
        RuntimeError: within ``run_decompositions``: a layer was called with a PackedSequence (use ``lengths=``), or is
            frozen (``fastrnn.unfreeze`` the model first).
    """
    if TorchVersion(torch.__version__) < "2.13":
        warnings.warn(
            f"fastrnn.decompositions: the scan of torch {torch.__version__} computes wrong gradients where its initial "
            "state needs none: use the program for inference alone, or torch 2.13",
            stacklevel=2,
        )
    table = torch.export.default_decompositions()
    table.update({_operator(name): function for name, function in loop.DECOMPOSITIONS.items()})
    return table


def onnx_translations() -> dict[Any, Callable]:
    """For ``torch.onnx.export(..., dynamo=True, custom_translation_table=fastrnn.onnx_translations())``.

    A layer with its directions becomes one LSTM, GRU or RNN of ONNX, with heads one for each head and direction. Length
    and batch may stay open.

    LSTM, GRU, RNN, PeepholeLSTM and CIFGLSTM, with ``lengths=``; gates are put into ONNX's order. ``reset_mask``,
    ``all_states`` of cells with several states, ``proj_size``, ``zoneout``, ``recurrent_dropout`` in training and other
    cells have no operator there: such a program goes through :func:`decompositions` first.

    Raises:
        RuntimeError: within the exporter, which shows it as the cause of its own error: a call that ONNX's operators do
            not have, or a frozen layer (``fastrnn.unfreeze`` the model first).
    """
    return {_operator(name): function for name, function in onnx.TRANSLATIONS.items()}


def _operator(name: str) -> Any:
    return getattr(torch.ops.fastrnn, name).default


def _compile_allowing_rnn(context: Callable, function: Callable) -> Callable:
    return _allowing_rnn(context(function))


def _allowing_rnn(function: Callable) -> Callable:
    config = torch._dynamo.config

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        if torch.compiler.is_dynamo_compiling():  # inlined into another graph, whose switch decides
            return function(*args, **kwargs)
        before, config.allow_rnn = config.allow_rnn, True
        try:
            return function(*args, **kwargs)
        finally:
            config.allow_rnn = before

    return call
