"""Measuring fastrnn against torch.nn: `python -m fastrnn bench`, and what benchmarks/run.py is built on."""

from .cli import main

__all__ = ["main"]
