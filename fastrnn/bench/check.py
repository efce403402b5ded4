"""``python -m fastrnn check``: are the layers right on this machine?

Every layer and cell, on every device and backend there is, against ``torch.nn`` with the same weights: outputs, states
and all gradients have to be within the lab's error budget (`gate`) of float64. What ``torch.nn`` does not have is held
against a loop over PyTorch's operations. In float64 the gradients are also checked against finite differences.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch

import fastrnn

from .._backends import dispatch
from ..registry import CELLS, OWN_CELLS
from .case import DROP_SEED, Case, build, make_inputs, make_weights
from .gate import Error
from .measure import Setting, check

_DTYPES = ("float64", "float32", "bfloat16", "float16")


def _cases() -> Iterator[Case]:
    for cell in {(cell.layer, cell.nonlinearity): cell for cell in (*CELLS.values(), *OWN_CELLS.values())}.values():
        plain = Case(cell.layer, 7, 3, 5, 6, mode="training", nonlinearity=cell.nonlinearity or "")
        yield plain
        yield replace(plain, layers=2, directions=2)
        if cell.projects:
            yield replace(plain, P=4)
        yield replace(plain, T=1, call="step")
    yield Case("SLSTM", 7, 3, 5, 6, mode="training", option="forget_gate=exp")
    for option in ("num_heads=2", "zoneout=0.2", "recurrent_dropout=0.2", "weight_dropout=0.2"):
        yield Case("LSTM", 7, 3, 5, 6, layers=2, directions=2, mode="training", option=option)


def _gradcheck(case: Case, device: str) -> bool:
    small = replace(case, T=min(case.T, 3), B=2, dtype="float64")
    module = build(small.layer(fastrnn), small, device, {k: w.double() for k, w in make_weights(case).items()})
    inputs = make_inputs(small, device)[0]

    def call(x, *rest):
        torch.manual_seed(DROP_SEED)
        states = rest[: len(case.states)]
        output, final = module(x, states if len(states) > 1 else states[0])
        return output, *(final if isinstance(final, tuple) else (final,))

    given = (*inputs.leaves, *module.parameters())
    return torch.autograd.gradcheck(call, given, raise_exception=False, fast_mode=True)


def _obstacles(backend: str, device: str, dtype: str, case: Case | None = None) -> list[str]:
    mode, extended = ("LSTM", False) if case is None or case.is_torchs else ("", True)
    call = dispatch.Call(mode, device, getattr(torch, dtype), T=1, B=1, I=1, H=1, extended=extended)
    return dispatch.why_not(backend, call)


def _check(case: Case, device: str, backend: str) -> bool:
    """Whether a case is right on a backend; prints its row."""
    worst: Error = check(case, Setting(torch.device(device), backend))[0]
    gradients = "-"
    if case.dtype == "float64":
        with fastrnn.backend(backend):
            gradients = "passed" if _gradcheck(case, device) else "FAILED"
    passed = worst.ok and gradients != "FAILED"
    row = (
        f"{case.cell + ('Cell' if case.is_step else ''):<16} {case.shape:<60} {device:<5} {backend:<10} {case.dtype:<9}"
    )
    figures = f"{worst.ours:>8.1e} {worst.budget:>8.1e} {worst.tensor:<24} {gradients:<9}"
    print(f"{row} {figures} {'ok' if passed else 'WRONG'}", flush=True)
    return passed


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns 0 if every row passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m fastrnn check", description=__doc__.split("\n\n")[0])
    here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument("--device", choices=here, help=f"check one device only (default: {' and '.join(here)})")
    parser.add_argument("--dtype", choices=_DTYPES, help="check one type only")
    options = parser.parse_args(argv)
    devices = [options.device] if options.device else here
    dtypes = [options.dtype] if options.dtype else _DTYPES
    print(f"{'layer':<16} {'':<60} {'dev.':<5} {'backend':<10} {'dtype':<9} {'error':>8} {'allowed':>8} of")
    passed = {
        (case, device, backend, dtype): _check(replace(case, dtype=dtype), device, backend)
        for case in _cases()
        for device in devices
        for backend in dispatch.BACKENDS
        for dtype in dtypes
        if not _obstacles(backend, device, dtype, case)
    }
    print(f"{sum(passed.values())} of {len(passed)} within twice torch's error against float64")
    for backend in dispatch.BACKENDS:
        if not any(ran == backend for _, _, ran, _ in passed):
            reasons = dict.fromkeys(r for device in devices for r in _obstacles(backend, device, "float32"))
            print(f"not checked: {backend} ({'; '.join(reasons)})")
    return 0 if all(passed.values()) else 1
