"""`python -m fastrnn bench`: one shape of the user's own, fastrnn against torch.nn."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

import fastrnn

from .. import registry
from .._backends import dispatch
from .case import MODES, Case, build
from .environment import ALL_THREADS, environment, heading
from .measure import PRECISIONS, Setting, measure, precisions_of
from .memory import KIND
from .timing import Pace

CELLS = {cell.layer.lower(): cell.layer for cell in (*registry.CELLS.values(), *registry.OWN_CELLS.values())}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the shape given on the command line; 0 if every result was right, 1 otherwise."""
    parser = _parser()
    args = parser.parse_args(argv)
    case, device = _case(args), args.device
    if against := _against(args, case):
        parser.error(against)
    states = []
    print(f"{heading(environment(device))}, {args.threads} threads")
    print(f"torch's time -> ours, and bytes of {KIND.get(device.type, 'saved')} memory in training")
    for precision in precisions_of(args.precision, device, args.dtype):
        setting = Setting(device, args.backend, args.threads, precision, pace=Pace(args.seconds), floor=True)
        for mode in MODES if args.mode == "both" else (args.mode,):
            for found in measure(replace(case, mode=mode), setting):
                states.append(found.status)
                label = " ".join(filter(None, (mode, precision, found.launch if found.launch != "eager" else "")))
                print(f"{label}: {found}")
                if found.status == "ok":
                    print(f"  worst of the results, {found.worst}")
                    for who, times in (("torch  ", found.other), ("fastrnn", found.ours)):
                        print(f"  {who} {times}")
    return 0 if all(state in ("ok", "refused") for state in states) else 1


def _case(args: argparse.Namespace) -> Case:
    """The shape that was asked for."""
    return Case(
        CELLS[args.cell],
        T=args.seq_len,
        B=args.batch,
        I=args.input or args.hidden,
        H=args.hidden,
        layers=args.layers,
        directions=2 if args.bidirectional else 1,
        dtype=args.dtype,
        packed=args.packed,
        resets=args.resets,
        option=args.option or "",
    )


def _against(args: argparse.Namespace, case: Case) -> str:
    """Which arguments do not fit together, or do not fit this machine; else nothing."""
    device = args.device
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        return f"argument --device: expected a device here, got {device}: {seen}"
    if args.resets and (args.packed or args.bidirectional):
        other = "--packed" if args.packed else "--bidirectional"
        return f"argument --resets: expected padded input in one direction, got {other}"
    if args.precision != "both" and (device.type != "cuda" or args.dtype != "float32"):
        return f"argument --precision: expected float32 on CUDA, got {args.dtype} on {device.type}"
    given = [option.partition("=")[0] for option in case.option.split(",") if option]
    kind = case.layer(fastrnn)
    names = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if wrong := dict.fromkeys(name for name in given if name not in names or given.count(name) > 1):
        return f"argument --option: expected each of {', '.join(names)} once at most, got {', '.join(wrong)}"
    try:
        module = build(kind, case, "meta")
    except ValueError as reason:
        return f"argument --option: {reason}"
    extended = bool(case.resets or module.own_options.keys() - {"weight_dropout"})
    sizes = case.T, case.B, case.I, case.H
    call = dispatch.Call(module.mode, device.type, case.torch_dtype, *sizes, extended=extended)
    if args.backend != "auto" and (reasons := dispatch.why_not(args.backend, call)):
        return f"argument --backend: expected one that serves this call, got {args.backend}: {'; '.join(reasons)}"
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastrnn bench",
        description="Time fastrnn against torch.nn on one shape, interleaved, after checking the results in float64.",
    )
    size = number(int, "a whole number of at least 1", lambda value: value >= 1)
    share = number(float, "a share between 0 and 1", lambda value: 0 <= value <= 1)
    parser.add_argument("--cell", choices=CELLS, default="lstm", type=str.lower)
    parser.add_argument("--seq-len", type=size, default=100, metavar="T")
    parser.add_argument("--batch", type=size, default=32, metavar="B")
    parser.add_argument("--input", type=size, metavar="I", help="input features (default: H)")
    parser.add_argument("--hidden", type=size, default=128, metavar="H")
    parser.add_argument("--layers", type=size, default=1)
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--packed", action="store_true", help="variable lengths, uniform in 1..T")
    parser.add_argument("--resets", type=share, default=0.0, help="share of steps that begin an episode, as in 0.03")
    parser.add_argument("--option", type=_option, metavar="NAME=VALUE", help="of the layer's own, as in num_heads=4")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    parser.add_argument("--mode", choices=(*MODES, "both"), default="both")
    parser.add_argument("--device", type=_device, default="cpu")
    parser.add_argument("--backend", choices=("auto", *dispatch.BACKENDS), default="auto")
    parser.add_argument("--precision", choices=(*PRECISIONS, "both"), default="both", help="float32 on CUDA")
    parser.add_argument("--threads", type=size, default=ALL_THREADS, help="CPU threads (default: %(default)s)")
    parser.add_argument("--seconds", type=SECONDS, default=2.0, help="time per measurement (default: %(default)s)")
    return parser


def number(kind: type[int] | type[float], expected: str, fits: Callable[[Any], bool]) -> Callable[[str], Any]:
    """The type of an argument that is a number; ``expected`` says which ``fits``."""

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if fits(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return parse


SECONDS = number(float, "a positive number of seconds", lambda value: 0 < value < math.inf)


def _device(text: str) -> torch.device:
    with contextlib.suppress(RuntimeError):
        device = torch.device(text)
        if device.type == "cuda" or str(device) == "cpu":
            return device
    raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")


def _option(text: str) -> str:
    if not all(re.fullmatch(r"\w+=\S+", option) for option in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, or several with commas between them, got {text!r}")
    return text
