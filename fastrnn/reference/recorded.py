"""The steps of cells that are written once, as a forward in C++: from the graphs that the compiler recorded of them.

``forwards.json`` holds the graphs (``csrc/cells/graph.h``), so that the reference needs no extension. ``make forwards``
writes it again after a forward has changed; a test compares the two.
"""

from __future__ import annotations

import json
import operator
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

FILE = Path(__file__).with_name("forwards.json")
_OPERATIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "exp": torch.exp,
    "log": torch.log,
    "log_sigmoid": torch.nn.functional.logsigmoid,
}


def step_of(graph: dict, gates: int) -> Callable:
    """A step as those of ``scan.STEP``, in ordinary differentiable operations."""
    nodes, after = graph["nodes"], graph["next"]

    def step(x: Tensor, h: Tensor, state: tuple[Tensor, ...], params: Sequence[Tensor]) -> tuple[Tensor, ...]:
        leaves = {"x": x.chunk(gates, -1), "h": h.chunk(gates, -1), "prev": state, "param": params}
        values: list = []
        for operation, a, b, value in nodes:
            if operation == "const":
                values.append(value)
            elif operation in leaves:
                values.append(leaves[operation][a])
            elif operation == "max":
                values.append(torch.maximum(*(torch.as_tensor(values[i], dtype=x.dtype) for i in (a, b))))
            elif operation == "larger":
                values.append(None)  # what only a derivative asks for
            else:
                values.append(_OPERATIONS[operation](*(values[i] for i in (a, b) if i >= 0)))
        return tuple(values[n] for n in after)

    return step


def load() -> dict[str, dict]:
    """The graphs by mode, of the cells that have one."""
    return json.loads(FILE.read_text())


def dump(cells: Sequence[dict]) -> str:
    """The file's text for the cells of the extension, ``fastrnn._C.cells()``."""
    modes = []
    for cell in cells:
        if cell["graph"] is not None:
            nodes = textwrap.fill(", ".join(json.dumps(node) for node in cell["graph"]["nodes"]), 118)
            modes.append(f'"{cell["mode"]}": {{"next": {cell["graph"]["next"]}, "nodes": [\n{nodes}]}}')
    return "{\n" + ",\n".join(modes) + "\n}\n"
