"""A promoted model for images of one size, of layers that every exporter takes.

LiteRT and ONNX have no operation for the resize, and the ONNX converter loses the numbers of a
``Normalization``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from featurestore.backbone.copying import clone
from featurestore.backbone.forward import exact
from featurestore.backbone.graph import Graph, Node, dissolve
from featurestore.errors import InputError, ParityError
from featurestore.promotion.onnx_model import OnnxModel
from featurestore.promotion.saved import Promoted, load_model

# Noise that the two models are compared on, and how far their outputs may be apart: a share of the
# largest.
PROOF_IMAGES, SAME_OUTPUT = 8, 1e-3


def fixed_images(model: str | Path | keras.Model | Promoted) -> keras.Model:
    """Return a copy of a promoted model for images of one size, which exports to LiteRT and ONNX.

    The copy takes images that were resized before. Each ``Normalization`` becomes a ``Rescaling``.

    Parameters
    ----------
    model : path-like or keras.Model
        Promoted, as it is now; it is not changed.

    Returns
    -------
    keras.Model
        Takes uint8 RGB images (batch, height, width, channel=3) of the backbone's input size.

    Raises
    ------
    InputError
        If the model cannot be loaded, or is not a promoted model.
    ParityError
        If the two differ on images of that size.

    Examples
    --------
    >>> fixed = fixed_images("flowers.keras")  # doctest: +SKIP
    >>> fixed.export("flowers.tflite", format="litert")  # doctest: +SKIP
    """
    promoted = load_model(model)
    model, resizing = promoted.model, promoted.resizing
    if isinstance(model, OnnxModel):
        raise InputError(f"{promoted.name} is an ONNX model already", "a Keras model")

    def exportable(node: Node) -> Node:
        layer = node.operation
        if layer is resizing:
            return replace(node, operation=keras.layers.Identity(name=layer.name, dtype="uint8"))
        if isinstance(layer, keras.layers.Normalization):
            return replace(node, operation=_scaler(layer))
        return node

    graph, shape = dissolve(model), (resizing.height, resizing.width, 3)
    image = keras.Input(shape, dtype="uint8", name="image")
    swapped = Graph([graph.nodes[0], *map(exportable, graph.nodes[1:])], graph.outputs)
    fixed = keras.Model(
        image, clone(swapped, image, [number for number, _ in graph.outputs]), name=model.name
    )
    noise = np.random.default_rng(0).integers(0, 256, (PROOF_IMAGES, *shape), np.uint8)
    with exact():
        # Keras exports to ONNX only what was called once.
        expected, computed = (
            keras.ops.convert_to_numpy(network(noise, training=False)).astype("float32")
            for network in (model, fixed)
        )
    apart = float(np.abs(computed - expected).max())
    if not apart <= SAME_OUTPUT * max(1.0, float(np.abs(expected).max())):
        raise ParityError(
            f"the model for images of {shape[0]}×{shape[1]} differs from {promoted.name} by up to "
            f"{apart:.3g} on images of that size",
            remedy="a backbone in float16 or bfloat16 needs to be rebuilt in float32",
        )
    return fixed


def _scaler(layer: keras.layers.Normalization) -> keras.Layer:
    """Return a Rescaling that computes what a Normalization does."""
    mean, variance = (np.asarray(weight, np.float64)[0] for weight in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    factor = (deviation if layer.invert else 1 / deviation).astype(np.float32)
    offset = (mean if layer.invert else -mean * factor).astype(np.float32)
    return keras.layers.Rescaling(
        factor.tolist(), offset.tolist(), name=layer.name, dtype=layer.dtype_policy
    )
