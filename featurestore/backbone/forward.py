"""Compiled models of TensorFlow, traced once and frozen, and layer by layer on the CPU.

Freezing makes constants of the weights, so that BatchNorm folds into convolutions and no variable
is read again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.errors import BackboneError, OutOfMemoryError, one_line

# A frozen graph is written as one protocol buffer on the way, which is limited to 2 GB.
MOST_CONSTANT_BYTES = 1_800_000_000

Compute = Callable[[Any], list[Any]]
Forward = Callable[[np.ndarray], list[np.ndarray]]

_exact_lock = threading.Lock()
# How many models compute now, and the setting before the first of them.
_exact_count, _usual = 0, True


@dataclass(eq=False)
class CompiledModel:
    """A part of a network, compiled: from images or stored activations to an array for each ref.

    Attributes
    ----------
    engine : str
        What computes it.
    run : callable
    """

    engine: str
    run: Forward

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute a batch (batch, …) of any size; the arrays are float32."""
        return self.run(images)


def require_tensorflow() -> None:
    """Raise BackboneError if Keras runs on another backend."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise BackboneError(f"KERAS_BACKEND={keras.backend.backend()}", "tensorflow")


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Compute without TF32 inside, and restore the setting of the process afterwards.

    On newer GPUs, TensorFlow rounds the inputs of matrix products and convolutions to 10 bits
    (TF32). The switch is process-wide: it goes back when the last of several threads leaves.
    """
    from tensorflow.config.experimental import (
        enable_tensor_float_32_execution,
        tensor_float_32_execution_enabled,
    )

    global _exact_count, _usual
    with _exact_lock:
        if not _exact_count:
            _usual = tensor_float_32_execution_enabled()
            enable_tensor_float_32_execution(False)
        _exact_count += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_count -= 1
            if not _exact_count:
                enable_tensor_float_32_execution(_usual)


def with_tensorflow(
    compute: Compute, input_shape: Sequence[int | None], dtype: str = "uint8"
) -> CompiledModel:
    """Compile with TensorFlow; parameters as in :func:`frozen`."""
    function = frozen(compute, input_shape, dtype)

    def run(images: np.ndarray) -> list[np.ndarray]:
        import tensorflow as tf

        with exact(), _one_line(f"the backbone does not compute a batch of {len(images)} images"):
            return [
                output.numpy() for output in function(tf.constant(images.astype(dtype, copy=False)))
            ]

    return CompiledModel("tensorflow", run)


def plain(compute: Compute) -> Forward:
    """Return a slow function from uint8 images to float32 arrays: each layer by itself.

    Nothing is traced, frozen or fused, and it always runs on the CPU.
    """
    import keras

    def reference(images: np.ndarray) -> list[np.ndarray]:
        with keras.device("cpu:0"), _one_line("the backbone's layers do not compute on the CPU"):
            activations = compute(keras.ops.convert_to_tensor(images))
            return [keras.ops.convert_to_numpy(activation) for activation in activations]

    return reference


def another_way(engine: str) -> str:
    """Return how else to compute what an engine computes wrongly here."""
    import tensorflow as tf

    if engine != "tensorflow":
        return "compute with --engine tensorflow"
    if tf.config.list_physical_devices("GPU"):
        return "compute on the CPU (CUDA_VISIBLE_DEVICES=-1), or with other drivers"
    return "compute with TF_ENABLE_ONEDNN_OPTS=0, or with another release of TensorFlow"


def frozen(compute: Compute, input_shape: Sequence[int | None], dtype: str = "uint8") -> Any:
    """Trace a computation and make constants of its weights.

    Parameters
    ----------
    compute : callable
        From a tensor of this type to a list of float32 tensors.
    input_shape : sequence of int
        Of one image (height, width, channel) or stored activation; the batch may be of any size.
    dtype : str
        What ``compute`` takes.

    Returns
    -------
    tensorflow.types.experimental.ConcreteFunction
        It still has variables if they are too large for constants.
    """
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    class Constants(keras.StatelessScope):
        """Context in which Keras variables become constants, up to a number of bytes.

        TensorFlow's own conversion, which is for other variables, takes several times as long, and
        the memory of the weights several times.
        """

        def __init__(self) -> None:
            super().__init__()
            self.constants: dict[Any, Any] = {}
            self.nbytes = 0

        def get_current_value(self, variable: Any) -> Any:
            value = super().get_current_value(variable)
            if value is None and self.nbytes < MOST_CONSTANT_BYTES:
                key = id(variable), tf.compat.v1.get_default_graph()
                if key not in self.constants:
                    with tf.init_scope():
                        array = variable._value.numpy()
                    self.nbytes += array.nbytes
                    self.constants[key] = tf.constant(array)
                value = self.constants[key]
            return value

    def trace(scope: keras.StatelessScope) -> Any:
        def stateless(images: Any) -> list[Any]:
            # What layers assign is forgotten: dropout advances its seeds at inference too.
            with scope:
                return compute(images)

        specification = tf.TensorSpec((None, *input_shape), dtype)
        return tf.function(stateless, autograph=False).get_concrete_function(specification)

    with exact(), _one_line("the backbone does not compile"):
        constants = Constants()
        traced = trace(constants)
        if any(step.type.startswith("Assign") for step in traced.graph.get_operations()):
            raise BackboneError(
                "a layer changes its own weights while it computes, so that the features of an"
                " image depend on the images before it",
                remedy="cut before that layer",
            )
        if constants.nbytes >= MOST_CONSTANT_BYTES:
            return trace(keras.StatelessScope())
        return convert_variables_to_constants_v2(traced) if has_variables(traced) else traced


def has_variables(function: Any) -> bool:
    """Whether a traced function reads variables; ``variables`` names also those made constants."""
    return any(value.dtype.name == "resource" for value in function.captured_inputs)


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn whatever Keras or TensorFlow raises inside into one line."""
    try:
        yield
    except BackboneError:
        raise
    except Exception as error:
        if "ResourceExhausted" in type(error).__name__:
            raise OutOfMemoryError(
                f"{what}, because memory runs out: {one_line(error, 120)}",
                remedy="give fewer images, or a smaller input size",
            ) from error
        # TensorFlow puts a stack trace before the reason.
        text = str(error)
        reason = text.rpartition("\n\n")[2] if "Detected at node" in text else ""
        shown = one_line(Exception(reason) if reason.strip() else error)
        raise BackboneError(f"{what}: {shown}") from error
