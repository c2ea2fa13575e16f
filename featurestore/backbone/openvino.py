"""Compiled models of OpenVINO, on CPUs: converted from a frozen graph of TensorFlow."""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.backbone import forward
from featurestore.backbone.onnx_files import write
from featurestore.errors import BackboneError, OutOfMemoryError, one_line
from featurestore.scratch import scratch
from featurestore.threads import processors

# OpenVINO's names of a precision: as a capability of a device, and as an option.
_PRECISIONS = {
    "float32": ("FP32", "f32"),
    "bfloat16": ("BF16", "bf16"),
    "float16": ("FP16", "f16"),
}
# Parts of a batch that are computed next to each other, each by its share of the threads. Threads
# of one part wait for each other at every layer, so two parts lose less to other work.
STREAMS = 2
# With fewer images than this, many networks do not give an image the same bits in every batch.
FEWEST_IN_BATCH = 16
# Operations that give finite numbers for finite ones; overflow does not count.
_FINITE = {
    *("Abs", "Add", "Clamp", "Cos", "Erf", "Exp", "Floor", "Maximum", "Minimum", "Multiply"),
    *("Negative", "Round", "Sign", "Sin", "SquaredDifference", "Subtract"),
    *("AvgPool", "Convolution", "ConvolutionBackpropData", "Einsum", "GroupConvolution"),
    *("GroupConvolutionBackpropData", "Interpolate", "MatMul", "MaxPool"),
    *("Elu", "Gelu", "HSigmoid", "HSwish", "LogSoftmax", "Mish", "PRelu", "Relu", "Selu"),
    *("Sigmoid", "SoftPlus", "SoftSign", "Softmax", "Swish", "Tanh"),
    *("CumSum", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"),
    *("BatchToSpace", "Broadcast", "Concat", "Convert", "DepthToSpace", "Gather", "Pad"),
    *("Reshape", "ReverseSequence", "Roll", "Slice", "SpaceToBatch", "SpaceToDepth", "Split"),
    *("Squeeze", "StridedSlice", "Tile", "Transpose", "Unsqueeze", "VariadicSplit"),
    *("Identity", "Parameter", "Range", "Result"),
    *("Equal", "Greater", "GreaterEqual", "IsFinite", "IsNaN", "Less", "LessEqual", "LogicalAnd"),
    *("LogicalNot", "LogicalOr", "NotEqual", "ReduceLogicalAnd", "ReduceLogicalOr", "Select"),
}


class EngineError(Exception):
    """An engine cannot compute a network; the message says why."""


def with_openvino(
    compute: forward.Compute, input_shape: Sequence[int | None], dtype: str, precision: str
) -> forward.CompiledModel:
    """Compile with OpenVINO; parameters as in :func:`forward.frozen`.

    Raises
    ------
    EngineError
        If it cannot compute the network.
    """
    function = forward.frozen(compute, input_shape, dtype)
    if forward.has_variables(function):
        raise EngineError("it has more than 1.8 GB of weights")
    return compiled(
        lambda: _converted(function),
        len(function.outputs),
        dtype,
        precision,
        "run the same command with --engine tensorflow",
    )


def compiled(
    convert: Callable[[], Any], outputs: int, dtype: str, precision: str, remedy: str = ""
) -> forward.CompiledModel:
    """Compile a model of OpenVINO of one input and some outputs.

    Parameters
    ----------
    convert : callable
        Returns it.
    outputs : int
    dtype : str
        Of the input.
    precision : {"float32", "bfloat16", "float16"}
    remedy : str
        What to do if it does not compute a batch.

    Raises
    ------
    EngineError
        If OpenVINO cannot compute it.
    """
    threads = _threads()
    try:
        model = convert()
        # It does not check sizes that depend on the batch when it computes with one thread, and
        # writes where it must not.
        any_batch = list(model.input(0).partial_shape)
        model.reshape([1, *any_batch[1:]])
        if any(output.partial_shape[0] != 1 for output in model.outputs):
            raise EngineError("one image does not give one row")
        model.reshape(any_batch)
        if kind := _may_give_nan(model):
            raise EngineError(f"it hides NaN, which {kind} may give here")
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision][1],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # other threads decode images
        }
        streams = _Streams(model, options, min(STREAMS, threads))
        if streams.outputs != outputs:
            raise EngineError("it merges some of the outputs")
    except Exception as error:  # whatever OpenVINO raises
        raise EngineError(_reason(error)) from error
    lock = threading.Lock()

    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            with lock:
                requests = streams.of(len(images))
                parts = np.array_split(np.ascontiguousarray(images, dtype), len(requests))
                with ExitStack() as waits:
                    for request, part in zip(requests, parts, strict=True):
                        request.start_async([part], share_inputs=True)
                        waits.callback(request.wait)
                arrays = [[t.data for t in request.output_tensors] for request in requests]
                return [np.concatenate(own, dtype=np.float32) for own in zip(*arrays, strict=True)]
        except Exception as error:
            kind = OutOfMemoryError if "alloc" in str(error) else BackboneError
            raise kind(
                f"OpenVINO does not compute a batch of {len(images)} images: {_reason(error)}",
                remedy=remedy,
            ) from error

    return forward.CompiledModel("openvino", run)


def _converted(function: Any) -> Any:
    """Convert a traced function of TensorFlow to an OpenVINO model."""
    from openvino import PartialShape, Type
    from openvino.frontend import FrontEndManager

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "graph.pb")
        file.write_bytes(function.graph.as_graph_def().SerializeToString())
        frontend = FrontEndManager().load_by_framework("tf")
        loaded = frontend.load(str(file))
        places = [loaded.get_place_by_tensor_name(output.name) for output in function.outputs]
        loaded.override_all_outputs(places)
        for value, placeholder in function.graph.captures:
            place, constant = loaded.get_place_by_tensor_name(placeholder.name), value.numpy()
            loaded.set_partial_shape(place, PartialShape(constant.shape))
            loaded.set_element_type(place, Type(constant.dtype))
            loaded.set_tensor_value(place, constant)
        return frontend.convert(loaded)


def read_onnx(model: Any) -> Any:
    """Convert a model of ONNX to an OpenVINO model."""
    with scratch() as folder:
        write(model, folder / "model.onnx")
        return _core().read_model(str(folder / "model.onnx"))


def tensor_shapes(model: Any, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of every output of a model of ONNX, for an input of one shape.

    Raises
    ------
    EngineError
        If OpenVINO cannot read the model, or it does not take such an input.
    """
    try:
        read = read_onnx(model)
        read.reshape({0: list(shape)})
        return {
            name: (
                tuple(output.shape) if output.partial_shape.is_static else (),
                output.get_element_type().to_dtype().name,
            )
            for output in read.outputs
            for name in output.get_names()
        }
    except Exception as error:  # whatever OpenVINO raises
        raise EngineError(_reason(error)) from error


def _may_give_nan(model: Any) -> str | None:
    """Return the type of the first operation that may give NaN or infinity, or None.

    OpenVINO hides NaN: its ReLU of NaN is 0. An image without contrast that is divided by its
    standard deviation would have features like any others, where TensorFlow's are NaN, which are
    never stored. So it computes only networks of operations that are known to give finite numbers.
    """
    varying: set[str] = set()  # with the image; what does not is folded into the weights
    least: dict[str, int] = {}
    for node in model.get_ordered_ops():
        kind, inputs, name = str(node.get_type_name()), _inputs(node), node.get_name()
        signs = [least[parent.get_name()] for parent in inputs]
        least[name] = _sign(kind, node, inputs, signs)
        moved = any(parent.get_name() in varying for parent in inputs)
        if kind == "Parameter" or (moved and kind != "ShapeOf"):
            varying.add(name)
            if kind not in _FINITE and not _is_finite(kind, node, inputs, signs):
                return kind
    return None


def _is_finite(kind: str, node: Any, inputs: Sequence[Any], signs: Sequence[int]) -> bool:
    """Whether an operation that is not always finite is so for what it takes.

    ``signs`` are those of its inputs, as :func:`_sign` returns them.
    """
    if kind == "MVN":
        return bool(node.get_attributes().get("eps", 0) > 0)
    if kind == "Divide":
        number = _constant(inputs[1])
        return signs[1] == 2 or (number is not None and bool((number != 0).all()))
    if kind == "Power":
        return signs[0] == 2 or _is_natural(inputs[1])
    return kind == "Sqrt" and signs[0] > 0


def _sign(kind: str, node: Any, inputs: Sequence[Any], signs: Sequence[int]) -> int:
    """Return 2 if all values of a node are known to be positive, 1 if none is negative, else 0."""
    if kind == "Constant":
        number = node.get_data()
        return 2 if (number > 0).all() else int((number >= 0).all())
    if kind in ("Abs", "Relu", "ShapeOf", "SquaredDifference"):
        return 1
    if kind == "Maximum":
        return max(signs)
    if kind == "Add":
        return max(signs) if min(signs) else 0
    if kind == "Multiply":
        same = inputs[0].get_name() == inputs[1].get_name()
        return max(min(signs), int(same))
    if kind == "Power":
        return max(signs[0], int(_is_natural(inputs[1], step=2)))
    keep = {"Broadcast", "Convert", "Gather", "ReduceMean", "ReduceSum", "Reshape", "Sqrt"}
    return signs[0] if kind in keep else 0


def _is_natural(exponent: Any, step: int = 1) -> bool:
    number = _constant(exponent)
    return number is not None and bool(((number >= 0) & (number % step == 0)).all())


def _inputs(node: Any) -> list[Any]:
    return [port.get_source_output().get_node() for port in node.inputs()]


def _constant(node: Any) -> np.ndarray | None:
    while node.get_type_name() == "Convert":
        (node,) = _inputs(node)
    constant: np.ndarray | None = node.get_data() if node.get_type_name() == "Constant" else None
    return constant


class _Streams:
    """What computes the parts of a batch next to each other, each with its share of the threads.

    Batches too small for all parts would leave threads idle. If the first two are, one stream gets
    all threads; that changes no bits.
    """

    def __init__(self, model: Any, options: Mapping[str, Any], count: int) -> None:
        self._model, self._options = model, options
        self._batches = 0
        self._requests = self._compiled(count)
        self.outputs = len(self._requests[0].output_tensors)

    def _compiled(self, count: int) -> list[Any]:
        options = {**self._options, "NUM_STREAMS": count}
        network = _core().compile_model(self._model, "CPU", options)
        return [network.create_infer_request() for _ in range(count)]

    def of(self, images: int) -> list[Any]:
        """Return the requests that compute the parts of the next batch."""
        if self._model is not None:
            self._batches += 1
            idle = images // FEWEST_IN_BATCH < len(self._requests) > 1
            if idle and self._batches == 2:
                self._requests = self._compiled(1)
            if not idle or self._batches == 2:
                self._model = None  # It holds the weights once more.
        return self._requests[: max(1, images // FEWEST_IN_BATCH)]


def _reason(error: Exception) -> str:
    """Return the reason in an error of OpenVINO, without the place in its sources."""
    missing = re.search(
        r"(?:No conversion rule found|Conversion is failed) for[^:]*: (.+)", str(error)
    )
    if missing:
        return f"it has no {missing[1].strip()}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(Exception(lines[-1])) if lines else one_line(error)


def _threads() -> int:
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(processors(), int(limit)) if limit.isdigit() and int(limit) else processors()


@functools.cache
def precisions() -> tuple[str, ...]:
    """Return the precisions in which OpenVINO computes on this processor."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(
        name for name, (capability, _) in _PRECISIONS.items() if capability in capabilities
    )


@functools.cache
def _core() -> Any:
    # OpenVINO reports its use to its makers when it is imported, unless this package is missing.
    telemetry = sys.modules.get("openvino_telemetry")
    if telemetry is None:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if telemetry is None:
            del sys.modules["openvino_telemetry"]
    return openvino.Core()
