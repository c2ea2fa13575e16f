"""What computes a forward pass: TensorFlow, or OpenVINO on CPUs, in float32 or fewer bits.

An engine takes the frozen TensorFlow graph of a pass and returns a function on arrays. In float32
all engines agree, so the engine is not part of a feature's key. In lower precision they round
differently, and it is.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any, Literal, Self, get_args

import numpy as np

from featurestore.backbone import forward
from featurestore.backbone.finite import may_give_nan
from featurestore.errors import BackboneError, OutOfMemoryError, one_line
from featurestore.settings import Settings
from featurestore.threads import processors

Engine = Literal["auto", "tensorflow", "openvino"]
Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS = get_args(Precision)

# OpenVINO's names of a precision: as a capability of a device, and as an option of a pass.
_OPENVINO = {
    "float32": ("FP32", "f32"),
    "bfloat16": ("BF16", "bf16"),
    "float16": ("FP16", "f16"),
}
# Parts of a batch that are computed next to each other, each by its share of the threads. Threads
# of one part wait for each other at every layer, so two parts lose less to other work.
STREAMS = 2
# With fewer images than this, many networks do not give an image the same bits in every batch.
FEWEST_IN_BATCH = 16
# GPUs have tensor cores for a precision from this compute capability on.
_TENSOR_CORES = {"float16": (7, 0), "bfloat16": (8, 0)}


class Computing(Settings):
    """How a frozen network computes.

    Attributes
    ----------
    engine : {"auto", "tensorflow", "openvino"}
        What computes. ``auto`` is OpenVINO on a CPU if it is installed and can compute the network,
        and TensorFlow otherwise.
    precision : {"float32", "bfloat16", "float16"}
        Number type of the forward pass, and part of the key. With ``float32``, layers to which
        the network itself gives a lower precision keep it.
    """

    engine: Engine = "auto"
    precision: Precision = "float32"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Validate options; below float32, decide which engine ``auto`` is.

        Features of lower precision belong to the engine that computes them, so it must not change.

        Raises
        ------
        InputError
            For the first option that is unknown or not an allowed value.
        """
        found = super().of(options)
        if found.precision != "float32" and found.engine == "auto":
            return super().of({**options, "engine": found.engines()[0]})
        return found

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Split the options of a backbone into these, as :meth:`of`, and the others."""
        mine = {name: value for name, value in options.items() if name in cls.model_fields}
        return cls.of(mine), {name: options[name] for name in options if name not in mine}

    def fields(self) -> dict[str, str]:
        """Return the fields that are part of a key: none for float32, in which engines agree."""
        return {} if self.precision == "float32" else self.model_dump()

    def engines(self) -> list[str]:
        """Return the engines to try, the fastest first.

        Raises
        ------
        BackboneError
            If the engine is not installed, or cannot compute in this precision here.
        """
        if self.engine == "tensorflow":
            return ["tensorflow"]
        reason = why_not_openvino(self.precision)
        if self.engine == "auto":
            return ["tensorflow"] if reason else ["openvino", "tensorflow"]
        if reason:
            raise BackboneError(
                f"the engine openvino {reason}; compute with --engine tensorflow (in Python:"
                " engine='tensorflow')"
            )
        return ["openvino"]


def why_not_openvino(precision: str = "float32") -> str | None:
    """Return why OpenVINO does not compute here in a precision, or None."""
    if find_spec("openvino") is None:
        return "is not installed: pip install openvino"
    if has_gpu():
        return "computes on CPUs, and there is a GPU"
    found, _ = _OPENVINO[precision]
    try:
        known = capabilities()
    except Exception as error:  # a library of it is missing, or is for another machine
        return f"cannot be loaded ({one_line(error)}): install it again"
    if found not in known:
        names = [name for name, (each, _) in _OPENVINO.items() if each in known]
        return f"computes in {' and '.join(names)} on this processor, not in {precision}"
    return None


def slower(precision: str) -> str | None:
    """Return why a precision is slower here than float32, or None."""
    if precision == "float32":
        return None
    if has_gpu():
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(device)
            capability = details.get("compute_capability")
            if capability is not None and capability < _TENSOR_CORES[precision]:
                name = details.get("device_name", device.name)
                return f"{name} has no tensor cores for {precision}"
        return None
    if why_not_openvino(precision) is None:
        return None
    return f"this processor has no instructions for {precision} that an installed engine uses"


def has_gpu() -> bool:
    """Whether TensorFlow computes on a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


@functools.cache
def capabilities() -> tuple[str, ...]:
    """Return the precisions that OpenVINO reports for this processor, such as ``BF16``."""
    return tuple(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class EngineError(Exception):
    """An engine cannot compute a network; the message says why."""


def with_openvino(
    compute: forward.Compute, sample_shape: Sequence[int | None], dtype: str, precision: str
) -> forward.Pass:
    """Compile a pass with OpenVINO; parameters as in :func:`forward.frozen`.

    Raises
    ------
    EngineError
        If it cannot compute the network.
    """
    function = forward.frozen(compute, sample_shape, dtype)
    if forward.has_variables(function):
        raise EngineError("it has more than 1.8 GB of weights")
    threads = _threads()
    try:
        with tempfile.NamedTemporaryFile(suffix=".pb") as file:
            file.write(function.graph.as_graph_def().SerializeToString())
            file.flush()
            from openvino import PartialShape, Type
            from openvino.frontend import FrontEndManager

            frontend = FrontEndManager().load_by_framework("tf")
            loaded = frontend.load(file.name)
            places = [loaded.get_place_by_tensor_name(each.name) for each in function.outputs]
            loaded.override_all_outputs(places)
            for value, taken in function.graph.captures:
                place = loaded.get_place_by_tensor_name(taken.name)
                constant = value.numpy()
                loaded.set_partial_shape(place, PartialShape(constant.shape))
                loaded.set_element_type(place, Type(constant.dtype))
                loaded.set_tensor_value(place, constant)
            model = frontend.convert(loaded)
        # It does not check sizes that depend on the batch when it computes with one thread, and
        # writes where it must not.
        batches = list(model.input(0).partial_shape)
        model.reshape([1, *batches[1:]])
        if any(each.partial_shape[0] != 1 for each in model.outputs):
            raise EngineError("one image does not give one row")
        model.reshape(batches)
        if kind := may_give_nan(model):
            raise EngineError(f"it hides NaN, which {kind} may give here")
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": _OPENVINO[precision][1],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # other threads decode images
        }
        streams = _Streams(model, options, min(STREAMS, threads))
        if streams.outputs != len(function.outputs):
            raise EngineError("it merges some of the outputs")
    except Exception as error:  # whatever OpenVINO raises
        raise EngineError(_reason(error)) from error
    lock = threading.Lock()

    def run(images: np.ndarray) -> list[np.ndarray]:
        try:
            with lock:
                used = streams.of(len(images))
                parts = np.array_split(np.ascontiguousarray(images, dtype), len(used))
                with ExitStack() as started:
                    for stream, part in zip(used, parts, strict=True):
                        stream.start_async([part], share_inputs=True)
                        started.callback(stream.wait)
                found = ([each.data for each in stream.output_tensors] for stream in used)
                return [np.concatenate(each, dtype=np.float32) for each in zip(*found, strict=True)]
        except Exception as error:
            kind = OutOfMemoryError if "alloc" in str(error) else BackboneError
            raise kind(
                f"OpenVINO does not compute a batch of {len(images)} images: {_reason(error)};"
                " run the same command with --engine tensorflow"
            ) from error

    return forward.Pass("openvino", run)


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
    found = re.search(
        r"(?:No conversion rule found|Conversion is failed) for[^:]*: (.+)", str(error)
    )
    if found:
        return f"it has no {found[1].strip()}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(Exception(lines[-1])) if lines else one_line(error)


def _threads() -> int:
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(processors(), int(limit)) if limit.isdigit() and int(limit) else processors()


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
