"""A cell of the user's own: ``load_cell`` compiles one C++ struct, ``Layer`` is the recurrent layer of it."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from ._backends import dispatch
from ._kernels import cell_library, ext, user_kernels
from ._kernels.cell_errors import Header
from .layers import OwnLayer
from .modules import Device
from .reference.recorded import step_of
from .reference.scan import STEP
from .registry import FIRST_USER_CELL, Cell, add_user_cell
from .verdict import kept

_loaded: dict[tuple[str, str], OwnCell] = {}
_lock = threading.Lock()


class OwnCell:
    """What :func:`load_cell` returns, and :class:`Layer` takes. Pickling keeps the header's text.

    ``name`` is the struct's, ``path`` the header's as it was given, ``source`` its text; ``gates`` and ``states`` are
    their numbers, ``initial`` has the states' values after a reset and where none are given, ``params`` the names of
    the parameters (H,), and ``projects`` says whether a layer may have a ``proj_size``.
    """

    def __init__(self, header: Header, registered: Cell) -> None:
        self.name, self.path, self.source = header.name, header.path, header.text
        self.registered = registered
        self.gates, self.states, self.initial = registered.gates, registered.states, registered.initial
        self.params, self.projects = registered.params, registered.projects

    def check(self, device: str = "cpu") -> bool:
        """Compares the kernels of a device, ``cpu`` or ``cuda``, with the reference, and both with differences, in
        float64, for first and second derivatives by inputs, states and parameters of a small layer; takes seconds.

        States are near their initial values, parameters near 0. A kink (``relu_``, ``max_``) within 1e-6 of a value
        that occurs would show as a difference.

        Raises:
            RuntimeError: the device has no kernels for the cell.
            AssertionError: the kernels and the reference differ.
            torch.autograd.gradcheck.GradcheckError: a derivative is wrong.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = Layer(self, 2, 3, bidirectional=True, dtype=torch.float64)
            x = torch.randn(3, 2, 2, dtype=torch.float64)
            hx = [value + torch.rand(2, 2, 3, dtype=torch.float64) for value in self.initial]
        names, weights = zip(*layer.named_parameters())
        inputs = [t.detach().to(device).requires_grad_() for t in (x, *hx, *weights)]

        def run(x: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            hx, weights = tensors[: self.states], tensors[self.states :]
            given = (x, hx if self.states > 1 else hx[0])
            output, final = torch.func.functional_call(layer, dict(zip(names, weights)), given)
            return (output, *final) if self.states > 1 else (output, final)

        found = {}
        for backend in (device, "reference"):
            with dispatch.backend(backend), torch.no_grad():
                found[backend] = run(*inputs)
        torch.testing.assert_close(found[device], found["reference"], rtol=1e-9, atol=1e-9)
        with dispatch.backend(device):
            return bool(torch.autograd.gradcheck(run, inputs) and torch.autograd.gradgradcheck(run, inputs))

    def __reduce__(self) -> tuple[Callable[..., OwnCell], tuple[str, str, str]]:
        return _load, (self.path, self.source, self.name)

    def __repr__(self) -> str:
        return f"<cell {self.name} of {self.path}>"


def load_cell(header: str | os.PathLike, name: str | None = None) -> OwnCell:
    """Compiles the cell that a C++ header describes, for :class:`Layer`.

    The header has a struct with ``kGates``, ``kStates``, ``kParams`` and ``forward``, the maths of one unit in one time
    step, from which the compiler makes the kernels of both passes for this machine's CPU, in float64, float32, bfloat16
    and float16 (``docs/own_cells.md``). That takes some ten seconds; the library is kept in the folder of
    ``FASTRNN_CACHE_DIR`` (``docs/install.md``), under ``cells``, by the header's text, the compiler and this package,
    so that the next process loads it at once. A header says what code runs: load those that you trust.

    On a GPU, the first call inside ``fastrnn.backend("cuda")`` compiles the CUDA kernels with nvcc and caches them the
    same way. Where no kernel runs (other devices, CUDA tensors outside that block, higher-order derivatives,
    ``torch.func``, forward-mode AD) the cell runs on torch operations generated from the same ``forward``.

    Args:
        header: the file.
        name: the struct, where the header has several.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is wrong; the message is one sentence that names it and the line.
        RuntimeError: there is no C++ compiler, fastrnn was installed without its extension, or the library
            cannot be kept.
    """
    path = os.fspath(header)
    if not Path(path).is_file():
        raise FileNotFoundError(f"fastrnn.load_cell: expected a header, there is no file {path}")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: expected text in UTF-8, got the byte {error.object[error.start]:#x}"
        ) from None
    return _load(path, text, name)


def _load(path: str, text: str, name: str | None) -> OwnCell:
    header = Header(path, text, name)
    key = header.name, text
    with _lock:
        if key not in _loaded:
            _loaded[key] = _add(header)
        return _loaded[key]


def _add(header: Header) -> OwnCell:
    """Builds the cell's CPU kernels and makes the cell known to the extension, the registry and the reference."""
    extension = ext.load()
    if extension is None:
        raise RuntimeError(f"fastrnn.load_cell: the compiled extension is missing: {ext.reason}")
    # By content: graphs of torch.export and torch.compile find the same cell in another process.
    digest = hashlib.sha256(f"{header.name}\0{header.text}".encode()).hexdigest()
    number = FIRST_USER_CELL + int(digest, 16) % FIRST_USER_CELL
    version = sys.modules["fastrnn"].__version__  # nothing here imports the package that imports it
    folder, isa = kept.folder() / "cells", extension.cpu.isa()
    address = cell_library.address_in(lambda: cell_library.build(header, isa, folder, version), "fastrnn_user_cell")
    facts = extension.add_cell(number, address)
    graph, facts["mode"] = facts.pop("graph"), f"{header.name}-{digest[:8]}"
    cell = Cell(number, layer="Layer", step="", **facts)
    add_user_cell(cell)
    STEP[cell.mode] = step_of(graph, cell.gates)
    user_kernels.offer(cell.mode, number, lambda gpus: cell_library.build_cuda(header, gpus, folder, version))
    return OwnCell(header, cell)


class Layer(OwnLayer):
    r"""The recurrent layer of a cell from :func:`load_cell`; constructed, called, saved and loaded as
    :class:`fastrnn.LSTM` is.

    Args:
        cell: what :func:`load_cell` returned.

    The other arguments are those of :class:`fastrnn.LSTM`; ``proj_size`` needs a cell whose ``forward`` does not read h
    but through the products.

    Parameters are torch's by name and shape, with G gates in the order of ``kGates``; besides, every name of
    ``kParams`` is a parameter (H,), ``name_l{k}`` and ``name_l{k}_reverse``. All start uniform in +-1/sqrt(H). States
    are a tuple in the order of ``kStates``, each (layers * D, B, H) but h, which has P features where projected, or h
    alone where there is no other; without ``hx``, and after a reset, they have the values of ``kStates``.

    Raises:
        TypeError: ``cell`` is none.
        ValueError: a ``proj_size`` for a cell that reads h.
    """

    def __init__(
        self, cell: OwnCell, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
        device: Device = None, dtype: torch.dtype | None = None, *, recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0, zoneout: float | tuple[float, float] = 0.0, num_heads: int = 1,
    ) -> None:  # fmt: skip
        if not isinstance(cell, OwnCell):
            raise TypeError(f"fastrnn.Layer: expected cell to come from fastrnn.load_cell, got {type(cell).__name__}")
        self.cell, self._mode = cell, cell.registered.mode
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype,
            recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout, zoneout=zoneout, num_heads=num_heads,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.cell.name}, {super().extra_repr()}"
