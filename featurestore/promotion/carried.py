"""What a promoted model carries in its own layers, so that Keras keeps it in every copy.

The class names are the ``seed`` of a ``Dropout`` of rate 0 after the softmax. Such a layer draws
nothing, and gives its input: training, saving, cloning and export leave it as it is. In the same
way, a model for images of one size carries how images become that size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from featurestore.backbone.copying import clone
from featurestore.backbone.forward import compiled
from featurestore.backbone.graph import Graph, dissolve
from featurestore.errors import InputError, ParityError, one_line

CLASSES, RESIZING = "classes", "resizing"
# Noise that a model for images of one size is compared on.
PROOF_IMAGES = 8
# Both compute the same layers; the resize between them may change the order of sums.
MOST_APART = 1e-5


def classes_layer(classes: Sequence[Any], name: str = CLASSES) -> keras.Layer:
    """Return a layer that changes nothing and carries the class of each column, str or int."""
    named = [each if isinstance(each, str) else int(each) for each in classes]
    return keras.layers.Dropout(0.0, seed=named, name=name)


def carried_classes(graph: Graph) -> tuple[Any, ...] | None:
    """Return the classes that a model's last layer carries; None if it carries none."""
    layer = graph.nodes[graph.outputs[0][0]].operation
    return tuple(layer.seed) if _carried(layer, list) else None


def carries_classes(layers: Iterable[Any]) -> bool:
    """Whether one of these layers carries classes, so that they come from a promoted model."""
    return any(_carried(each, list) for each in layers)


def resizing_of(graph: Graph) -> keras.layers.Resizing | None:
    """Return how a model resizes images, or would: the layer in it, or that which it carries."""
    for node in graph.nodes[1:]:
        if node.inputs[:1] != ((0, 0),):
            continue
        layer = node.operation
        if isinstance(layer, keras.layers.Resizing):
            return layer
        if _carried(layer, dict):
            try:
                return keras.layers.Resizing.from_config({**layer.seed, "dtype": "uint8"})
            except Exception as error:  # whatever a made-up file says
                raise InputError(
                    f"layer {layer.name!r} says no resize: {one_line(error)}"
                ) from None
    return None


def fixed_images(model: keras.Model) -> keras.Model:
    """Return a copy of a promoted model for images of one size, which exports to LiteRT and ONNX.

    These have no operation for the resize of a promoted model. The copy takes images that were
    resized before, and carries how; `predict` and `evaluate` resize them by that.

    Parameters
    ----------
    model : keras.Model
        Promoted, as it is now; it is not changed.

    Returns
    -------
    keras.Model
        Takes uint8 RGB images (batch, height, width, channel=3) of the backbone's input size.

    Raises
    ------
    InputError
        If the model does not begin with the resize of a promoted model.
    ParityError
        If the two differ on images of that size.

    Examples
    --------
    >>> fixed = fixed_images(keras.models.load_model("flowers.keras"))  # doctest: +SKIP
    >>> fixed.export("flowers.tflite", format="litert")  # doctest: +SKIP
    """
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
    outputs = clone(_without_resize(graph, resizing), image, ends)
    fixed = keras.Model(image, outputs, name=model.name)
    noise = np.random.default_rng(0).integers(0, 256, (PROOF_IMAGES, *shape), np.uint8)
    found, expected = (forward_of(each, shape)(noise) for each in (dissolve(fixed), graph))
    apart = float(np.abs(found - expected).max())
    if not apart <= MOST_APART * max(1.0, float(np.abs(expected).max())):
        raise ParityError(
            f"the model for images of {shape[0]}×{shape[1]} differs from {model.name!r} by up to "
            f"{apart:.3g} on images of that size; nothing was saved"
        )
    return fixed


def _carried(layer: Any, kind: type) -> bool:
    return isinstance(layer, keras.layers.Dropout) and isinstance(layer.seed, kind)


def forward_of(graph: Graph, shape: tuple[int, ...]) -> Any:
    """Compile a model's first output for images of one size, uint8 (batch, *shape)."""
    ((end, output), *_) = graph.outputs
    forward = compiled(lambda images: [graph.run(images, [end])[0][output]], shape)
    return lambda images: forward(images)[0]


def _without_resize(graph: Graph, resizing: keras.layers.Resizing) -> Graph:
    config = resizing.get_config()
    kept = {name: value for name, value in config.items() if name not in ("dtype", "trainable")}
    carrier = keras.layers.Dropout(0.0, seed=kept, name=RESIZING, dtype="uint8")

    def swapped(node: Any) -> Any:
        first = node.inputs[:1] == ((0, 0),) and isinstance(node.operation, type(resizing))
        return replace(node, operation=carrier) if first else node

    return Graph([graph.nodes[0], *map(swapped, graph.nodes[1:])], graph.outputs, graph.own_names)
