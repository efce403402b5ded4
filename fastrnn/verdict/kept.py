"""Files of what was measured on this machine: where they are, what they were found with, and how they are written.

Each is one JSON file in ``$FASTRNN_CACHE_DIR``, ``$XDG_CACHE_HOME/fastrnn`` or ``~/.cache/fastrnn``. Its stamp says
what it was found with; where anything of that has changed since, the file counts for nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .._kernels import ext

DAMAGE = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError)
"""What reading a file raises that was damaged, or written by something else."""


def folder() -> Path:
    """Where everything is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("FASTRNN_CACHE_DIR") or os.path.join(cache, "fastrnn"))


def path_of(kind: str, name: str) -> Path:
    """The file of ``kind`` for what is called ``name``."""
    label = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return folder() / f"{kind}-{label}.json"


def today() -> str:
    """The date of what is found now."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")


@functools.cache
def digest() -> str:
    """Of the extension's file: it changes whenever the kernels are built anew from other sources."""
    return hashlib.sha256(Path(ext.load().__file__).read_bytes()).hexdigest()


def stamp(**more: str) -> dict[str, str]:
    """What is found now is found with this."""
    version = sys.modules["fastrnn"].__version__  # nothing here imports the package that imports it
    return {"fastrnn": version, "torch": str(torch.__version__), **more, "extension": digest()}


def changes(before: dict[str, str], now: dict[str, str]) -> str | None:
    """What of a stamp has changed, in words, or None."""
    changed = [key for key in now if before.get(key) != now[key]]
    if changed == ["extension"]:
        return "the kernels were built anew"
    return "; ".join(f"{key} was {before.get(key)} and is {now[key]}" for key in changed if key != "extension") or None


def read(path: Path, check: Callable[[Any], object], now: dict[str, str]) -> Any:
    """The content of a file; in words why it does not count; None if there is no file.

    ``check`` raises one of ``DAMAGE`` for what is not ours. No file makes this fail, whatever is in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check(content)
        changed = changes(content["stamp"], now)
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        return f"{path} is damaged, {type(error).__name__}: {error}"
    return f"{path} no longer holds ({changed})" if changed else content


def prepare() -> None:
    """Makes the folder; an OSError says now what would hinder ``write`` later."""
    folder().mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder()).close()


def write(path: Path, content: Any) -> None:
    """Writes a file, all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, written = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, path)
    except BaseException:
        os.unlink(written)
        raise


def remove(path: Path) -> bool:
    """Deletes a file; whether there was one."""
    there = path.exists()
    path.unlink(missing_ok=True)
    return there
