"""The backend choice: automatic, forced, explained, never silently replaced."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from support import available, build, cells, check, device_of, like, one_step, sample, tensors, twins
from torch.func import jacrev, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn._backends import choice, dispatch
from fastrnn._kernels import ops
from fastrnn.registry import CELLS


def chosen(module, x, hx=None) -> str:
    return fastrnn.explain(module, x, hx).backend


@cells
@one_step
def test_forced_backend_is_the_one_chosen(cell, step, backend):
    module = build(fastrnn, cell, 4, 5, step=step, device=device_of(backend))
    said = fastrnn.explain(module, sample(step).to(device_of(backend)))
    assert said.backend == backend
    assert set(said.reasons) == set(dispatch.BACKENDS) - {backend}
    assert all(reasons and all(isinstance(text, str) and text for text in reasons) for reasons in said.reasons.values())
    lines = str(said).splitlines()
    assert lines[0] == f"{backend}: chosen"
    assert lines[1:] == [f"{name}: {'; '.join(reasons)}" for name, reasons in said.reasons.items()]
    other = "aten" if backend == "reference" else "reference"
    assert said.reasons[other] == [f"backend {backend!r} is forced"]


@cells
@one_step
def test_automatic_choice_explains_itself(cell, step):
    """Every backend that is not chosen is either unable, with its reason, or ranked behind the one chosen."""
    module, x = build(fastrnn, cell, 4, 5, step=step), sample(step)
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            said = fastrnn.explain(module, x)
        assert said.call.grad == gradient
        order = dispatch.ranking(said.call)
        assert sorted(order) == sorted(dispatch.BACKENDS)
        assert said.backend in available()
        assert said.backend == next(name for name in order if not dispatch.why_not(name, said.call))
        for name, reasons in said.reasons.items():
            row = choice.torch_ahead(said.call) if name == "cpu" else None
            preferred = str(row or f"{said.backend} is preferred for this call")
            assert reasons == (dispatch.why_not(name, said.call) or [preferred])
        for name in ("cpu", "cuda"):
            if ops.missing(name):
                assert ops.missing(name) in said.reasons[name]
        assert "the tensors are on cpu" in said.reasons["cuda"]


def test_call_describes_what_was_passed():
    module = fastrnn.LSTM(4, 6, 2, bidirectional=True, proj_size=3, batch_first=True)
    call = fastrnn.explain(module, torch.randn(5, 7, 4)).call
    assert (call.mode, call.device, call.dtype) == ("LSTM", "cpu", torch.float32)
    assert (call.T, call.B, call.I, call.H, call.P, call.layers, call.directions) == (7, 5, 4, 6, 3, 2, 2)
    assert not call.packed and call.grad and not call.transformed
    packed = fastrnn.explain(module, pack_padded_sequence(torch.randn(5, 7, 4), [7, 3, 3, 2, 1], True)).call
    assert packed.packed and (packed.T, packed.B) == (7, 5)
    with torch.autocast("cpu"):
        assert fastrnn.explain(module, torch.randn(5, 7, 4)).call.dtype == torch.float32  # projected: c stays float32


def test_explain_checks_as_the_call_does():
    with pytest.raises(RuntimeError, match="Expected 4, got 7"):
        fastrnn.explain(fastrnn.GRU(4, 5), torch.randn(3, 2, 7))
    with pytest.raises(TypeError, match=r"expected a fastrnn layer or cell, got LSTM; see fastrnn\.convert"):
        fastrnn.explain(torch.nn.LSTM(4, 5), torch.randn(3, 2, 4))


def test_backend_nests_and_is_undone():
    module, x = fastrnn.LSTM(4, 5), sample(False)
    automatic = chosen(module, x)
    with fastrnn.backend("reference"):
        assert chosen(module, x) == "reference"
        with fastrnn.backend("aten"):
            assert chosen(module, x) == "aten"
            with fastrnn.backend(None):
                assert chosen(module, x) == automatic
            assert chosen(module, x) == "aten"
        with pytest.raises(KeyError), fastrnn.backend("aten"):
            raise KeyError("from the block")
        assert chosen(module, x) == "reference"
    assert chosen(module, x) == automatic


def test_backend_belongs_to_its_thread():
    module, x = fastrnn.GRU(4, 5), sample(False)
    automatic, seen = chosen(module, x), {}
    inside, done = threading.Event(), threading.Event()

    def other():
        with fastrnn.backend("aten"):
            inside.set()
            done.wait(10)
            seen["other"] = chosen(module, x)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    seen["main"] = chosen(module, x)
    with fastrnn.backend("reference"):
        done.set()
        thread.join()
        assert chosen(module, x) == "reference"
    assert seen == {"main": automatic, "other": "aten"}


def test_unknown_backend():
    with pytest.raises(ValueError, match="expected one of cuda, cpu, aten, reference or None, got 'cudnn'"):
        fastrnn.backend("cudnn").__enter__()


@one_step
def test_forced_backend_that_cannot_serve_is_an_error(step):
    module, x = build(fastrnn, CELLS["LSTM"], 4, 5, step=step), sample(step)
    reasons = [text for text in (ops.missing("cuda"), "the tensors are on cpu") if text]
    message = f"fastrnn: backend 'cuda' was asked for but cannot serve this call: {'; '.join(reasons)}"
    for ask in (lambda: module(x), lambda: fastrnn.explain(module, x)):
        with pytest.raises(RuntimeError) as info, fastrnn.backend("cuda"):
            ask()
        assert str(info.value) == message


def test_type_without_a_kernel():
    call = fastrnn.explain(fastrnn.GRU(4, 5), sample(False)).call._replace(dtype=torch.complex64)
    assert "there is no kernel for torch.complex64" in dispatch.why_not("cpu", call)


PROGRAM = """
import warnings, torch
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import fastrnn
    module, x = fastrnn.GRU(4, 5, 2, bidirectional=True), torch.randn(3, 2, 4)
    try:
        print(fastrnn.explain(module, x).backend)
        for _ in range(2):
            module(x)[0].sum().backward()
            fastrnn.GRUCell(4, 5)(x[0]).sum().backward()
        with fastrnn.backend("reference"):
            print(fastrnn.explain(module, x).backend)
    except Exception as error:
        print(type(error).__name__, error, sep=": ")
for w in seen:
    print(w.category.__name__, w.message, sep=": ")
"""


def run_program(monkeypatch, environment: str | None) -> list[str]:
    if environment is None:
        monkeypatch.delenv("FASTRNN_BACKEND", raising=False)
    else:
        monkeypatch.setenv("FASTRNN_BACKEND", environment)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_environment_forces_a_backend(monkeypatch):
    assert run_program(monkeypatch, "aten")[:2] == ["aten", "reference"]
    unknown, impossible = (run_program(monkeypatch, name)[0] for name in ("fastest", "cuda"))
    assert unknown == "ValueError: FASTRNN_BACKEND: expected one of cuda, cpu, aten, reference, got 'fastest'"
    assert impossible.startswith("RuntimeError: fastrnn: backend 'cuda' was asked for but cannot serve this call: ")
    assert impossible.endswith("the tensors are on cpu")


def test_one_warning_per_process_at_most(monkeypatch):
    """A missing extension is said once, with the reason; nothing else is said at all."""
    lines = run_program(monkeypatch, None)
    automatic = fastrnn.explain(fastrnn.GRU(4, 5), sample(False)).backend
    assert lines[:2] == [automatic, "reference"]
    if fastrnn._kernels.ext.reason is None:
        assert lines[2:] == []
    else:
        (warning,) = lines[2:]
        assert warning.startswith("RuntimeWarning: fastrnn runs in pure PyTorch, slower than it could")
        assert warning.endswith(fastrnn._kernels.ext.reason)


@cells
@one_step
def test_transforms_go_through_the_reference(cell, step):
    module, x = build(fastrnn, cell, 4, 5, step=step), sample(step)
    seen = []

    def ask(x):
        seen.append(fastrnn.explain(module, x))
        return x

    vmap(ask)(x.unsqueeze(0))
    assert seen[0].backend == "reference"
    assert "torch.func transforms and forward-mode AD go through differentiable operations" in seen[0].reasons["aten"]
    with fastrnn.backend("aten"), pytest.raises(RuntimeError, match="backend 'aten' was asked for but cannot serve"):
        vmap(module)(x.unsqueeze(0))


@cells
@one_step
def test_jacobians(cell, step):
    """Reverse mode by jacrev and forward mode by jvp, against torch.nn's Jacobian taken by reverse mode."""
    ours, theirs, truth = twins(cell, 4, 5, step=step)
    x = sample(step)
    jacobian = torch.autograd.functional.jacobian
    expected = [jacobian(lambda x, m=m: tensors(m(x))[0], like(m, x)) for m in (theirs, truth)]
    check(jacrev(lambda x: tensors(ours(x))[0])(x), *expected)
    tangent = torch.randn_like(x)
    _, mine = jvp(lambda x: tensors(ours(x))[0], (x,), (tangent,))
    along = [torch.tensordot(j, tangent.to(j), x.dim()) for j in expected]
    check(mine, *along)


def ranked_first(mode="LSTM", device="cpu", dtype=torch.float32, T=10, B=32, H=8, **more):
    return dispatch.ranking(dispatch.Call(mode, device, dtype, T=T, B=B, I=8, H=H, **more))[0]


def test_without_the_extension_the_faster_products_serve_inference(monkeypatch):
    monkeypatch.setattr(dispatch.ops, "missing", lambda *_: "the compiled extension is missing")
    monkeypatch.setattr(dispatch.reference, "outruns_torch", lambda device, dtype, rows: rows >= 8)

    usual = {"mode": "GRU", "device": "cpu", "dtype": torch.float32, "T": 16, "B": 8, "I": 8, "H": 512}

    def served(**call):
        return dispatch.choose(dispatch.Call(**usual | call))

    assert served() == served(mode="RNN_TANH", B=16, H=256) == "reference"
    assert served(T=8, B=1, H=8, grad=True) == served(T=8, B=7, H=8, grad=True) == "reference"
    for other in ({"B": 7, "H": 1024}, {"T": 15}, {"H": 511}, {"B": 64, "H": 128}, {"mode": "LSTM"}):
        assert served(**other) == "aten"
    assert served(T=7, grad=True) == served(mode="LSTM", grad=True) == "aten"


def test_cuda_kernels_are_opt_in_until_proven(monkeypatch):
    call, verdict = dispatch.Call("LSTM", "cuda", torch.float32, T=10, B=32, I=8, H=8), "not proven"
    monkeypatch.setattr(dispatch.proof, "why_not", lambda call: verdict)
    assert ranked_first(device="cuda") == ranked_first(mode="GRU", device="cuda", grad=True) == "aten"
    assert dispatch._preference(call, "aten", "cuda") == verdict
    verdict = None
    assert ranked_first(device="cuda") == "cuda"
    assert dispatch._preference(call, "cuda", "aten") == "cuda is preferred for this call"
