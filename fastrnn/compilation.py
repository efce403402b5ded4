"""``torch.compile`` for models that hold fastrnn's layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compile(model: Callable, **options: Any) -> Callable:
    """``torch.compile(model, **options)``, for a model with fastrnn's layers inside.

    torch refuses to trace instances of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``, fastrnn's among them, unless its switch
    ``torch._dynamo.config.allow_rnn`` is on. This turns it on while the result is called, for every later compilation
    too, and leaves it alone otherwise; torch's own layers inside ``model`` are then traced as well.

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
    if not isinstance(compiled, nn.Module):
        return _allowing_rnn(compiled)
    compiled.forward = _allowing_rnn(compiled.forward)
    return compiled


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
