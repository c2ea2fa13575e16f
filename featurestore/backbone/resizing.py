"""Resize single images: the pixels of the Keras layer, bit for bit, several times as fast.

The layer calls TensorFlow's ``ScaleAndTranslate``, which computes each row of the result as a
weighted sum of the image's rows, and then each column from those columns, in float32
(``tensorflow/core/kernels/image/scale_and_translate_op.cc``). Here, these are products with two
sparse matrices. TensorFlow itself gives their weights, and SciPy adds in the same order.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from featurestore.errors import BackboneError

# How far each filter reaches, in pixels of the coarser of both images.
_RADIUS = {"nearest": 1, "bilinear": 1, "bicubic": 2, "lanczos3": 3, "lanczos5": 5}
# Numbers held to find the weights of a side; a side that needs more is resized by the layer.
_MOST_NUMBERS = 1 << 22
# Values of an image that are float32 at a time: 1 MB. More leaves the cache and costs page faults.
_AT_ONCE = 1 << 18
_CHANNELS = 3


def compiled_resize(layer: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that resizes one uint8 image (height, width, channel=3) on the CPU.

    Many threads may call it: most of its work releases the GIL. An image that has the size already
    is returned without a copy. BackboneError if it is given anything else than such an image.

    Parameters
    ----------
    layer : keras.layers.Resizing
        Computes on uint8, or on other integers. Layers that are not antialiased, or pad with
        another value than 0, compute by themselves.
    """
    traced, tracing = cache(_traced), threading.Lock()
    same = (
        (layer.antialias or layer.interpolation == "nearest")
        and layer.data_format == "channels_last"
        and layer.compute_dtype == "uint8"
        and not (layer.pad_to_aspect_ratio and layer.fill_value)
    )

    def resize(image: np.ndarray) -> np.ndarray:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != _CHANNELS:
            raise BackboneError(
                f"an image is {image.dtype} {image.shape}", "uint8 (height, width, 3)"
            )
        resized = _resized(layer, image) if same else None
        if resized is not None:
            return resized
        with tracing:
            by_layer = traced(layer)
        return by_layer(image)

    return resize


def _traced(layer: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return the layer as a function, traced once for images of every size."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        specification = tf.TensorSpec((1, None, None, _CHANNELS), tf.uint8)
        function = tf.function(layer, autograph=False).get_concrete_function(specification)

    def resize(image: np.ndarray) -> np.ndarray:
        with tf.device("CPU:0"):
            return function(tf.constant(image[None])).numpy()[0]

    return resize


def _resized(layer: Any, image: np.ndarray) -> np.ndarray | None:
    """Return the pixels of the layer; None if only the layer itself can give them."""
    size = layer.height, layer.width
    if max(image.shape) * max(size) >= 1 << 31:  # The layer's own arithmetic overflows.
        return None
    top, height, above = _fit(layer, image.shape[0], image.shape[1], layer.height, layer.width)
    left, width, beside = _fit(layer, image.shape[1], image.shape[0], layer.width, layer.height)
    image = image[top : top + height, left : left + width]
    if image.shape[:2] == size:
        return image
    sides = ((height + 2 * above, layer.height), (width + 2 * beside, layer.width))
    filters = [(*side, layer.interpolation) for side in sides]
    if any(before * _period(before, *rest) > _MOST_NUMBERS for before, *rest in filters):
        return None
    rows, columns = _weights(*filters[0], above, 1), _weights(*filters[1], beside, _CHANNELS)
    image = image.reshape(height, -1)
    turned = np.empty((image.shape[1], layer.height), np.float32)
    step = max(128, _AT_ONCE // height)
    for start in range(0, len(turned), step):
        part = image[:, start : start + step].astype(np.float32, order="C")
        turned[start : start + step] = (rows @ part).T
    result = columns @ turned
    np.rint(result, out=result)
    pixels = np.clip(result, 0, 255, out=result).astype(np.uint8)
    return np.ascontiguousarray(pixels.T).reshape(*size, _CHANNELS)


def _fit(layer: Any, own: int, other: int, target: int, across: int) -> tuple[int, int, int]:
    """Return where a side of an image begins, its length, and the black border at each end.

    As ``keras.src.backend.tensorflow.image.resize`` does, whose float32 decides what is cut.
    """
    fitting = int(np.float32(other * target) / np.float32(across))
    if layer.crop_to_aspect_ratio:
        length = max(min(own, fitting), 1)
        return (own - length) // 2, length, 0
    if layer.pad_to_aspect_ratio:
        return 0, own, (max(own, fitting) - own) // 2
    return 0, own, 0


def _period(before: int, after: int, interpolation: str) -> int:
    """Return a number of pixels, odd, that is more than one output pixel is computed from."""
    return 2 * math.ceil(_RADIUS[interpolation] * max(before / after, 1)) + 3


@cache
def _traced_filter(interpolation: str) -> Any:
    """Return the function that resizes columns, float32 (1, row, 1, channel), to some rows."""
    import tensorflow as tf

    def resize(columns: Any, rows: Any) -> Any:
        return tf.image.resize(columns, (rows, 1), interpolation, antialias=True)

    with tf.device("CPU:0"):
        specification = tf.TensorSpec((1, None, 1, None)), tf.TensorSpec((), tf.int32)
        return tf.function(resize, autograph=False).get_concrete_function(*specification)


@lru_cache(maxsize=1024)
def _weights(before: int, after: int, interpolation: str, border: int, channels: int) -> Any:
    """Return the sparse matrix that resizes one side of an image.

    Parameters
    ----------
    before, after : int
        Lengths of the side, the first with its border.
    interpolation : str
    border : int
        Pixels at each end that are 0, and have no column in the matrix.
    channels : int
        Values of a pixel that lie next to each other.

    Returns
    -------
    scipy.sparse.csr_array of float32, (after × channels, (before - 2 × border) × channels)
    """
    import tensorflow as tf
    from scipy import sparse

    # A comb for each residue: an output pixel sees at most one tooth of it, so its value there is
    # the weight of that tooth.
    period = _period(before, after, interpolation)
    place = np.arange(before)
    combs = np.zeros((1, before, 1, period), np.float32)
    combs[0, place, 0, place % period] = 1
    with tf.device("CPU:0"):
        resized = _traced_filter(interpolation)(tf.constant(combs), tf.constant(after))
    values = resized.numpy()[0, :, 0]
    row, comb = np.nonzero(values)
    center = (row + 0.5) * before / after - 0.5
    source = comb + period * np.rint((center - comb) / period)
    inside = (border <= source) & (source < before - border)
    weight = np.repeat(values[row, comb][inside], channels)
    channel = np.arange(channels)
    index = [
        (side[inside, None] * channels + channel).ravel().astype(np.int32)
        for side in (row, source - border)
    ]
    shape = (after * channels, (before - 2 * border) * channels)
    return sparse.csr_array((weight, tuple(index)), shape=shape)
