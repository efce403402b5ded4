"""The emulator's module with the launches of its calls run from PTX.

What a call may touch is what it is given and what torch allocates while it runs; both are known to the launches.
"""

from __future__ import annotations

import functools
import subprocess

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from emulator.capture import ALLOCATIONS, poison, tensors_in

from . import compiled, machine
from .memory import Global
from .parse import PtxError


class _Allocations(TorchDispatchMode):
    """Keeps every tensor that is made, so that no address is used again; new memory holds poison."""

    def __init__(self, kept: list) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = tensors_in(result)
        self.kept += made
        if function.overloadpacket.__name__ in ALLOCATIONS:
            poison(made)
        return result


@functools.cache
def kernels(library: str) -> dict[int, str]:
    """Of the emulator's library: where a function is, and its signature."""
    text = subprocess.run(["nm", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in text.splitlines()]
    names = {name: int(place, 16) for place, kind, name in rows if kind in "tTWwuV" and "fastrnn4cuda" in name}
    return {names[name]: signature for signature, name in compiled.demangled(list(names)).items()}


def exists(architecture: int, form: dict, precision: str) -> bool:
    """Whether kernels of this form (tests/emulator/cases.py) do anything there: see compiled.has_body."""
    tensor_cores = form.get("tensor_cores", "tier" in form and precision != "float32")
    turing = architecture < 80 and tensor_cores and precision != "float16"
    return not turing and not (form.get("tier") == "cluster" and architecture < 90)


class Executed:
    """As the emulator's module; ``ran`` counts the launches of each entry, ``change`` may give another translation.

    unaligned: runs the form of a step kernel that expects no alignment where a call gets the other one.
    """

    def __init__(self, cuda, architecture: int, order: str = "together", change=None) -> None:
        self.cuda, self.architecture, self.order, self.change = cuda, architecture, order, change
        self.ran: dict[str, int] = {}
        self.unaligned = False
        self.hidden: set[int] = set()  # addresses of buffers that launches are not to know
        self._kept: list[torch.Tensor] = []

    def __getattr__(self, name):
        return getattr(self.cuda, name)

    def layer_forward(self, *arguments):
        return self._call(self.cuda.layer_forward, arguments)

    def layer_backward(self, *arguments):
        return self._call(self.cuda.layer_backward, arguments)

    def _call(self, function, arguments):
        self._kept = tensors_in(arguments)
        self.cuda.execute(self._launch)
        try:
            with _Allocations(self._kept):
                return function(*arguments)
        finally:
            self.cuda.execute(None)
            self._kept = []

    def _launch(self, place, grid, cluster, threads, shared_bytes, cooperative, parameters) -> None:
        signature = kernels(self.cuda.__file__)[place]
        if self.unaligned and "_fused<" in signature:
            signature = signature.replace(", true>(", ", false>(")
        source = compiled.source_of(signature)
        name = compiled.entries(source, self.architecture)[signature]
        entry = compiled.module(source, self.architecture).entry(name)
        self.ran[signature] = self.ran.get(signature, 0) + 1
        translated = compiled.translation(source, self.architecture, name)
        if self.change is not None:
            translated = self.change(source, self.architecture, name, translated)
        data = _bytes(entry, parameters)
        buffers = [(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in self._kept]
        buffers = [buffer for buffer in buffers if buffer[0] not in self.hidden]
        launch = machine.Launch(grid, cluster, threads, shared_bytes, cooperative, data)
        machine.run(translated, launch, Global(buffers), self.order)


def _bytes(entry, parameters: list[bytes]) -> bytes:
    sizes = [size for _, size in entry.param_sizes]
    if sizes != [len(parameter) for parameter in parameters]:
        raise PtxError(f"{entry.name}: parameters of {sizes} bytes, launched with {[len(p) for p in parameters]}")
    data = np.zeros(entry.param_bytes, np.uint8)
    for (begin, size), parameter in zip(entry.param_sizes, parameters):
        data[begin : begin + size] = np.frombuffer(parameter, np.uint8)
    return data.tobytes()
