"""`python -m fastrnn prove`: the CUDA kernels against torch.nn on the GPU at hand; `_proof` reads what it finds."""

from .cli import main

__all__ = ["main"]
