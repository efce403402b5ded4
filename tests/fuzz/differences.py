"""Where ours differs from torch.nn and says so: the sentences are README's.

Where only ours has a result, that is compared with the truth.
"""

from __future__ import annotations

from torch.utils.checkpoint import CheckpointError

from .kinds import OBJECTS, SIZES, STRANGE, TYPES
from .transforms import DERIVED

STATES = ("h", "c", "states")
LOW = ("bfloat16", "float16")
MISFITS = frozenset({*SIZES, *TYPES, "meta"})
FAULTS = (
    "INTERNAL ASSERT FAILED",
    "already associated to a python object of type",
    "Backward1 returned an invalid gradient",
    "ZeroTensors are immutable",
)
WRONG_HX = frozenset({"too many", "stacked", "nested", "same twice"})


def _has(case, kind: str) -> bool:
    return any(kind == other for _, other in case.odd)


def _refused(case, theirs, ours) -> bool:
    checked = () if case.form in ("packed", "unsorted") else ("input",)  # by torch, too
    misfits = any(
        kind == "meta" or (kind in MISFITS and slot not in checked) or (kind in OBJECTS and slot == "sizes")
        for slot, kind in case.odd
    )
    is_clear = isinstance(ours.error, (RuntimeError, ValueError, TypeError))
    return theirs.error is None and is_clear and (misfits or case.hx in WRONG_HX)


def _only_ours(applies):
    return lambda case, theirs, ours: theirs.error is not None and ours.error is None and applies(case, theirs)


DOCUMENTED = (
    ("States and weights of the wrong number, size or type are refused; torch accepts some silently.", _refused),
    (
        "Gradients of gradients work on every backend, and so do torch.func transforms and forward-mode AD.",
        _only_ours(lambda case, theirs: case.context in DERIVED and case.context != "backward"),
    ),
    (
        "float16 LSTMs run under CPU autocast, and float16 modules of every class under one of bfloat16.",
        _only_ours(
            lambda case, theirs: (
                case.context.startswith("autocast")
                and (case.cell == "LSTM" or (case.dtype == "float16" and "bfloat16" in case.context))
            )
        ),
    ),
    (
        "Tensors made in inference mode may enter a call that trains.",
        _only_ours(lambda case, theirs: "Inference tensors cannot be saved" in str(theirs.error)),
    ),
    (
        "16-bit types accumulate, and keep c, in float32.",  # in which torch multiplies sparse weights, too
        _only_ours(lambda case, theirs: case.dtype in LOW and isinstance(theirs.error, NotImplementedError)),
    ),
    (
        "Sparse and oneDNN initial states work on the reference and with lengths or resets; torch takes some of them.",
        _only_ours(
            lambda case, theirs: any(kind in ("coo", "csr", "mkldnn") for slot, kind in case.odd if slot in STATES)
        ),
    ),
    (
        "Under a TorchDispatchMode results of tensor subclasses may be plain tensors.",
        lambda case, theirs, ours: (
            theirs.error is ours.error is None
            and case.context.startswith("dispatch-mode")
            and any(kind.endswith("-subclass") for _, kind in case.odd)
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
            and any(kind in STRANGE for _, kind in case.odd)
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
