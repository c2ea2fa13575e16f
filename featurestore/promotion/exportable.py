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
from featurestore.promotion.carried import resize_layer, resizing_of
from featurestore.promotion.saved import Promoted, open_model

# Noise that the two models are compared on.
PROOF_IMAGES = 8
# Share of the largest output by which rounding may move one, by the type of the layers.
MOST_APART = {"float32": 1e-4, "float16": 2.0**-5, "bfloat16": 2.0**-3}


def fixed_images(model: str | Path | keras.Model | Promoted) -> keras.Model:
    """Return a copy of a promoted model for images of one size, which exports to LiteRT and ONNX.

    The copy takes images that were resized before, and carries how; `predict` and `evaluate` resize
    them by that. Each ``Normalization`` becomes a ``Rescaling``.

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
        If the model cannot be loaded, or does not begin with the resize of a promoted model.
    ParityError
        If the two differ on images of that size.

    Examples
    --------
    >>> fixed = fixed_images("flowers.keras")  # doctest: +SKIP
    >>> fixed.export("flowers.tflite", format="litert")  # doctest: +SKIP
    """
    model = open_model(model)
    graph = dissolve(model)
    resizing = resizing_of(graph)
    if resizing is None:
        raise InputError(
            f"model {model.name!r} does not begin with the resize of a promoted model; expected "
            "the model of a promotion, or one that was loaded from its file"
        )
    shape = (resizing.height, resizing.width, 3)
    image = keras.Input(shape, dtype="uint8", name="image")
    ends = [number for number, _ in graph.outputs]
    outputs = clone(_exportable(graph, resizing), image, ends)
    fixed = keras.Model(image, outputs, name=model.name)
    noise = np.random.default_rng(0).integers(0, 256, (PROOF_IMAGES, *shape), np.uint8)
    with exact():
        # The same way, layer by layer: compiled, float16 rounds elsewhere. Keras exports to ONNX
        # only what was called once.
        expected, found = (
            keras.ops.convert_to_numpy(each(noise, training=False)).astype("float32")
            for each in (model, fixed)
        )
    apart = float(np.abs(found - expected).max())
    types = {str(getattr(each.operation, "compute_dtype", "")) for each in graph.nodes}
    allowed = max(limit for name, limit in MOST_APART.items() if name in {*types, "float32"})
    if not apart <= allowed * max(1.0, float(np.abs(expected).max())):
        raise ParityError(
            f"the model for images of {shape[0]}×{shape[1]} differs from {model.name!r} by up to "
            f"{apart:.3g} on images of that size; nothing was saved"
        )
    return fixed


def _exportable(graph: Graph, resizing: keras.layers.Resizing) -> Graph:
    """Return a graph with other layers for the resize and for each Normalization."""

    def swapped(node: Node) -> Node:
        layer = node.operation
        if layer is resizing:
            return replace(node, operation=resize_layer(resizing))
        if isinstance(layer, keras.layers.Normalization):
            return replace(node, operation=_scaler(layer))
        return node

    return Graph([graph.nodes[0], *map(swapped, graph.nodes[1:])], graph.outputs)


def _scaler(layer: keras.layers.Normalization) -> keras.Layer:
    """Return a Rescaling that computes what a Normalization does."""
    mean, variance = (np.asarray(each, np.float64) for each in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    factor = (deviation if layer.invert else 1 / deviation).astype(np.float32)
    offset = (mean if layer.invert else -mean * factor).astype(np.float32)
    # Without the batch axis, which has one place.
    numbers = factor[0].tolist(), offset[0].tolist()
    return keras.layers.Rescaling(*numbers, name=layer.name, dtype=layer.dtype_policy)
