"""`python -m fastrnn bench`: one shape of the user's own, fastrnn against torch.nn."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from .. import registry
from .case import MODES, Case
from .environment import ALL_THREADS, environment, heading
from .measure import PRECISIONS, Setting, measure, precisions_of
from .memory import KIND
from .timing import Pace

CELLS = {cell.layer.lower(): cell.layer for cell in (*registry.CELLS.values(), *registry.OWN_CELLS.values())}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the shape given on the command line; 0 if every result was right, 1 otherwise."""
    parser = _parser()
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch {torch.__version__} sees no CUDA device here")
    states = []
    print(f"{heading(environment(device))}, {args.threads} threads")
    print(f"torch's time -> ours, and bytes of {KIND.get(device.type, 'saved')} memory in training")
    for precision in precisions_of(args.precision, device, args.dtype):
        setting = Setting(device, args.backend, args.threads, precision, pace=Pace(args.seconds), floor=True)
        for mode in MODES if args.mode == "both" else (args.mode,):
            case = Case(
                CELLS[args.cell],
                T=args.seq_len,
                B=args.batch,
                I=args.input or args.hidden,
                H=args.hidden,
                layers=args.layers,
                directions=2 if args.bidirectional else 1,
                dtype=args.dtype,
                mode=mode,
                packed=args.packed,
                resets=args.resets,
                option=args.option,
            )
            for found in measure(case, setting):
                states.append(found.status)
                label = " ".join(filter(None, (mode, precision, found.launch if found.launch != "eager" else "")))
                print(f"{label}: {found}")
                if found.status == "ok":
                    print(f"  worst of the results, {found.worst}")
                    for who, times in (("torch  ", found.other), ("fastrnn", found.ours)):
                        print(f"  {who} {times}")
    return 0 if all(state in ("ok", "refused") for state in states) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastrnn bench",
        description="Time fastrnn against torch.nn on one shape, interleaved, after checking the results in float64.",
    )
    size = _positive
    parser.add_argument("--cell", choices=CELLS, default="lstm", type=str.lower)
    parser.add_argument("--seq-len", type=size, default=100, metavar="T")
    parser.add_argument("--batch", type=size, default=32, metavar="B")
    parser.add_argument("--input", type=size, metavar="I", help="input features (default: H)")
    parser.add_argument("--hidden", type=size, default=128, metavar="H")
    parser.add_argument("--layers", type=size, default=1)
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--packed", action="store_true", help="variable lengths, uniform in 1..T")
    parser.add_argument("--resets", type=_share, default=0.0, help="share of steps that begin an episode, as in 0.03")
    parser.add_argument("--option", default="", metavar="NAME=VALUE", help="of the layer's own, as in num_heads=4")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    parser.add_argument("--mode", choices=(*MODES, "both"), default="both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="auto", help="auto (default), cpu, cuda, aten or reference")
    parser.add_argument("--precision", choices=(*PRECISIONS, "both"), default="both", help="float32 on CUDA")
    parser.add_argument("--threads", type=size, default=ALL_THREADS, help="CPU threads (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per measurement (default: %(default)s)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text}")
    return value
