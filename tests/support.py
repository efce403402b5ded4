"""What the tests share: torch's module beside ours, the judgement of results, and the choice of cases.

Truth is ``torch.nn`` in float64 on the CPU, from the same (rounded) weights and inputs; the error budget is that of the
lab, ``fastrnn.bench.gate``.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

import fastrnn
from fastrnn._kernels import ext, ops
from fastrnn._spec import pack, slots_of
from fastrnn.bench.gate import errors
from fastrnn.registry import BY_NUMBER, CELLS, Cell

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYERS = tuple({cell.layer: cell for cell in CELLS.values()}.values())
"""One cell for every class of layer."""
LACKING = ops.missing("cpu")
compiled = pytest.mark.skipif(LACKING is not None, reason=f"no CPU kernels: {LACKING}")
KERNELS = ext.load().cpu if LACKING is None else None
ISAS = KERNELS.supported_isas() if KERNELS else ["none"]
"""The instruction sets of this machine that the CPU kernels have."""


@contextlib.contextmanager
def using(isa: str | None = None, threads: int | None = None):
    """One of ISAS, all of its instructions even where it is faster without some, and a number of threads, for a while;
    what is None stays as it is, and may be changed meanwhile."""
    before = KERNELS and KERNELS.isa(), torch.get_num_threads()
    try:
        if isa is not None:
            KERNELS.set_isa(isa)
            KERNELS.use_dot_products(True)
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        if KERNELS:
            KERNELS.set_isa(before[0])
        if isa is not None:
            KERNELS.use_dot_products(None)
        torch.set_num_threads(before[1])


def available() -> list[str]:
    """The backends that can run on this machine."""
    compiled = [name for name in ("cpu", "cuda") if ops.missing(name) is None]
    if not torch.cuda.is_available():
        compiled = [name for name in compiled if name != "cuda"]
    return ["reference", "aten", *compiled]


OWN_BACKENDS = [name for name in available() if name != "aten"]
"""All but torch's own layers."""


def device_of(backend: str | None) -> str:
    """Where the tensors of a test of this backend live."""
    return "cuda" if backend == "cuda" else "cpu"


def build(space, cell: Cell, *sizes: int, step: bool = False, **options) -> nn.Module:
    """The layer of ``cell`` (or its one-step module) from ``torch.nn`` or from ``fastrnn``."""
    if cell.nonlinearity:
        options["nonlinearity"] = cell.nonlinearity
    return getattr(space, cell.step if step else cell.layer)(*sizes, **options)


def twins(cell: Cell, *sizes: int, **options) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Ours, torch's and torch's in float64 on the CPU, with the same parameters."""
    theirs = build(nn, cell, *sizes, **options)
    ours = build(fastrnn, cell, *sizes, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, copy.deepcopy(theirs).cpu().double()


def tensors(result) -> list[Tensor]:
    """Every tensor in a module's result, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [t for part in result for t in tensors(part)]


def is_bfloat16_in_onednn() -> bool:
    """Whether oneDNN, and with it torch's autocast, has LSTMs in bfloat16 on this CPU."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def under_autocast(module: nn.Module, low: torch.dtype, *args) -> list[Tensor]:
    """The tensors in a module's result under autocast to ``low``.

    torch gives an LSTM's rows of one length to oneDNN, which raises where it lacks the type on a CPU: float16 on most,
    bfloat16 without AVX-512. There an input in bfloat16 does not reach it, and torch mixes types. In both cases the
    result here is that of torch's plain LSTM in the low type.
    """
    device = next(module.parameters()).device.type
    theirs = type(module) is nn.LSTM and device == "cpu"
    if not (theirs and tensors(args)[0].dtype == torch.bfloat16 and not is_bfloat16_in_onednn()):
        with torch.autocast(device, low):
            try:
                return tensors(module(*args))
            except RuntimeError as error:
                assert theirs and "primitive descriptor" in str(error), error
    plain = {name: p.to(low) for name, p in module.named_parameters()}
    given = tree_map(lambda t: t.to(low) if isinstance(t, Tensor) and t.is_floating_point() else t, args)
    with torch.autocast(device, enabled=False):
        return tensors(torch.func.functional_call(module, plain, given))


def like(module: nn.Module, value):
    """``value`` (a tensor, a tuple of them, None) as leaves of the module's type and device that want gradients."""
    if isinstance(value, (tuple, list)):
        return tuple(like(module, part) for part in value)
    if value is None:
        return None
    weight = next(module.parameters())
    return value.detach().to(weight).requires_grad_()


def cotangents(outputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The same random gradients for outputs of every type: representable in ``dtype``."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(o.shape, generator=generator).to(dtype).to(o) for o in outputs]


def evaluate(module: nn.Module, x, hx=None, lengths=None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Outputs, final states and the gradients of input, states and parameters, by name.

    ``lengths`` packs ``x``; ``dtype`` is the tested type, in which the gradients that come in are representable.
    """
    x, hx = like(module, x), like(module, hx)
    input = x
    if lengths is not None:
        input = pack_padded_sequence(x, lengths, getattr(module, "batch_first", False), enforce_sorted=False)
    outputs = tensors(module(input) if hx is None else module(input, hx))
    sources = {"input": x}
    if hx is not None:
        sources |= {f"state {i}": h for i, h in enumerate(tensors(hx))}
    sources |= dict(module.named_parameters())
    grads = torch.autograd.grad(outputs, list(sources.values()), cotangents(outputs, dtype or x.dtype))
    result = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    return result | {f"gradient of {name}": g for name, g in zip(sources, grads)}


def check(ours: Tensor, theirs: Tensor, truth: Tensor, what: str = "result") -> None:
    """Asserts the type, shape and device of torch's result, and our error to be within the budget."""
    check_all({what: ours}, {what: theirs}, {what: truth})


def check_all(ours: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """The same for every entry of three results of :func:`evaluate`."""
    assert list(ours) == list(theirs) == list(truth)
    for name, mine in ours.items():
        kind = theirs[name].dtype, theirs[name].shape, theirs[name].device
        assert (mine.dtype, mine.shape, mine.device) == kind, name
    worst, *_ = errors(list(ours), *(list(results.values()) for results in (ours, theirs, truth)))
    assert worst.ok, worst


def check_each(*results: Sequence[Tensor]) -> None:
    """The same for lists of tensors: ours, torch's and the truth."""
    for index, triple in enumerate(zip(*results, strict=True)):
        check(*triple, what=f"result {index}")


def agree(modules, call) -> None:
    """Checks the tensors that ``call`` gives for ours against those for torch's and the truth."""
    check_each(*(tensors(call(module)) for module in modules))


def given(hx):
    """Initial states, a list of them or a tensor, as a module of their number takes them."""
    return hx if isinstance(hx, Tensor) else tuple(hx) if len(hx) > 1 else hx[0]


def compare(modules, x, hx=None, lengths=None) -> None:
    """Runs the three modules of :func:`twins` forward and backward and checks ours against the budget."""
    dtype = next(modules[0].parameters()).dtype
    x = x.to(dtype)
    hx = like(modules[0], hx)
    check_all(*(evaluate(module, x, hx, lengths, dtype) for module in modules))


def off_the_kink(modules, x, hx):
    """Gives every unit of a relu layer inputs and weights that only add up, or only take away.

    In a 16-bit type some sums near 0 get the other sign, and an error of a whole gradient, in any implementation.
    """
    ours, theirs, truth = modules
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            signs = 1 - 2 * (torch.arange(p.size(0)) % 2).to(p)
            damping = min(1, 2 / theirs.hidden_size**0.5) if "weight_hh" in name else 1  # positive weights amplify
            p.copy_(p.abs() * damping * signs.view(-1, *[1] * (p.dim() - 1)))
    ours.load_state_dict(theirs.state_dict())
    truth.load_state_dict(theirs.state_dict())
    return x.abs(), None if hx is None else hx.abs()


def sample(step: bool) -> Tensor:
    """An input of four features for a step or a layer."""
    return torch.randn(*((2, 4) if step else (2, 3, 4)))


def random_states(cell: Cell, rows: int, batch: int, hidden: int, proj: int = 0):
    """Initial states, in the form the module of ``cell`` takes them."""
    h = torch.randn(rows, batch, proj or hidden)
    return (h, torch.randn(rows, batch, hidden)) if cell.states == 2 else h


def pairwise(factors: dict[str, tuple]) -> list[dict]:
    """Few combinations in which any two values of any two factors occur together."""
    names, rng = list(factors), random.Random(0)

    def pairs(case: dict) -> set:
        return set(itertools.combinations(tuple(case.items()), 2))

    left = {
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in factors[a] for y in factors[b]
    }  # fmt: skip
    cases = []
    while left:
        (a, x), (b, y) = min(left, key=str)
        drawn = [{name: rng.choice(factors[name]) for name in names} | {a: x, b: y} for _ in range(40)]
        cases.append(max(drawn, key=lambda case: len(pairs(case) & left)))
        left -= pairs(cases[-1])
    return cases


def pairs(**factors) -> pytest.MarkDecorator:
    """Parametrises a test with :func:`pairwise` combinations of factors: sequences, or dictionaries by test id.

    A factor that is named like a fixture of backends chooses the backend.
    """
    named = {
        name: values if isinstance(values, dict) else {name_of(value): value for value in values}
        for name, values in factors.items()
    }
    rows = pairwise({name: tuple(values) for name, values in named.items()})
    params = [pytest.param(*(named[name][key] for name, key in row.items()), id="-".join(row.values())) for row in rows]
    fixtures = [name for name in factors if name.endswith(("backend", "kernels"))]
    return pytest.mark.parametrize(list(factors), params, indirect=fixtures)


def name_of(value) -> str:
    """Test ids for cells, types and dictionaries of options."""
    if isinstance(value, Cell):
        return value.mode
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict):
        return "-".join(f"{key}={name_of(part)}" for key, part in value.items())
    return str(value).replace(" ", "")


cells = pytest.mark.parametrize("cell", CELLS.values(), ids=name_of)
layers = pytest.mark.parametrize("cell", LAYERS, ids=name_of)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
one_step = pytest.mark.parametrize("step", [False, True], ids=["layer", "step"])


# What layers of every kind do alike. ``call(module, x, hx, **asked)`` calls one.


def plainly(module, *args, **asked):
    return module(*args, **asked)


def check_layouts(module, first, x, hx=None, call=plainly) -> Tensor:
    """Packed rows, and the batch first (in ``first``), give what lengths and time first do, which is returned."""
    lengths = torch.tensor([2, 5, 1, 3])
    expected, last = call(module, x, hx, lengths=lengths)
    output, final = call(module, pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    torch.testing.assert_close((pad_packed_sequence(output)[0], final), (expected, last))
    first.load_state_dict(module.state_dict())
    torch.testing.assert_close(call(first, x.transpose(0, 1), hx)[0].transpose(0, 1), call(module, x, hx)[0])
    return expected


def check_compiled(module, *args, call=plainly) -> None:
    """A compiled copy gives what the layer gives, gradients too."""
    torch.compiler.reset()  # a process compiles a forward for so many modules only
    results = []
    for run in (fastrnn.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager"), module):
        outputs = tensors(call(run, *args))
        results.append([*outputs, *torch.autograd.grad(outputs[0].sum(), list(run.parameters()))])
    torch.testing.assert_close(*results)


def check_exported(module, *args) -> list[int]:
    """An exported program gives what the layer gives; the numbers of the cells in it."""
    program = torch.export.export(module, args)
    torch.testing.assert_close(tensors(program.module()(*args)), tensors(module(*args)))
    return [node.args[4][1] for node in program.graph.nodes if "fastrnn.layer_forward" in str(node.target)]


# Arguments of the layer operations (fastrnn/_spec.py).


def forward_arguments(
    cell: int,
    x: Tensor,
    batch_sizes: Tensor | None,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    save: int = 1,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    forwards: int | None = None,
    all_states: bool = False,
    mask: Tensor | None = None,
    seeds: Tensor | None = None,
    rates: tuple[float, ...] = (),
    first_step: int = 0,
) -> tuple:
    """``weights`` are flat, in torch's order."""
    slots = slots_of(BY_NUMBER[cell], weights, hx[0].size(0)) if cell < len(BY_NUMBER) else list(weights)
    spec = pack(cell, save, 1 if forwards is None else forwards, all_states, first_step)
    return x, [batch_sizes, lengths, resets, mask, seeds], list(hx), slots, spec, list(rates)


def backward_arguments(
    forward: tuple, grads: Sequence[Tensor | None], output: Tensor, saved: Sequence[Tensor], needs=(True, True, True)
) -> tuple:
    """Of the backward of a call with the arguments ``forward``, which gave ``output`` and ``saved``."""
    x, given, hx, weights, spec, scalars = forward
    return list(grads), x, given, hx, weights, [output, *saved], spec, scalars, list(needs)


def flat(grads) -> list[Tensor]:
    """All gradients that there are, in one list; those of weights in torch's order."""
    grad_x, grad_hx, grad_weights = grads
    found = [grad_x, *(grad_hx or []), *(grad_weights or [])]
    return [g for g in found if g is not None and (g.numel() or g.dim() > 1)]
