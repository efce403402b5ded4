"""Contexts: what surrounds a call, and what is differentiated. Each takes a side and gives results by name."""

from __future__ import annotations

import contextlib
import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import BaseTorchDispatchMode
from torch.utils.checkpoint import checkpoint

from .sides import Side, base, kind_of

Results = dict[str, Any]
CONTEXTS: dict[str, Callable[[Side], Results]] = {}
SLOW = ("compile", "compile-aot", "compile-thread", "make-fx", "fx")


def context(function):
    CONTEXTS[function.__name__.strip("_").replace("_", "-")] = function
    return function


def asked_of(side: Side, results: Results) -> dict[str, Tensor]:
    """The results to be differentiated."""
    is_output = {"result.0", "result.0.data"} if not side.case.step else {"result", "result.0"}
    tensors = {n: r for n, r in results.items() if isinstance(r, Tensor) and r.requires_grad}
    asks = side.case.asks
    return {n: r for n, r in tensors.items() if asks == "all" or (asks == "output") == (n in is_output)}


def incoming(side: Side, place: str, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """The gradient that comes in at a result."""
    values = base(side.case, f"gradient of {place}", tuple(like.shape) if shape is None else shape)
    names = {
        "result.0": "output grad",
        "result.0.data": "output grad",
        "result.1": "h_n grad",
        "result.1.0": "h_n grad",
    }
    kind = kind_of(side.case, names.get(place, "c_n grad"))
    values = (values if like.is_complex() else values.real if values.is_complex() else values).to(like.dtype)
    if kind is None:
        return values
    return kind.meaning(values) if side.is_exact else kind.make(values)


def wanted_of(side: Side) -> dict[str, Tensor]:
    return {n: t for n, t in side.leaves.items() if isinstance(t, Tensor) and t.requires_grad}


def gradients(side: Side, results: Results, **options) -> Results:
    asked, wanted = asked_of(side, results), wanted_of(side)
    if not asked or not wanted:
        return {}
    given = [incoming(side, place, r) for place, r in asked.items()]
    grads = torch.autograd.grad(list(asked.values()), list(wanted.values()), given, allow_unused=True, **options)
    return {f"gradient of {name}": g for name, g in zip(wanted, grads)}


@context
def backward(side: Side) -> Results:
    """Gradients gathered in ``.grad``, twice."""
    wanted = wanted_of(side)
    for _ in range(2):
        results = side.call(side.arguments)
        asked = asked_of(side, results)
        if asked:
            torch.autograd.backward(list(asked.values()), [incoming(side, place, r) for place, r in asked.items()])
    return results | {f"gradient of {name}": t.grad for name, t in wanted.items()}


@context
def plain(side: Side) -> Results:
    results = side.call(side.arguments)
    return results | gradients(side, results)


def _within(name: str, manager, backward_too: bool = False) -> None:
    def run(side: Side) -> Results:
        with manager():
            results = side.call(side.arguments)
            if backward_too:
                return results | gradients(side, results)
        return results | gradients(side, results)

    CONTEXTS[name] = run


@contextlib.contextmanager
def _default_float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


_within("no_grad", torch.no_grad)
_within("inference_mode", torch.inference_mode)
for _low in (torch.bfloat16, torch.float16):
    for _cache in (True, False):
        _name = f"autocast-{_low}{'' if _cache else '-uncached'}".replace("torch.", "")
        _within(_name, lambda low=_low, cache=_cache: torch.autocast("cpu", low, cache_enabled=cache))
_within("saved-tensors-hooks", lambda: saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t))
_within("save_on_cpu", save_on_cpu)
_within("dispatch-mode", BaseTorchDispatchMode)
_within("dispatch-mode-backward", BaseTorchDispatchMode, True)
_within("function-mode", BaseTorchFunctionMode, True)
_within("default-float64", _default_float64, True)
_within("anomaly", torch.autograd.detect_anomaly, True)
_within("set_default_device", lambda: torch.device("meta"))


def _around(name: str, wrap: Callable[[Side, Callable], Callable], inner: Callable[[Side], Results] = plain) -> None:
    """A context that calls something else than the module."""

    def run(side: Side) -> Results:
        side.wrap = lambda call: wrap(side, call)
        return inner(side)

    CONTEXTS[name] = run


def _checkpointed(reentrant: bool):
    return lambda side, call: lambda *args, **kw: checkpoint(lambda *a: call(*a, **kw), *args, use_reentrant=reentrant)


def _compiled(backend: str):
    def wrap(side, call):
        torch._dynamo.reset()
        compiled = torch.compile(call, backend=backend)

        def with_rnn(*args, **kwargs):
            with torch._dynamo.config.patch(allow_rnn=True):
                return compiled(*args, **kwargs)

        return with_rnn

    return wrap


def _hooked(side: Side, call):
    module = side.module
    module.register_forward_pre_hook(lambda module, args: args)
    module.register_forward_hook(lambda module, args, result: result)
    module.register_full_backward_hook(lambda module, grads, given: None)
    return call


class _Holder(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, hx):
        return self.module(x, hx)


def _fx(side: Side, call):
    traced = torch.fx.symbolic_trace(_Holder(side.module))
    return lambda x, hx=None: traced(x, hx)


_around("checkpoint", _checkpointed(False))
_around("checkpoint-reentrant", _checkpointed(True), backward)
_around("compile", _compiled("eager"))
_around("compile-aot", _compiled("aot_eager"))
_around("hooks", _hooked)
_around("fx", _fx)


def _in_thread(inner: Callable[[Side], Results]) -> Callable[[Side], Results]:
    def run(side: Side) -> Results:
        kept: list = []

        def work():
            try:
                kept.append(inner(side))
            except Exception as error:
                kept.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if isinstance(kept[0], Exception):
            raise kept[0]
        return kept[0]

    return run


CONTEXTS["thread"] = _in_thread(plain)
CONTEXTS["compile-thread"] = _in_thread(CONTEXTS["compile-aot"])


def _replaced(name: str, other: Callable[[nn.Module], nn.Module]) -> None:
    """Another module in the place of the first, whose parameters are the leaves."""

    def run(side: Side) -> Results:
        before, side.module = dict(side.module.named_parameters()), other(side.module)
        own = {n: p for n, p in side.module.named_parameters() if side.arguments[n] is before[n]}
        side.leaves |= own
        side.arguments |= own
        return plain(side)

    CONTEXTS[name] = run


def _stored(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


_replaced("deepcopy", copy.deepcopy)
_replaced("pickle", _stored)
_replaced("to-channels", lambda module: module.to(memory_format=torch.preserve_format))
_replaced("share_memory", lambda module: module.share_memory())


@context
def fake(side: Side) -> Results:
    with FakeTensorMode() as mode:
        made = {n: mode.from_tensor(t) if isinstance(t, Tensor) else t for n, t in side.arguments.items()}
        side.leaves = made
        results = side.call(made)
        return results | gradients(side, results)
