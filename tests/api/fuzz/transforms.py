"""The contexts that transform a call: derivatives of derivatives, forward mode, torch.func and make_fx."""

from __future__ import annotations

import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from .contexts import CONTEXTS, Results, asked_of, context, gradients, incoming, wanted_of
from .sides import Side, base, can_want, wants

DERIVED = (
    "backward",
    "double",
    "batched-grads",
    "vmap",
    "jvp",
    "dual",
    "vjp",
    "grad",
    "jacrev",
    "jacfwd",
    "per-sample",
    "jacobian",
)
"""What the truth goes through, too. In the other contexts it is called plainly."""


def _names(side: Side) -> list[str]:
    """The arguments that are transformed: those that want gradients, or else the input."""
    tensors = [n for n, t in side.arguments.items() if isinstance(t, Tensor)]
    return [n for n in tensors if wants(side.case, n)] or ["input"]


class _Function:
    """A call as a function of some arguments to the tensors that can be differentiated; ``places`` names these."""

    def __init__(self, side: Side, names: list[str] | None = None) -> None:
        self.side, self.names = side, _names(side) if names is None else names
        self.values = [side.arguments[name] for name in self.names]
        self.places: list[str] = []

    def __call__(self, *values):
        results = self.side.call({**self.side.arguments, **dict(zip(self.names, values))})
        kept = {
            place: r
            for place, r in results.items()
            if isinstance(r, Tensor) and (r.is_floating_point() or r.is_complex())
        }
        self.places = list(kept)
        return tuple(kept.values())

    def named(self, results, prefix: str = "") -> Results:
        return {f"{prefix}{place}": r for place, r in zip(self.places, results)}

    def by_argument(self, values, prefix: str = "gradient of ") -> Results:
        return {f"{prefix}{name}": v for name, v in zip(self.names, values)}

    def tangents(self) -> tuple[Tensor, ...]:
        drawn = (base(self.side.case, f"tangent of {n}", tuple(v.shape)) for n, v in zip(self.names, self.values))
        return tuple(t.to(v.dtype) for t, v in zip(drawn, self.values))

    def loss(self, *values):
        return sum(r.abs().square().sum() for r in self(*values))


def _norm(grads) -> Tensor | None:
    squares = [g.abs().square().sum() for g in grads if g is not None and g.requires_grad]
    return sum(squares) if squares else None


@context
def _double(side: Side) -> Results:
    results = side.call(side.arguments)
    first = gradients(side, results, create_graph=True)
    # The truth has the gradients of everything.
    total = _norm(g for name, g in first.items() if can_want(side.case, name.removeprefix("gradient of ")))
    wanted = wanted_of(side)
    if total is None:
        return results | first
    second = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return results | first | {f"second gradient of {name}": g for name, g in zip(wanted, second)}


@context
def _batched_grads(side: Side) -> Results:
    results = side.call(side.arguments)
    asked, wanted = asked_of(side, results), wanted_of(side)
    if not asked or not wanted:
        return results
    given = [torch.stack([g, g * 0.5]) for g in (incoming(side, place, r) for place, r in asked.items())]
    grads = torch.autograd.grad(
        list(asked.values()), list(wanted.values()), given, is_grads_batched=True, allow_unused=True
    )
    return results | {f"gradient of {name}": g for name, g in zip(wanted, grads)}


@context
def _vmap(side: Side) -> Results:
    f = _Function(side)
    return f.named(func.vmap(f)(*(torch.stack((v, (v * 0.5).to(v.dtype))) for v in f.values)))


@context
def _jvp(side: Side) -> Results:
    f = _Function(side)
    results, tangents = func.jvp(f, tuple(f.values), f.tangents())
    return f.named(results) | f.named(tangents, "tangent of ")


@context
def _dual(side: Side) -> Results:
    f = _Function(side)
    with forward_ad.dual_level():
        pairs = [forward_ad.unpack_dual(r) for r in f(*map(forward_ad.make_dual, f.values, f.tangents()))]
        return f.named([p for p, _ in pairs]) | f.named([t for _, t in pairs], "tangent of ")


@context
def _vjp(side: Side) -> Results:
    f = _Function(side)
    results, pull = func.vjp(f, *f.values)
    given = tuple(incoming(side, place, r) for place, r in zip(f.places, results))
    return f.named(results) | f.by_argument(pull(given))


@context
def _grad(side: Side) -> Results:
    f = _Function(side)
    return f.by_argument(func.grad(f.loss, argnums=tuple(range(len(f.values))))(*f.values))


@context
def _jacrev(side: Side) -> Results:
    f = _Function(side, ["input"])
    return f.named([j for (j,) in func.jacrev(f, argnums=(0,))(*f.values)], "jacobian of ")


@context
def _jacfwd(side: Side) -> Results:
    f = _Function(side, ["input"])
    return f.named([j for (j,) in func.jacfwd(f, argnums=(0,))(*f.values)], "jacobian of ")


@context
def _jacobian(side: Side) -> Results:
    f = _Function(side, ["input"])
    found = torch.autograd.functional.jacobian(f, tuple(f.values), vectorize=True)
    return f.named([j for (j,) in found], "jacobian of ")


@context
def _per_sample(side: Side) -> Results:
    """Gradients by sample of everything that wants them, over two inputs."""
    f = _Function(side)
    fixed = tuple(None if name != "input" else 0 for name in f.names)
    if "input" not in f.names:
        f = _Function(side, ["input", *f.names])
        fixed = (0, *fixed)
    values = [torch.stack((v, (v * 0.5).to(v.dtype))) if name == "input" else v for name, v in zip(f.names, f.values)]
    per_sample = func.vmap(func.grad(f.loss, argnums=tuple(range(len(values)))), in_dims=fixed)
    return f.by_argument(per_sample(*values))


@context
def _make_fx(side: Side) -> Results:
    f = _Function(side)
    return f.named(make_fx(f)(*f.values)(*f.values))


def of_the_truth(name: str):
    """The context in which the truth is evaluated for one of ``CONTEXTS``."""
    return CONTEXTS[name if name in DERIVED else "plain"]
