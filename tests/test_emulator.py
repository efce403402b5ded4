"""The CUDA kernels and their bindings, run on the CPU by the emulator, against formulas in float64.

Error budget: the error of a tensor, in the 2-norm, is at most BUDGET[precision] times the precision's unit of
rounding times the norm of the float64 result (a result whose typical value is under 0.1 counts as if it were 0.1).
"""

import importlib.util
import itertools
import math
import os
import subprocess

import pytest
import torch
from emulator import build, oracle

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler to build the emulator with")

DTYPES = {"float64": torch.float64, "float32": torch.float32, "tf32": torch.float32}
DTYPES |= {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NUMBER = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
ROUNDING = {"float64": 2**-53, "float32": 2**-24, "tf32": 2**-11, "bfloat16": 2**-8, "float16": 2**-11}
BUDGET = {"float64": 8, "float32": 8, "tf32": 4, "bfloat16": 4, "float16": 4}

# (name, how to ask for it, precisions it exists in): every kernel that a step can run on.
KERNELS = [
    ("update", dict(fused=False), ["float64", "float32", "bfloat16", "float16"]),
    ("fma8", dict(fused=True, rows=8), ["float64", "float32"]),
    ("fma16", dict(fused=True, rows=16), ["float32"]),
    ("mma8", dict(fused=True, tensor_cores=True, rows=8), ["tf32", "bfloat16", "float16"]),
    ("mma32", dict(fused=True, tensor_cores=True, rows=32), ["tf32", "bfloat16", "float16"]),
]
CASES = [
    pytest.param(cell, kernel, precision, id=f"{oracle.MODES[cell]}-{name}-{precision}")
    for name, kernel, precisions in KERNELS
    for precision in precisions
    for cell in range(len(oracle.MODES))
]
# T B I H: one element; rows and units that fill no tile; more rows than a tile; 16-byte rows that end inside a chunk.
SHAPES = [(1, 1, 1, 1), (3, 3, 2, 17), (2, 33, 3, 3), (2, 17, 1, 33), (2, 9, 3, 40)]

ran = set()


@pytest.fixture(scope="module")
def cuda(request):
    spec = importlib.util.spec_from_file_location("fastrnn_emulated", build.module())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.cuda
    module.cuda.follow_plan()
    report = request.config.pluginmanager.getplugin("terminalreporter")
    report.write_line(f"\nemulator: {len(ran)} kernel x cell x dtype cases (forward and backward apart)")


@pytest.fixture(autouse=True)
def restored(cuda):
    yield
    cuda.follow_plan()


class Layer:
    """Random arguments of a layer call, and the results that the formulas give for them."""

    def __init__(self, cell, precision, shape, directions=1, packed=False, biased=True, projection=None, seed=0):
        T, B, I, H = shape
        R, G, D = projection or H, oracle.GATES[cell], directions
        self.cell, self.dtype, self.precision = cell, DTYPES[precision], precision
        self.biased, self.projected, self.D, self.R = biased, projection is not None, D, R
        self.random = torch.Generator().manual_seed(seed)
        self.lengths = sorted((1 + (b * 7 + seed) % T for b in range(B)), reverse=True) if packed else [T] * B
        self.lengths[0] = T
        self.batch_sizes = torch.tensor([sum(n > t for n in self.lengths) for t in range(T)]) if packed else None
        self.kept = torch.tensor([[t < n for n in self.lengths] for t in range(T)])
        self.x = self.draw(T, B, I)
        self.hx = [self.draw(D, B, R)] + ([self.draw(D, B, H)] if cell == 0 else [])
        sizes = [(G * H, I), (G * H, R)] + [(G * H,)] * (2 * biased) + [(R, H)] * self.projected
        self.weights = [self.draw(*size) / math.sqrt(H) for _ in range(D) for size in sizes]
        self.grad_output = self.draw(T, B, D * R)
        self.grad_hn = [self.draw(*h.shape) for h in self.hx]

    def draw(self, *size):
        return torch.randn(size, generator=self.random).to(self.dtype)

    def rows(self, tensor):
        return tensor if self.batch_sizes is None else tensor[self.kept]

    def expected(self):
        """output, hn, grad_x, grad_hx, grad_weights in float64."""
        x, *rest = (t.double().requires_grad_() for t in [self.x, *self.hx, *self.weights])
        hx, weights = rest[: len(self.hx)], rest[len(self.hx) :]
        output, hn = oracle.layer(self.cell, x, self.lengths, hx, weights, self.biased, self.projected)
        grads = [(self.grad_output * self.kept[..., None]).double(), *(g.double() for g in self.grad_hn)]
        grad_x, *grad = torch.autograd.grad([output, *hn], [x, *rest], grads)
        return self.rows(output), hn, self.rows(grad_x), grad[: len(hx)], grad[len(hx) :]

    def forward(self, cuda, save=True):
        torch.backends.cudnn.rnn.fp32_precision = "tf32" if self.precision == "tf32" else "ieee"
        return cuda.layer_forward(self.cell, self.rows(self.x), self.batch_sizes, self.hx, self.weights, save)

    def backward(self, cuda, output, saved, needs=(True, True, True)):
        gradients = self.rows(self.grad_output), self.grad_hn
        inputs = self.rows(self.x), self.batch_sizes, self.hx, self.weights
        return cuda.layer_backward(self.cell, *gradients, *inputs, output, saved, list(needs))

    def check(self, cuda):
        output, hn, saved = self.forward(cuda)
        found = output, hn, *self.backward(cuda, output, saved)
        names = "output", "hn", "grad_x", "grad_hx", "grad_weights"
        for name, got, want in zip(names, found, self.expected(), strict=True):
            pairs = [(got, want)] if isinstance(got, torch.Tensor) else list(zip(got, want, strict=True))
            for index, (g, w) in enumerate(pairs):
                assert g.dtype == self.dtype and g.shape == w.shape, (name, index)
                scale = max(w.norm().item(), 0.1 * math.sqrt(w.numel())) * ROUNDING[self.precision]
                error = (g.double() - w).norm().item() / scale
                assert error <= BUDGET[self.precision], f"{name}[{index}]: {error:.1f} units of rounding"


@pytest.mark.parametrize("cell, kernel, precision", CASES)
def test_every_kernel_against_the_formulas(cuda, cell, kernel, precision):
    cuda.override_plan(**kernel)
    for number, shape in enumerate(SHAPES):
        for directions, packed in itertools.product((1, 2), (False, True)):
            if number > 1 and directions + packed != 1 + number % 3:  # the full product for the small shapes alone
                continue
            Layer(cell, precision, shape, directions, packed, seed=number).check(cuda)
    for way in ("forward", "backward"):
        ran.add((way, tuple(kernel.items()), cell, DTYPES[precision], precision))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("biased", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("fused", [False, True], ids=["update", "fused"])
def test_projected_lstm(cuda, fused, precision, packed, biased):
    mma = precision in ("bfloat16", "float16")
    cuda.override_plan(fused=fused, tensor_cores=mma and fused, rows=8 if fused else 0)
    Layer(0, precision, (3, 5, 3, 17), 2, packed, biased, projection=7).check(cuda)
    ran.add(("gather_projected", 0, precision))


@pytest.mark.parametrize("cell", range(4))
def test_layers_without_biases(cuda, cell):
    for fused in (False, True):
        cuda.override_plan(fused=fused, rows=8 if fused else 0)
        Layer(cell, "float64", (3, 3, 2, 17), 2, biased=False).check(cuda)


@pytest.mark.parametrize("kernel", [kernel for _, kernel, _ in KERNELS], ids=[name for name, *_ in KERNELS])
@pytest.mark.parametrize("cell", range(4))
def test_nothing_is_overwritten_and_a_second_backward_agrees_bit_for_bit(cuda, cell, kernel):
    cuda.override_plan(**kernel)
    layer = Layer(cell, "float32", (3, 9, 2, 17), 2, packed=True)
    output, hn, saved = layer.forward(cuda)
    given = [layer.x, *layer.hx, *layer.weights, layer.grad_output, *layer.grad_hn, output, *hn, *saved]
    copies = [t.clone() for t in given]
    first, second = layer.backward(cuda, output, saved), layer.backward(cuda, output, saved)
    assert all(torch.equal(t, copy) for t, copy in zip(given, copies, strict=True))
    flat = [[grads[0], *grads[1], *grads[2]] for grads in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True))
    assert len({t.data_ptr() for t in flat[0]}) == len(flat[0])


@pytest.mark.parametrize("cell", range(4))
def test_without_save_the_results_are_the_same_and_nothing_is_kept(cuda, cell):
    for packed in (False, True):
        layer = Layer(cell, "float32", (4, 5, 2, 17), 2, packed)
        (output, hn, saved), (again, hn_again, nothing) = layer.forward(cuda), layer.forward(cuda, save=False)
        assert torch.equal(output, again) and all(map(torch.equal, hn, hn_again)) and nothing == []
        assert layer.cell >= 2 or saved


def test_backward_gives_what_is_asked_for(cuda):
    layer = Layer(0, "float64", (3, 3, 2, 5), 2, packed=True)
    output, _, saved = layer.forward(cuda)
    everything = layer.backward(cuda, output, saved)
    for needs in itertools.product((False, True), repeat=3):
        for asked, got, want in zip(needs, layer.backward(cuda, output, saved, needs), everything, strict=True):
            assert (got is not None) == asked
            if asked:
                pairs = [(got, want)] if isinstance(got, torch.Tensor) else zip(got, want, strict=True)
                assert all(torch.equal(g, w) for g, w in pairs)


def test_any_strides_are_welcome(cuda):
    plain = Layer(1, "float64", (3, 4, 5, 6))
    strided = Layer(1, "float64", (3, 4, 5, 6))
    for name in ("x", "grad_output"):
        setattr(strided, name, getattr(plain, name).permute(2, 1, 0).contiguous().permute(2, 1, 0))
    strided.weights = [w.t().contiguous().t() if w.dim() == 2 else w for w in plain.weights]
    assert not strided.x.is_contiguous()
    strided.check(cuda)


def test_a_call_that_makes_no_sense_says_why(cuda):
    def message(change):
        layer = Layer(0, "float64", (3, 4, 5, 6), packed=True)
        change(layer)
        with pytest.raises(RuntimeError) as caught:
            layer.forward(cuda)
        return str(caught.value)

    def set_size(index, value):
        return lambda layer: layer.batch_sizes.__setitem__(index, value)

    assert "batch_sizes must be positive and not increase, got 9 at index 1" in message(set_size(1, 9))
    assert "batch_sizes must sum to N" in message(set_size(0, 5))
    assert "hx must have 2 tensors for LSTM, got 1" in message(lambda layer: layer.hx.pop())
    assert "w_hh must be Double of shape [24, 6]" in message(lambda layer: layer.weights.insert(1, torch.ones(24, 5)))
    assert "cell must be 0 to 3, got 7" in message(lambda layer: setattr(layer, "cell", 7))


def test_a_refused_launch_is_reported_with_kernel_and_shape(cuda):
    cuda.override_plan(fused=True, tensor_cores=True, rows=24)
    with pytest.raises(RuntimeError, match=r"LSTM forward step \(fused mma, 24 rows a block, bfloat16\).*B = 4, H = 6"):
        Layer(0, "bfloat16", (3, 4, 5, 6)).forward(cuda)


PLAN = dict(cell=0, dtype=2, tf32=False, backward=False, batch=16, hidden=512, recurrent=512, directions=1)


@pytest.mark.parametrize(
    "change, want",
    [
        ({}, dict(fused=True, tensor_cores=True, rows=32)),
        (dict(batch=8), dict(fused=True, tensor_cores=True, rows=8)),
        (dict(batch=1024, hidden=2048, recurrent=2048), dict(fused=False, tensor_cores=False, rows=0)),
        (dict(dtype=1), dict(fused=True, tensor_cores=False, rows=16)),
        (dict(dtype=1, tf32=True), dict(fused=True, tensor_cores=True, rows=32)),
        (dict(dtype=1, tf32=True, capability=75), dict(fused=True, tensor_cores=False, rows=16)),
        (dict(dtype=0), dict(fused=True, tensor_cores=False, rows=8)),
        (dict(capability=75), dict(fused=False, tensor_cores=False, rows=0)),
        (dict(dtype=3, capability=75), dict(fused=True, tensor_cores=True, rows=32)),
        (dict(recurrent=64, backward=True), dict(fused=False, tensor_cores=False, rows=0)),
        (dict(recurrent=64), dict(fused=True, tensor_cores=True, rows=32)),
    ],
)
def test_plan(cuda, change, want):
    assert cuda.plan(**{**PLAN, "capability": 90, **change}) == want


def test_plan_only_chooses_kernels_that_exist(cuda):
    exist = [(kernel, DTYPE_NUMBER[DTYPES[p]], p == "tf32") for _, kernel, precisions in KERNELS for p in precisions]
    exist = {(k["fused"], k.get("tensor_cores", False), k.get("rows", 0), dtype) for k, dtype, _ in exist}
    sizes = itertools.product(range(4), range(4), (False, True), (1, 8, 9, 64, 4096), (1, 33, 512, 4096), (75, 80, 120))
    for cell, dtype, tf32, batch, hidden, capability in sizes:
        kernel = cuda.plan(cell, dtype, tf32, False, batch, hidden, hidden, 2, capability)
        assert (*kernel.values(), dtype) in exist


def race(*arguments):
    """Runs under ThreadSanitizer; without address randomisation, which it cannot live with on some systems."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    command = ["setarch", "-R", build.race_program(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_the_race_detector_is_silent():
    done = race()
    assert done.returncode == 0 and done.stdout == "ran\n" and done.stderr == "", done.stderr[-3000:]


def test_the_race_detector_speaks_when_a_barrier_is_missing():
    done = race("without-barriers")
    assert done.returncode == 66 and "data race" in done.stderr, done.stderr[-3000:]
