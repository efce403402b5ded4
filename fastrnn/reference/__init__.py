"""The recurrent layers in plain PyTorch: the fallback, the path of second derivatives, and the oracle of the tests.

One layer over one whole sequence, all its directions, per call. Letters: T time, B batch, I input, H hidden, G gates,
D directions, P projection, R = P or H the width of h, N = T * B (or the sum of ``batch_sizes``) rows.

* :func:`layer_forward` and :func:`layer_backward` are the fast pair: gates are computed in place in the buffer of the
  input product, only the recurrent product and a few pointwise operations stay inside the time loop, and backward
  first folds everything that does not depend on the recurrence into coefficients of the whole sequence.
* :func:`scan` computes the same function with ordinary differentiable operations, so that derivatives of any order and
  ``torch.func`` transforms go through it, what the fast pair does not do (lengths, resets, the sequence of c), and
  single steps, which are over before the fast pair has set up.

The maths is written here independently of ``csrc/cells``. 16-bit inputs are computed in float32 and rounded once, at
the end.
"""

from .layer import layer_backward, layer_forward, needs_scan
from .products import outruns_torch
from .rows import split_weights
from .scan import scan, scan_gradients
from .schedule import Schedule

__all__ = [
    "Schedule",
    "layer_backward",
    "layer_forward",
    "needs_scan",
    "outruns_torch",
    "scan",
    "scan_gradients",
    "split_weights",
]
