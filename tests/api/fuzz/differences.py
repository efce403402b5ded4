"""Where ours differs from torch.nn and says so: the sentences are README's.

Where only ours has a result, that is compared with the truth.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from .kinds import LAYOUTS, STRANGE
from .sides import PACKED, Torchs
from .transforms import DERIVED

STATES = ("h", "c", "states")
LOW = ("bfloat16", "float16")
CAST = (torch.float32, torch.bfloat16, torch.float16)
"""What autocast casts, so that it may be mixed."""
FAULTS = (
    "INTERNAL ASSERT FAILED",
    "already associated to a python object of type",
    "Backward1 returned an invalid gradient",
    "ZeroTensors are immutable",
    "For nested tensors, unsqueezing dimension 0",
    '"add_stub" not implemented for \'Float8',
    "Multiple dispatch failed",
    "expected all tensors_saved_with_vc_check to be Tensors",
)
WRONG_HX = ("too many", "stacked", "nested")


def _has(case, kind: str) -> bool:
    return any(kind == other for _, other in case.odd)


def _is_all(case) -> bool:
    """Whether no argument is ordinary."""
    return any(slot == "all" for slot, _ in case.odd)


def _fits(case) -> bool:
    """Whether what torch may not have looked at has the shape, type and device that its place asks for."""
    packs = case.form in PACKED or case.extras != "none"
    if case.hx in WRONG_HX or (case.P and case.hx == "same twice"):
        return False
    if any(slot == "sizes" and kind not in LAYOUTS for slot, kind in case.odd):
        return False
    right, given = (Torchs(c).arguments for c in (replace(case, odd=()), case))
    x = given["input"]
    mixes = (x.dtype, *CAST) if case.context.startswith("autocast") and x.dtype in CAST else (x.dtype,)
    others = [(n, t) for n, t in given.items() if isinstance(t, Tensor) and not t.is_nested and (packs or n != "input")]
    return all(t.shape == right[n].shape and t.device == x.device and t.dtype in mixes for n, t in others)


def _refused(case, theirs, ours) -> bool:
    is_clear = isinstance(ours.error, (RuntimeError, ValueError, TypeError))
    return theirs.error is None and is_clear and not _fits(case)


def _only_ours(applies):
    return lambda case, theirs, ours: theirs.error is not None and ours.error is None and applies(case, theirs)


DOCUMENTED = (
    ("States and weights of the wrong number, size or type are refused; torch accepts some silently.", _refused),
    (
        "Gradients of gradients work on every backend, and so do torch.func transforms and forward-mode AD.",
        _only_ours(lambda case, theirs: case.context in DERIVED and case.context != "backward"),
    ),
    (
        "float16 LSTMs run under CPU autocast, and 16-bit modules of every class under one of the other 16-bit type.",
        _only_ours(
            lambda case, theirs: (
                case.context.startswith("autocast")
                and (case.cell == "LSTM" or (case.dtype in LOW and case.dtype not in case.context.split("-")))
            )
        ),
    ),
    (
        "Tensors made in inference mode may enter a call that trains.",
        lambda case, theirs, ours: (
            ours.error is None
            and (
                "Inference tensors cannot be saved" in str(theirs.error)
                # Parameters made of them: torch trains none whose gradient it did not record.
                or (theirs.error is None and case.route == "data" and _has(case, "inference") and not _is_all(case))
            )
        ),
    ),
    (
        "16-bit types accumulate, and keep c, in float32.",  # in which torch multiplies sparse weights, too
        _only_ours(
            lambda case, theirs: (
                case.dtype in LOW
                and (isinstance(theirs.error, NotImplementedError) or "addmm_sparse_dense" in str(theirs.error))
            )
        ),
    ),
    (
        "Sparse and oneDNN initial states, inputs of cells and incoming gradients work on the reference and with "
        "lengths or resets; torch takes some of them.",
        _only_ours(
            lambda case, theirs: any(
                kind in ("coo", "csr", "mkldnn")
                for slot, kind in case.odd
                if slot in STATES or (case.step and slot == "input") or slot.endswith(("grad", "grads"))
            )
        ),
    ),
    (
        "Under a TorchDispatchMode results of tensor subclasses may be plain tensors. In graphs of torch.compile they "
        "may be of the subclass where torch's are plain.",
        lambda case, theirs, ours: (
            theirs.error is ours.error is None
            and case.context.startswith(("dispatch-mode", "compile"))
            and any(kind.endswith("-subclass") for _, kind in case.odd)
        ),
    ),
    (
        "Under a TorchDispatchMode nested tensors are refused.",
        lambda case, theirs, ours: (
            case.context.startswith("dispatch-mode") and _has(case, "nested") and isinstance(ours.error, RuntimeError)
        ),
    ),
    (
        "(of fake tensors nothing is computed, and their layout is not looked at)",
        _only_ours(lambda case, theirs: case.context == "fake" and (_has(case, "coo") or _has(case, "csr"))),
    ),
    (
        "Graphs of torch.compile and make_fx take ordinary strided tensors and subclasses, and refuse others.",
        lambda case, theirs, ours: (
            theirs.error is None
            and case.context.startswith(("compile", "make-fx"))
            and isinstance(ours.error, RuntimeError)
            and (
                any(kind in STRANGE for _, kind in case.odd)
                or "encountered a tensor subclass" in str(ours.error)
                or (_has(case, "int8") and type(ours.error).__name__ == "InternalTorchDynamoError")
            )
        ),
    ),
    (
        "(a forced backend says what it cannot serve)",
        lambda case, theirs, ours: (
            case.backend == "cpu"
            and ("cannot serve this call" in str(ours.error) or _has(case, "nested"))
            and (
                case.dtype.startswith("complex")
                or case.context in DERIVED
                or any(kind not in LAYOUTS for _, kind in case.odd)
            )
        ),
    ),
    (
        "(of tensors that were made in inference mode autograd saves none, and a mode may wrap none)",
        lambda case, theirs, ours: (
            (
                case.context.startswith("dispatch-mode")
                and "Inference tensors cannot be saved" in str(ours.error)
                and _has(case, "inference")
            )
            or (
                case.context == "inference_mode"
                and "Cannot set version_counter for inference tensor" in str(ours.error)
                and (_has(case, "logged") or _has(case, "stored"))
            )
        ),
    ),
    (
        "make_fx does not trace packed sequences; of torch's it traces LSTMs with given states.",
        lambda case, theirs, ours: (
            theirs.error is None
            and case.context == "make-fx"
            and case.form in ("packed", "unsorted")
            and "value out of a tracing tensor" in str(ours.error)
        ),
    ),
    (
        "A checkpoint may fail that holds a call on a tensor subclass with `__torch_function__`.",
        lambda case, theirs, ours: (
            case.context == "checkpoint" and _has(case, "function-subclass") and type(ours.error) is CheckpointError
        ),
    ),
    ("lengths without packing, 0 allowed; resets", _only_ours(lambda case, theirs: case.extras != "none")),
    ("(a fault of torch's own)", _only_ours(lambda case, theirs: any(text in str(theirs.error) for text in FAULTS))),
)


def sentence(case, theirs, ours) -> str | None:
    """What README says of such a pair of outcomes, or None."""
    return next((said for said, covers in DOCUMENTED if covers(case, theirs, ours)), None)
