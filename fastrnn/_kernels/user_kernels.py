"""The CUDA kernels of users' cells, which are compiled when a call on a GPU first asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import cell_library, ext, nvcc

_lock = threading.Lock()
_sources: dict[str, tuple[int, Callable[[Sequence[tuple[int, int]]], Path]]] = {}
_added: set[str] = set()
_refused: dict[str, str] = {}


def offer(mode: str, number: int, build: Callable[[Sequence[tuple[int, int]]], Path]) -> None:
    """Makes a cell known by its mode and number; ``build(compute capabilities)`` makes the library of its kernels."""
    _sources[mode] = number, build


def why_not(mode: str) -> str | None:
    """Why a user's cell has no CUDA kernels, as far as that is known without compiling; None if it may have some, and
    for all other cells."""
    if mode in _added or mode not in _sources:
        return None
    if mode in _refused:
        return _refused[mode]
    _, why = nvcc.find_nvcc()
    return why and f"the kernels of a cell of fastrnn.load_cell are compiled here, and {why}"


why_not._dynamo_marked_constant = True  # found while dynamo traces, and no part of the graph


def why_not_added(mode: str) -> str | None:
    """As :func:`why_not`, after compiling what was not compiled, for all GPUs here that the extension serves.

    What failed once is not tried again.
    """
    if mode in _added or mode not in _sources:
        return None
    with _lock:
        if mode not in _added and why_not(mode) is None:
            try:
                _add(mode)
            except (OSError, RuntimeError, ValueError) as error:
                _refused[mode] = str(error).partition("\n")[0]
    return why_not(mode)


def _add(mode: str) -> None:
    number, build = _sources[mode]
    present = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    served = sorted(gpu for gpu in present if ext.why_not_device(gpu, ext.build.cuda_archs) is None)
    if not served:
        raise RuntimeError("torch sees no GPU that the extension was built for")
    address = cell_library.address_in(lambda: build(served), "fastrnn_user_kernels")
    ext.load().cuda.add_cell(number, address)
    _added.add(mode)
