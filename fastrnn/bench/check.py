"""``python -m fastrnn check``: are the layers right on this machine?

Every layer and cell, on every device and backend there is, against ``torch.nn`` with the same weights: outputs, states
and all gradients are compared with float64 on the CPU, and fastrnn's error may be twice torch's own in that type plus a
floor of a few roundings. In float64 the gradients are also checked against finite differences.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._backends import dispatch
from ..conversion import convert
from ..registry import CELLS

_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FLOOR_ROUNDINGS = 16  # of the largest value compared


@dataclass
class Case:
    """A torch module with the input and the states it is called with, float64 on the CPU."""

    name: str
    module: nn.Module
    input: Tensor
    hx: tuple[Tensor, ...]


@dataclass
class Row:
    """One line of the table."""

    case: str
    device: str
    backend: str
    dtype: str
    error: float
    torch_error: float
    gradcheck: str
    passed: bool


def _cases() -> Iterator[Case]:
    torch.manual_seed(0)
    T, B, I, H = 7, 3, 5, 6
    for cell in CELLS.values():
        options = {"nonlinearity": cell.nonlinearity} if cell.nonlinearity else {}
        label = f" {cell.nonlinearity}" if cell.nonlinearity else ""
        variants = [("", {}), (", 2 layers, bidirectional", {"num_layers": 2, "bidirectional": True})]
        if cell.mode == "LSTM":
            variants.append((", projected", {"proj_size": 4}))
        for text, extra in variants:
            module = getattr(nn, cell.layer)(I, H, **options, **extra).double()
            rows = module.num_layers * (2 if module.bidirectional else 1)
            widths = [module.proj_size or H, H][: cell.states]
            hx = tuple(torch.randn(rows, B, width, dtype=torch.float64) for width in widths)
            yield Case(cell.layer + label + text, module, torch.randn(T, B, I, dtype=torch.float64), hx)
        step = getattr(nn, cell.step)(I, H, **options).double()
        hx = tuple(torch.randn(B, H, dtype=torch.float64) for _ in range(cell.states))
        yield Case(cell.step + label, step, torch.randn(B, I, dtype=torch.float64), hx)


def _flat(result) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in _flat(part)]


def _run(module: nn.Module, case: Case, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Outputs, states and all gradients, as float64 on the CPU."""
    module = module.to(device, dtype)
    inputs = [t.to(device, dtype).requires_grad_() for t in (case.input, *case.hx)]
    outputs = _flat(module(inputs[0], tuple(inputs[1:]) if len(inputs) > 2 else inputs[1]))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(device, dtype) for t in outputs]
    grads = torch.autograd.grad(outputs, [*inputs, *module.parameters()], weights)
    return [t.detach().to("cpu", torch.float64) for t in (*outputs, *grads)]


def _error(values: list[Tensor], exact: list[Tensor]) -> float:
    # A NaN would vanish in max(); it must fail instead.
    errors = torch.stack([(v - e).abs().max() for v, e in zip(values, exact)])
    return float("inf") if errors.isnan().any() else errors.max().item()


def _gradcheck(module: nn.Module, case: Case, device: str) -> bool:
    module = module.to(device, torch.float64)
    inputs = [t[..., :2, :].detach().to(device).requires_grad_() for t in case.hx]
    data = case.input[:3, :2] if case.input.dim() == 3 else case.input[:2]
    inputs = [data.detach().to(device).requires_grad_(), *inputs]
    parameters = list(module.parameters())

    def call(x, *rest):
        states = rest[: len(case.hx)]
        return tuple(_flat(module(x, states if len(states) > 1 else states[0])))

    return torch.autograd.gradcheck(call, (*inputs, *parameters), raise_exception=False, fast_mode=True)


def _check(case: Case, device: str, backend: str, dtype: torch.dtype, exact: list[Tensor]) -> Row:
    name = str(dtype).removeprefix("torch.")
    torch_error = _error(_run(copy.deepcopy(case.module), case, device, dtype), exact)
    with dispatch.backend(backend):
        error = _error(_run(convert(case.module), case, device, dtype), exact)
        gradients = _gradcheck(convert(case.module), case, device) if dtype == torch.float64 else None
    floor = _FLOOR_ROUNDINGS * torch.finfo(dtype).eps * max(t.abs().max().item() for t in exact)
    passed = error <= 2 * torch_error + floor and gradients is not False
    verdict = "" if gradients is None else "passed" if gradients else "FAILED"
    return Row(case.name, device, backend, name, error, torch_error, verdict, passed)


def _obstacles(backend: str, device: str, dtype: torch.dtype) -> list[str]:
    return dispatch.why_not(backend, dispatch.Call("LSTM", device, dtype, T=1, B=1, I=1, H=1))


def run(devices: list[str], dtypes: list[str]) -> list[Row]:
    """Checks everything that can run here; rows come in the order they are printed."""
    rows = []
    for case in _cases():
        exact = _run(copy.deepcopy(case.module), case, "cpu", torch.float64)
        for device in devices:
            for backend in dispatch.BACKENDS:
                for name in dtypes:
                    if not _obstacles(backend, device, _DTYPES[name]):
                        rows.append(_check(case, device, backend, _DTYPES[name], exact))
                        _print(rows[-1])
    return rows


def _print(row: Row) -> None:
    verdict = "ok" if row.passed else "WRONG"
    print(
        f"{row.case:<34} {row.device:<5} {row.backend:<10} {row.dtype:<9} {row.error:>9.1e} {row.torch_error:>9.1e} "
        f"{row.gradcheck:<9} {verdict}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns 0 if every row passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m fastrnn check", description=__doc__.split("\n\n")[0])
    here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser.add_argument("--device", choices=here, help=f"check one device only (default: {' and '.join(here)})")
    parser.add_argument("--dtype", choices=_DTYPES, help="check one type only")
    options = parser.parse_args(argv)
    devices = [options.device] if options.device else here
    dtypes = [options.dtype] if options.dtype else list(_DTYPES)
    print(f"{'layer':<34} {'dev.':<5} {'backend':<10} {'dtype':<9} {'error':>9} {'torch':>9} {'gradcheck':<9}")
    rows = run(devices, dtypes)
    wrong = [row for row in rows if not row.passed]
    print(f"{len(rows) - len(wrong)} of {len(rows)} within twice torch's error against float64")
    for backend in dispatch.BACKENDS:
        if not any(row.backend == backend for row in rows):
            reasons = dict.fromkeys(r for device in devices for r in _obstacles(backend, device, torch.float32))
            print(f"not checked: {backend} ({'; '.join(reasons)})")
    return 1 if wrong else 0
