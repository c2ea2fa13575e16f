"""Forward passes by TensorFlow: traced once and frozen, or layer by layer on the CPU.

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
# Passes that compute now, and the setting before the first of them.
_exact_passes, _usual = 0, True


@dataclass(eq=False)
class Pass:
    """A compiled forward pass: from images, or stored activations, to a float32 array for each ref.

    Attributes
    ----------
    engine : str
        What computes it.
    run : callable
    """

    engine: str
    run: Forward

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Compute a batch (batch, …) of any size."""
        return self.run(images)


def require_tensorflow() -> None:
    """Raise BackboneError if Keras runs on another backend."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise BackboneError(
            f"backbones compute with TensorFlow: found KERAS_BACKEND={keras.backend.backend()},"
            " expected tensorflow"
        )


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

    global _exact_passes, _usual
    with _exact_lock:
        if not _exact_passes:
            _usual = tensor_float_32_execution_enabled()
            enable_tensor_float_32_execution(False)
        _exact_passes += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_passes -= 1
            if not _exact_passes:
                enable_tensor_float_32_execution(_usual)


def compiled(compute: Compute, sample_shape: Sequence[int | None], dtype: str = "uint8") -> Pass:
    """Compile a pass with TensorFlow; parameters as in :func:`frozen`."""
    function = frozen(compute, sample_shape, dtype)

    def forward(images: np.ndarray) -> list[np.ndarray]:
        import tensorflow as tf

        with exact(), _one_line(f"the backbone does not compute a batch of {len(images)} images"):
            taken = tf.constant(images.astype(dtype, copy=False))
            return [each.numpy() for each in function(taken)]

    return Pass("tensorflow", forward)


def plain(compute: Compute) -> Forward:
    """Return a slow function from uint8 images to float32 arrays: each layer by itself.

    Nothing is traced, frozen or fused, and it always runs on the CPU.
    """
    import keras

    def reference(images: np.ndarray) -> list[np.ndarray]:
        with keras.device("cpu:0"), _one_line("the backbone's layers do not compute on the CPU"):
            activations = compute(keras.ops.convert_to_tensor(images))
            return [keras.ops.convert_to_numpy(each) for each in activations]

    return reference


def another_way(engine: str) -> str:
    """Return how else to compute a pass whose results are wrong here."""
    import tensorflow as tf

    if engine != "tensorflow":
        return "compute with --engine tensorflow"
    if tf.config.list_physical_devices("GPU"):
        return "compute on the CPU (CUDA_VISIBLE_DEVICES=-1), or with other drivers"
    return "compute with TF_ENABLE_ONEDNN_OPTS=0, or with another release of TensorFlow"


def frozen(compute: Compute, sample_shape: Sequence[int | None], dtype: str = "uint8") -> Any:
    """Trace a pass and make constants of its weights.

    Parameters
    ----------
    compute : callable
        From a tensor of this type to a list of float32 tensors.
    sample_shape : sequence of int
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
            self.made: dict[Any, Any] = {}
            self.held = 0

        def get_current_value(self, variable: Any) -> Any:
            found = super().get_current_value(variable)
            if found is None and self.held < MOST_CONSTANT_BYTES:
                key = id(variable), tf.compat.v1.get_default_graph()
                if key not in self.made:
                    with tf.init_scope():
                        array = variable._value.numpy()
                    self.held += array.nbytes
                    self.made[key] = tf.constant(array)
                found = self.made[key]
            return found

    def trace(scope: keras.StatelessScope) -> Any:
        def stateless(images: Any) -> list[Any]:
            # What layers assign is forgotten: dropout advances its seeds at inference too.
            with scope:
                return compute(images)

        specification = tf.TensorSpec((None, *sample_shape), dtype)
        return tf.function(stateless, autograph=False).get_concrete_function(specification)

    with exact(), _one_line("the backbone does not compile"):
        constants = Constants()
        traced = trace(constants)
        if any(each.type.startswith("Assign") for each in traced.graph.get_operations()):
            raise BackboneError(
                "a layer changes its own weights while it computes, so that the features of an"
                " image depend on the images before it; cut before that layer"
            )
        if constants.held >= MOST_CONSTANT_BYTES:
            return trace(keras.StatelessScope())
        return convert_variables_to_constants_v2(traced) if has_variables(traced) else traced


def has_variables(function: Any) -> bool:
    """Whether a traced function reads variables; ``variables`` names also those made constants."""
    return any(each.dtype.name == "resource" for each in function.captured_inputs)


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn whatever Keras or TensorFlow raises inside into one line."""
    try:
        yield
    except BackboneError:
        raise
    except Exception as error:
        text, way = str(error), ""
        if "ResourceExhausted" in type(error).__name__:
            raise OutOfMemoryError(
                f"{what}, because memory runs out: {one_line(error, 120)}; give fewer images, or a "
                "smaller input size"
            ) from error
        if "NHWC" in text:
            way = "; TensorFlow computes channels_first on this CPU with TF_ENABLE_ONEDNN_OPTS=1"
        # TensorFlow puts a stack trace before the reason.
        reason = text.rpartition("\n\n")[2] if "Detected at node" in text else ""
        found = one_line(Exception(reason) if reason.strip() else error)
        raise BackboneError(f"{what}: {found}{way}") from error
