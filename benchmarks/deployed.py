"""What people run a trained layer with on a CPU, each as a call x, states -> output, states."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.bench.measure import Refused

Call = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _layer_call(layer: nn.Module) -> Call:
    """Of anything with the signature of torch's layers."""

    def call(x, states):
        output, final = layer(x, states if len(states) > 1 else states[0])
        return (output, *final) if isinstance(final, tuple) else (output, final)

    return call


def _without_gradients(layer: nn.Module) -> Call:
    """What a layer with parameters needs, and a frozen one does not."""
    call = _layer_call(layer)

    def without(x, states):
        with torch.no_grad():
            return call(x, states)

    return without


def _quantised(layer: nn.Module) -> Call:
    """torch's dynamic quantisation, which passes over a root module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.LSTM, nn.GRU}, torch.qint8)
    return _without_gradients(wrapped[0])


def _exported(layer: nn.Module, path: str) -> None:
    example = torch.randn(2, 1, layer.input_size)
    state = torch.zeros(layer.num_layers * (2 if layer.bidirectional else 1), 1, layer.hidden_size)
    names = ["x", "h", "c"] if layer.mode == "LSTM" else ["x", "h"]
    args = (example, (state, state) if layer.mode == "LSTM" else state)
    axes = {"x": {0: "T", 1: "B"}} | {name: {1: "B"} for name in names[1:]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(layer, args, path, dynamo=False, input_names=names, dynamic_axes=axes)


def _onnxruntime(quantised: bool) -> Callable[[nn.Module], Call]:
    def make(layer: nn.Module) -> Call:
        if find_spec("onnxruntime") is None or find_spec("onnx") is None:
            raise Refused("onnxruntime or onnx is not installed")
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "model.onnx"))
            _exported(layer, path)
            if quantised:
                if layer.mode != "LSTM":
                    raise Refused("ONNX Runtime quantises no GRU")
                from onnxruntime.quantization import QuantType, quantize_dynamic

                # Without VNNI its sums of two products in 16 bits overflow, unless weights have 7 bits.
                narrow, small = not torch.cpu._is_vnni_supported(), f"{folder}/int8.onnx"
                quantize_dynamic(path, small, weight_type=QuantType.QInt8, reduce_range=narrow)
                path = small
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # beside other pools
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def call(x, states):
            given = {name: t.numpy() for name, t in zip(names, (x, *states))}
            return tuple(map(torch.from_numpy, session.run(None, given)))

        return call

    return make


def _openvino(layer: nn.Module) -> Call:
    if find_spec("openvino") is None:
        raise Refused("openvino is not installed")
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        _exported(layer, path := str(Path(folder, "model.onnx")))
        core = openvino.Core()
        config = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(core.read_model(path), "CPU", config).create_infer_request()

    def call(x, states):
        results = request.infer([t.numpy() for t in (x, *states)])
        return tuple(torch.from_numpy(value.copy()) for value in results.values())

    return call


# In the order in which they take turns: each frozen one finds the caches as another program leaves them.
SIDES: dict[str, Callable[[nn.Module], Call]] = {
    "frozen": lambda layer: _layer_call(fastrnn.freeze(layer)),
    "onnxruntime": _onnxruntime(quantised=False),
    "frozen-bf16": lambda layer: _layer_call(fastrnn.freeze(layer, torch.bfloat16)),
    "torch": lambda layer: _without_gradients(copy.deepcopy(layer)),
    "frozen-int8": lambda layer: _layer_call(fastrnn.freeze(layer, torch.int8)),
    "torch-int8": _quantised,
    "fastrnn": lambda layer: _without_gradients(fastrnn.convert(layer)),
    "ort-int8": _onnxruntime(quantised=True),
    "openvino": _openvino,
}
"""By name: made from a layer of ``torch.nn`` in eval mode; raises Refused with the reason where there is none."""
