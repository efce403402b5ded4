"""The compiled layer operations, by backend. Every backend offers the same pair of functions:

    forward(cell, x, batch_sizes, hx, weights, save) -> (output, final_states, saved)
    backward(cell, grad_output, grad_hn, x, batch_sizes, hx, weights, output, saved, needs)
        -> (grad_x, grad_hx, grad_weights)

with the arguments and results of :func:`fastrnn.reference.layer_forward` and :func:`~fastrnn.reference.layer_backward`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import _ext, reference


class LayerOps(NamedTuple):
    """The forward and backward of one backend."""

    forward: Callable
    backward: Callable


def missing(backend: str) -> str | None:
    """Why this backend's operations cannot be called, or None if they can."""
    extension = _ext.load()
    if extension is None:
        return f"the compiled extension is missing: {_ext.reason}"
    if not hasattr(extension, backend):
        return f"the extension was built without {backend.upper()} kernels"
    return None


def layer_ops(backend: str) -> LayerOps:
    """The operations of ``backend``: ``reference``, ``cpu`` or ``cuda``."""
    if backend == "reference":
        return LayerOps(reference.layer_forward, reference.layer_backward)
    module = getattr(_ext.load(), backend)
    return LayerOps(module.layer_forward, module.layer_backward)
