"""The named grids of cases. Pure data: what each grid is for stands beside it, targets are in targets.py."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from fastrnn.bench.case import MODES, Case
from fastrnn.verdict.tune import CASES as TUNE_CASES

CELLS = ("LSTM", "GRU", "RNN")

# (T, B, I, H), then what differs from one layer and one direction
CPU_SHAPES = (
    ((100, 1, 128, 128), {}),
    ((100, 32, 128, 128), {}),
    ((100, 32, 256, 256), {}),
    ((50, 64, 512, 512), {}),
    ((35, 20, 650, 650), {"layers": 2}),
    ((200, 16, 512, 512), {"directions": 2}),
    ((1000, 1, 64, 64), {}),
    ((20, 128, 1024, 1024), {}),
    ((1, 1, 256, 256), {}),
)
CUDNN_BEST_SHAPES = ((1024, 16, 768, 768), (512, 64, 512, 512), (256, 128, 1024, 1024))

INFER_SHAPES = (
    ((1, 1, 128, 128), {}),
    ((1, 1, 256, 512), {"layers": 2}),
    ((1, 16, 512, 512), {}),
    ((30, 1, 128, 128), {}),
    ((100, 1, 80, 256), {"directions": 2}),
    ((100, 1, 256, 512), {"layers": 2}),
    ((50, 4, 96, 96), {}),
    ((100, 32, 256, 256), {}),
    ((30, 64, 512, 512), {}),
    ((20, 8, 1024, 1024), {}),
)
STREAM_SHAPES = (
    ((1, 1, 64, 64), {}),
    ((1, 1, 128, 128), {}),
    ((1, 1, 256, 512), {"layers": 2}),
    ((1, 16, 512, 512), {}),
)

SIZES_B = (1, 16, 32, 64, 128)
SIZES_H = (128, 256, 512, 768, 1024, 1536, 2048)
SIZES_I = (64, 256)

LONG_B = (2, 4, 8, 16, 32, 64, 128, 256)
LONG_T = (256, 512, 1024, 2048)

ODD_H = (72, 130, 152, 168, 192, 200, 321, 650, 1000)
ODD_B = (3, 6, 12, 45, 62)
ODD_T = (100, 2721)


def _grid(
    shapes: Iterable[tuple[tuple[int, int, int, int], dict]],
    dtypes: tuple[str, ...],
    cells: tuple[str, ...] = CELLS,
    modes: tuple[str, ...] = MODES,
) -> tuple[Case, ...]:
    """Every cell, dtype, shape and mode; the modes of a shape side by side."""
    return tuple(
        Case(cell, *shape, dtype=dtype, mode=mode, **extra)
        for cell, dtype, (shape, extra), mode in product(cells, dtypes, shapes, modes)
    )


def _plain(*shapes: tuple[int, int, int, int], **extra) -> tuple:
    return tuple((shape, extra) for shape in shapes)


GRIDS: dict[str, tuple[Case, ...]] = {
    # what a CPU user runs: small and large, short and long, T = 1 included
    "cpu": _grid(CPU_SHAPES, ("float32", "bfloat16")),
    # what `python -m fastrnn tune` measures: more of single steps
    "tune": TUNE_CASES,
    # the shapes for which cuDNN has its fastest kernel
    "cudnn-best": _grid(_plain(*CUDNN_BEST_SHAPES), ("float16", "bfloat16"), ("LSTM",)),
    # width and batch over a wide range at a fixed short length
    "sizes": _grid(_plain(*((50, b, i, h) for h, b, i in product(SIZES_H, SIZES_B, SIZES_I))), ("float32", "bfloat16")),
    # long sequences at one width: batch at T = 1024, then length at B = 16
    "long": _grid(
        _plain(*((1024, b, 768, 768) for b in LONG_B), *((t, 16, 768, 768) for t in LONG_T if t != 1024)),
        ("bfloat16",),
        ("LSTM", "GRU"),
    ),
    # sizes that are no multiple of any tile
    "odd": _grid(_plain(*((t, b, h, h) for t, h, b in product(ODD_T, ODD_H, ODD_B))), ("float32",)),
    # policy training, without and with episodes that end
    "rl": _grid((((128, 128, 256, 256), {}), ((128, 128, 256, 256), {"resets": 0.03})), ("float32", "bfloat16")),
    # variable lengths, as text or speech gives them
    "packed": _grid(_plain((500, 32, 512, 512), layers=2, directions=2, packed=True), ("float32", "bfloat16")),
    # a trained layer as it is deployed: infer.py measures these
    "infer": _grid(INFER_SHAPES, ("float32",), ("LSTM", "GRU"), ("forward",)),
    "stream": _grid(STREAM_SHAPES, ("float32",), ("LSTM", "GRU"), ("forward",)),
    # small and deep, for which other libraries' persistent kernels have been published
    "small": _grid(_plain(*((32, b, 64, 64) for b in (1, 16, 64, 256)), layers=4), ("float16",), ("LSTM",)),
    # one step at a time, as a sampler or an agent runs; nobody trains like that
    "decode": _grid(
        _plain(*((1, 1, h, h) for h in (256, 512, 768, 1024))), ("float32", "bfloat16"), modes=("forward",)
    ),
}

# Cells and options that torch.nn does not have, in training, at a shape where products take the time and at one where
# steps do; LSTM beside them. torch's side is the loop that is written instead.
OWN_SHAPES = _plain((100, 32, 256, 256), (300, 1, 128, 128))


def _options(cell: str, *options: str) -> tuple[Case, ...]:
    return tuple(
        Case(cell, *shape, mode="training", option=option) for (shape, _), option in product(OWN_SHAPES, ("", *options))
    )


GRIDS |= {
    "own": _grid(OWN_SHAPES, ("float32",), ("LSTM", "PeepholeLSTM", "CIFGLSTM", "SLSTM", "IndRNN"), ("training",)),
    "norm": _grid(OWN_SHAPES, ("float32",), ("LSTM", "LayerNormLSTM", "GRU", "LayerNormGRU"), ("training",)),
    "regularised": _options("LSTM", "recurrent_dropout=0.25", "zoneout=0.1", "weight_dropout=0.5"),
    "heads": _options("LSTM", "num_heads=2", "num_heads=4", "num_heads=8"),
    "slstm": _options("SLSTM", "forget_gate=exp", "num_heads=4"),
    # cells that a user wrote; cifg.h is CIFGLSTM, which stands beside it
    "own-cell": _grid(
        OWN_SHAPES,
        ("float32",),
        ("CIFGLSTM", "benchmarks/cifg.h", "examples/cells/janet.h", "examples/cells/fastgrnn.h"),
        ("training",),
    ),
}
OWN_GRIDS = ("own", "norm", "regularised", "heads", "slstm", "own-cell")
CPU_GRIDS = ("cpu", "tune", "infer", "stream", *OWN_GRIDS)

# What a reader of a grid's figures has to know besides the shapes.
NOTES: dict[str, str] = {
    **dict.fromkeys(OWN_GRIDS, "what torch.nn has not is a loop over PyTorch's operations"),
    "rl": "torch.nn has no resets: it runs episodes side by side or a loop over steps, whichever is faster there",
}


def select(cases: Iterable[Case], expression: str) -> list[Case]:
    """The cases that a filter like `cell=GRU|LSTM,dtype=float32,H=512` keeps: all fields must match, any value may."""
    wanted: dict[str, set[str]] = {}
    for term in filter(None, (part.strip() for part in expression.split(","))):
        name, separator, values = term.partition("=")
        if not separator or name not in Case.__dataclass_fields__:
            fields = ", ".join(Case.__dataclass_fields__)
            raise ValueError(f"filter: expected FIELD=VALUE[|VALUE…] with FIELD one of {fields}, got {term!r}")
        wanted.setdefault(name, set()).update(values.split("|"))
    return [case for case in cases if all(str(getattr(case, name)) in values for name, values in wanted.items())]
