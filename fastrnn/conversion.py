"""Swapping the recurrent modules of an existing model for fastrnn's, and back.

A module is converted in place, by changing its class: fastrnn's classes hold exactly what torch's hold, so parameters,
hooks, the training flag, references from elsewhere (tied weights, optimizers, a second parent) all stay as they are.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import cells, modules
from .layers import OwnLayer

_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNN: modules.RNN,
}
_CELLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTMCell: cells.LSTMCell,
    nn.GRUCell: cells.GRUCell,
    nn.RNNCell: cells.RNNCell,
}
TO_FASTRNN = {**_LAYERS, **_CELLS}
TO_TORCH = {ours: torchs for torchs, ours in TO_FASTRNN.items()}


@dataclass
class ConversionReport:
    """What :func:`convert_` and :func:`revert_` did: names of the modules changed, and of those left alone with the
    reason. The root module itself has the name ``""``."""

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"changed: {', '.join(name or '(root)' for name in self.converted) or 'nothing'}"]
        lines += [f"skipped {name or '(root)'}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def obstacle(module: nn.Module) -> str | None:
    """Why a recurrent module must be left as it is, or None."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted: TorchScript compiled torch's forward into it"
    if kind in TO_FASTRNN:
        return None
    if parametrize.is_parametrized(module):
        return "parametrized: torch has put a class of its own in the place of the module's"
    if any(base.__name__ == "FSDPModule" for base in kind.__mro__):
        return "wrapped by FSDP: convert before fully_shard"
    return f"a subclass ({kind.__module__}.{kind.__qualname__}) may depend on torch's forward"


def is_recurrent(module: nn.Module, cells_too: bool) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        name = getattr(module, "original_name", "")
        return name in {cls.__name__ for cls in (TO_FASTRNN if cells_too else _LAYERS)}
    return isinstance(module, tuple(TO_FASTRNN) if cells_too else tuple(_LAYERS))


def mixes_states(module: nn.Module) -> bool:
    """Whether the frozen kernels lack what ``module`` does with its states in evaluation."""
    return bool(getattr(module, "zoneout", ())) or getattr(module, "num_heads", 1) > 1


def why_not_frozen(module: nn.Module, weights: torch.dtype | None) -> str | None:
    """Why ``fastrnn.freeze`` must leave a recurrent layer as it is, or None."""
    kind = type(module)
    is_ours = kind in TO_TORCH or (isinstance(module, OwnLayer) and kind.__module__.startswith("fastrnn."))
    if not is_ours and (reason := obstacle(module)):
        return reason
    if module._forward_pre_hooks or module._forward_hooks:
        return "it has hooks, which may compute its weights: remove them first"
    names: list[str] = module._flat_weights_names  # type: ignore[assignment]
    for name in names:
        if module._parameters.get(name) is None:
            return f"{name} is no parameter: what is assigned in its place may change from call to call"
    kinds = {(p.dtype, p.device.type) for p in module.parameters()}
    if len(kinds) > 1 or next(iter(kinds))[1] != "cpu":
        return f"its parameters are {sorted(map(str, kinds))}: expected one dtype, on the CPU"
    dtype = next(iter(kinds))[0]
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{dtype}: frozen layers compute in float32"
    if weights == torch.int8 and (module.mode not in ("LSTM", "GRU") or module.proj_size or mixes_states(module)):
        return "int8 is for LSTM and GRU without a projection, zoneout or heads"
    return None


def convert_(
    model: nn.Module,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    cells: bool = True,
) -> ConversionReport:
    """Turns every ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` (and cell) in ``model`` into fastrnn's, in place.

    Args:
        model: any module; it may itself be a recurrent one.
        filter_fn: called with the qualified name and the module; False leaves the module as it is.
        cells: whether to convert ``LSTMCell``, ``GRUCell`` and ``RNNCell`` too.

    Returns:
        A :class:`ConversionReport`. Exact types only: subclasses, parametrized, FSDP-wrapped and scripted modules are
        left alone and listed with the reason. Modules that are fastrnn's already are passed over.

    The Parameter objects stay the same, so an optimizer built before goes on working. A UserWarning says when nothing
    in the model matched.

    Raises:
        TypeError: ``model`` is not a module.
    """
    require_module("convert_", model)
    return _convert(model, filter_fn, cells)


def _convert(model: nn.Module, filter_fn: Callable[[str, nn.Module], bool] | None, cells: bool) -> ConversionReport:
    report, ours = ConversionReport(), 0
    for name, module in model.named_modules():
        if type(module) in TO_TORCH:
            ours += 1
        if type(module) in TO_TORCH or not is_recurrent(module, cells):
            continue
        if filter_fn is not None and not filter_fn(name, module):
            report.skipped[name] = "refused by filter_fn"
            continue
        reason = obstacle(module)
        if reason is None:
            module.__class__ = TO_FASTRNN[type(module)]
            report.converted.append(name)
        else:
            report.skipped[name] = reason
    if not report.converted and not ours:
        warnings.warn(f"fastrnn.convert: nothing to convert in {type(model).__name__} ({report})", stacklevel=3)
    return report


def convert(
    model: nn.Module,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    cells: bool = True,
) -> nn.Module:
    """Returns a deep copy of ``model`` with its recurrent modules converted; see :func:`convert_`."""
    require_module("convert", model)
    model = copy.deepcopy(model)
    _convert(model, filter_fn, cells)
    return model


def revert_(model: nn.Module) -> ConversionReport:
    """Turns fastrnn's modules in ``model`` back into torch's, in place, wherever they came from.

    Returns a :class:`ConversionReport`; subclasses of fastrnn's modules are left alone and listed, and so are those of
    other cells than torch.nn's, and modules with ``recurrent_dropout``, ``weight_dropout``, ``zoneout`` or
    ``num_heads``, which torch.nn does not have.
    """
    require_module("revert_", model)
    report = ConversionReport()
    for name, module in model.named_modules():
        if isinstance(module, (OwnLayer, cells.OwnStep)):
            report.skipped[name] = f"torch.nn has no {type(module).__name__}"
        elif getattr(module, "own_options", None):
            report.skipped[name] = f"torch.nn has no {' or '.join(module.own_options)}"
        elif type(module) in TO_TORCH:
            module.__class__ = TO_TORCH[type(module)]
            report.converted.append(name)
        elif isinstance(module, tuple(TO_TORCH)):
            kind = type(module)
            report.skipped[name] = f"a subclass ({kind.__module__}.{kind.__qualname__}) of fastrnn's module"
    return report


def revert(model: nn.Module) -> nn.Module:
    """Returns a deep copy of ``model`` with fastrnn's modules turned back into torch's; see :func:`revert_`.

    For whatever knows only torch's own recurrent layers, such as eager-mode quantization.
    """
    require_module("revert", model)
    model = copy.deepcopy(model)
    revert_(model)
    return model


@contextlib.contextmanager
def patch_torch(cells: bool = True) -> Iterator[None]:
    """Within the ``with`` block ``torch.nn.LSTM``, ``GRU``, ``RNN`` (and the cells) name fastrnn's classes.

    For code that builds its model itself: models built inside the block hold fastrnn's modules and keep them.
    Process-wide while it lasts, so not for use around code that runs in other threads. Names imported before
    (``from torch.nn import LSTM``) are not reached; use :func:`convert_` on the finished model then.
    """
    namespaces = (nn, nn.modules, nn.modules.rnn)
    swapped = TO_FASTRNN if cells else _LAYERS
    before = [(space, cls.__name__, getattr(space, cls.__name__)) for space in namespaces for cls in swapped]
    try:
        for space in namespaces:
            for torchs, ours in swapped.items():
                setattr(space, torchs.__name__, ours)
        yield
    finally:
        for space, name, value in before:
            setattr(space, name, value)


def require_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastrnn.{function}: expected a torch.nn.Module, got {type(model).__name__}")
