"""Capture and replay in the emulator, by the rules of a CUDA graph.

While a function is captured nothing is computed. What a GPU would be given to do is written down in one list, in order:
the operations of torch and, through the emulator's recorder, the launches, memsets, copies and products of the
bindings, with their parameters by value. The tensors that are made keep their memory, as in the private pool of a
graph. They and the inputs hold poison: where the host decides by a value on the device, it decides by poison. A replay
does what the list says and nothing else, with poison again in all that was made.

Every tensor counts as the device's, but for those that are named: ``batch_sizes`` of a CUDA call is on the CPU, so its
values belong to the graph. A look at memory that asks torch for no operation, as through ``data_ptr``, is not seen; it
finds the poison. Of the CUDA runtime the emulator has no call that waits or allocates, so no kernel's launcher can make
one; work on another stream than the captured one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .lanes import CALLER, interleaving, tensors_in

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# Methods that copy to the host; of the emulator's tensors, which are there already, no operation is left of them.
TO_HOST = {"cpu", "numpy", "tolist", "__array__"}


class Step(NamedTuple):
    """Of a graph: what it is, for people, and a function that does it. A mark or a wait does nothing but order the
    lanes, CUDA streams (tests/emulator/lanes.py)."""

    what: str
    run: Callable = lambda: None
    lane: int = CALLER
    kind: str = "op"
    mark: int = 0


@torch.no_grad()
def poison(tensors: Iterable[Tensor]) -> None:
    """NaN; -1 among whole numbers; and in memory of bytes 0xff, which is NaN, a counter that keeps waiting, and a row
    with every kind of step."""
    for tensor in tensors:
        whole = {torch.uint8: 0xFF, torch.bool: True}.get(tensor.dtype, -1)
        tensor.fill_(torch.nan if tensor.is_floating_point() else whole)


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def refusal(function, name: str, given: list[Tensor], on_host: set[bool]) -> str | None:
    """Why an operation on these tensors cannot be captured."""
    masked = name.startswith("index") and any(t.dtype in (torch.bool, torch.uint8) for t in given[1:])
    if masked or (READS & set(function.tags) and name != "index"):
        return "reads data of the device on the host"
    if len(on_host) == 2 or name == "lift_fresh":
        return "copies between host and device"
    if function.namespace != "aten":
        return "cannot be captured as a whole"
    return None


class _Methods(TorchFunctionMode):
    """Refuses those of tensors that copy to the host."""

    def __init__(self, host: set[int]) -> None:
        super().__init__()
        self.host = host

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, named = getattr(function, "__name__", ""), kwargs or {}
        devices = [str(value) for value in (*args[1:], *named.values()) if isinstance(value, (str, torch.device))]
        if (name in TO_HOST or (name == "to" and "cpu" in devices)) and memory(args[0]) not in self.host:
            raise RuntimeError(f"captured: Tensor.{name} copies between host and device")
        return function(*args, **named)


class Capture(TorchDispatchMode):
    """A graph: ``results`` is what ``function(self)`` returned, ``steps`` what a replay does.

    A replay may find other values in ``inputs``; those of ``host`` belong to the graph. ``function`` may set ``lane``
    and add marks and waits, as lanes.lanes_of does.
    """

    def __init__(self, cuda, function: Callable, inputs: Sequence[Tensor], host: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.made: list[Tensor] = []
        self.lane, self.host, self._kept = CALLER, {memory(t) for t in host}, list(host)
        poison(inputs)
        cuda.record(self._add)
        try:
            with _Methods(self.host), self:
                self.results = function(self)
        finally:
            cuda.record(None)

    @torch.no_grad()
    def replay(self, without: int | None = None, last: int | None = None) -> None:
        """Does all steps again, or all but one: in the order of the capture, or with a lane held back for as long as
        another can go on."""
        poison(self.made)
        steps = [step for index, step in enumerate(self.steps) if index != without]
        for step in steps if last is None else interleaving(steps, last):
            step.run()

    def order(self, kind: str, lane: int, mark: int) -> None:
        self.steps.append(Step(kind, lane=lane, kind=kind, mark=mark))

    def use(self, lane: int, tensors: list[Tensor]) -> None:
        """Nothing: a graph gives no memory back."""

    def _add(self, what: str, run: Callable) -> None:
        self.steps.append(Step(what, run, self.lane))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name, schema = kwargs or {}, function.overloadpacket.__name__, function._schema
        given = tensors_in(args, kwargs)
        on_host = {memory(t) in self.host for t in given}
        if on_host == {True}:
            result = function(*args, **kwargs)
            self._kept += tensors_in(result)  # or its address would be a tensor's of the device
            self.host |= {memory(t) for t in tensors_in(result)}
            return result
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            with self:
                return function.decompose(*args, **kwargs)
        if why := refusal(function, name, given, on_host):
            raise RuntimeError(f"captured: {function} {why}")
        if schema.is_mutable:
            return self._change(function, args, kwargs)
        if any(returned.alias_info is not None for returned in schema.returns):
            return function(*args, **kwargs)  # a view: there is nothing to compute
        return self._compute(function, name, args, kwargs)

    def _change(self, function, args, kwargs):
        """In place: a replay does the same."""
        self._add(str(function), lambda: function(*args, **kwargs))
        names = [(argument.name, argument.alias_info) for argument in function._schema.arguments]
        named = {name: value for (name, _), value in zip(names, args)} | kwargs
        written = [named[name] for name, alias in names if alias is not None and alias.is_write]
        return written[0] if len(function._schema.returns) == 1 else tuple(written)

    def _compute(self, function, name: str, args, kwargs):
        """A replay copies the result to memory of the graph, whose shape comes from tensors without memory."""
        meta, options = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
        if "device" in options:
            options["device"] = torch.device("meta")
        result = tree_map_only(
            Tensor, lambda t: torch.empty_strided(t.size(), t.stride(), dtype=t.dtype), function(*meta, **options)
        )
        made = tensors_in(result)
        poison(made)
        self.made += made

        def run() -> None:
            for to, value in zip(made, tensors_in(function(*args, **kwargs)), strict=True):
                to.copy_(value)

        if name not in ALLOCATIONS:
            self._add(str(function), run)
        return result
