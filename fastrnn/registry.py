"""The cells fastrnn knows, as data: one line per cell, read by everything that must treat all cells alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """What the rest of the package needs to know about a cell.

    ``index`` is its number in compiled code, its position in ``csrc/cells/cells.def``; ``mode`` is the ``mode``
    attribute of the torch module; ``gates``, ``states`` and ``saved`` are G, S and K of the cell contract
    (``csrc/cells/cell.h``); ``layer`` and ``step`` name the module classes, here and in ``torch.nn``;
    ``nonlinearity`` is set for Elman cells alone. ``initial`` has the values of the states after a reset, and where
    none are given; ``params`` names what a unit has besides weights and biases, a tensor (H,) each; ``recurrent``
    says that there is a W_hh, and ``projects`` that h may be projected; ``read_next`` is the number of states that
    backward reads after a step, h among them. ``statistics`` is the number of values a row that backward needs of its
    layer normalisations, 0 where there are none: else the first two of ``params`` are gains, (G * H,) each, of x and h.
    """

    index: int
    mode: str
    gates: int
    states: int
    saved: int
    layer: str
    step: str
    nonlinearity: str | None = None
    initial: tuple[float, ...] = (0.0,)
    params: tuple[str, ...] = ()
    recurrent: bool = True
    read_next: int = 1
    projects: bool = False
    statistics: int = 0

    def param_sizes(self, units: int) -> list[tuple[int, ...]]:
        """The shapes of ``params``."""
        return [(self.gates * units if self.statistics and k < 2 else units,) for k in range(len(self.params))]


class Cells(dict[str, Cell]):
    """Cells by mode."""

    def __init__(self, *cells: Cell) -> None:
        super().__init__({cell.mode: cell for cell in cells})

    def __missing__(self, mode) -> Cell:
        raise ValueError(f"fastrnn: expected the mode of a cell to be one of {', '.join(self)}, got {mode!r}")


CELLS = Cells(
    Cell(0, "LSTM", gates=4, states=2, saved=4, layer="LSTM", step="LSTMCell", initial=(0.0, 0.0), projects=True),
    Cell(1, "GRU", gates=3, states=1, saved=4, layer="GRU", step="GRUCell", read_next=0),
    Cell(2, "RNN_TANH", gates=1, states=1, saved=0, layer="RNN", step="RNNCell", nonlinearity="tanh"),
    Cell(3, "RNN_RELU", gates=1, states=1, saved=0, layer="RNN", step="RNNCell", nonlinearity="relu"),
)
"""Those that torch has, too."""

OWN_CELLS = Cells(
    Cell(
        4, "PEEPHOLE_LSTM", gates=4, states=2, saved=4, layer="PeepholeLSTM", step="PeepholeLSTMCell",
        initial=(0.0, 0.0), params=("peephole_i", "peephole_f", "peephole_o"), projects=True,
    ),
    Cell(
        5, "SLSTM", gates=4, states=4, saved=5, layer="SLSTM", step="SLSTMCell", initial=(0.0, 0.0, 0.0, -60000.0),
        projects=True, read_next=3,
    ),
    Cell(
        6, "SLSTM_EXP", gates=4, states=4, saved=5, layer="SLSTM", step="SLSTMCell", initial=(0.0, 0.0, 0.0, -60000.0),
        projects=True, read_next=2,
    ),
    Cell(
        7, "CIFG_LSTM", gates=3, states=2, saved=3, layer="CIFGLSTM", step="CIFGLSTMCell", initial=(0.0, 0.0),
        projects=True,
    ),
    Cell(
        8, "IND_RNN", gates=1, states=1, saved=0, layer="IndRNN", step="IndRNNCell", params=("weight_hh",),
        recurrent=False,
    ),
    Cell(
        9, "LAYER_NORM_LSTM", gates=4, states=2, saved=12, layer="LayerNormLSTM", step="LayerNormLSTMCell",
        initial=(0.0, 0.0), params=("weight_norm_ih", "weight_norm_hh", "weight_norm_c", "bias_norm_c"), projects=True,
        statistics=4,
    ),
    Cell(
        10, "LAYER_NORM_GRU", gates=3, states=1, saved=10, layer="LayerNormGRU", step="LayerNormGRUCell", read_next=0,
        params=("weight_norm_ih", "weight_norm_hh"), statistics=2,
    ),
)  # fmt: skip
"""Those that torch does not have."""

ALL_CELLS = Cells(*CELLS.values(), *OWN_CELLS.values())
BY_NUMBER = tuple(ALL_CELLS.values())
_numbered = dict(enumerate(BY_NUMBER))  # and users' cells, which other threads may add meanwhile
FIRST_USER_CELL = 1 << 30
"""The lowest number of a cell that a user may add; as in ``csrc/cpu/user_cells.h``."""
USER_CELLS = Cells()
"""Those that were added, by ``fastrnn.load_cell``; they are in ALL_CELLS, too."""


def add_user_cell(cell: Cell) -> None:
    """Makes a cell known, whose number and mode no other has."""
    ALL_CELLS[cell.mode] = USER_CELLS[cell.mode] = _numbered[cell.index] = cell


def cell_of(number: int) -> Cell:
    """The cell of a number, as a call has it."""
    cell = _numbered.get(int(number))  # a symbolic number has no hash
    if cell is not None:
        return cell
    if number >= FIRST_USER_CELL:
        raise RuntimeError(f"fastrnn: cell {number} is not loaded: call fastrnn.load_cell with its header first")
    raise RuntimeError(f"fastrnn: cell must be in 0 .. {len(BY_NUMBER) - 1}, got {number}")
