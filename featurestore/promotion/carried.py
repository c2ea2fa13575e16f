"""What a promoted model carries in its own layers, so that Keras keeps it in every copy.

The class names are the ``seed`` of a ``Dropout`` of rate 0 after the softmax. Such a layer draws
nothing, and gives its input: training, saving, cloning and export leave it as it is. In the same
way, a model for images of one size carries how images become that size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from featurestore.backbone.graph import Graph
from featurestore.errors import InputError, one_line

CLASSES, RESIZING = "classes", "resizing"


def classes_layer(classes: Sequence[Any], name: str = CLASSES) -> keras.Layer:
    """Return a layer that changes nothing and carries the class of each column, str or int."""
    named = [each if isinstance(each, str) else int(each) for each in classes]
    return keras.layers.Dropout(0.0, seed=named, name=name)


def resize_layer(resizing: keras.layers.Resizing) -> keras.Layer:
    """Return a layer that changes nothing and carries how images were resized before."""
    config = resizing.get_config()
    kept = {name: value for name, value in config.items() if name not in ("dtype", "trainable")}
    return keras.layers.Dropout(0.0, seed=kept, name=RESIZING, dtype="uint8")


def carried_classes(graph: Graph) -> tuple[Any, ...] | None:
    """Return the classes that a model's last layer carries; None if it carries none."""
    layer = graph.nodes[graph.outputs[0][0]].operation
    return tuple(layer.seed) if _carried(layer, list) else None


def carries_classes(layers: Iterable[Any]) -> bool:
    """Whether one of these layers carries classes, so that they come from a promoted model."""
    return any(_carried(each, list) for each in layers)


def resizing_of(graph: Graph) -> keras.layers.Resizing | None:
    """Return how a model resizes images, or would: the layer in it, or that which it carries.

    Augmentation may come before it: layers such as ``RandomFlip`` do nothing in inference.
    """
    images = {(0, 0)}
    for number, node in enumerate(graph.nodes[1:], 1):
        if not images.issuperset(node.inputs[:1]) or not node.inputs:
            continue
        layer = node.operation
        if node.kind.startswith("Random") or node.kind == "Cast":
            images.add((number, 0))
        if isinstance(layer, keras.layers.Resizing) and "int" in str(layer.compute_dtype):
            return layer
        if _carried(layer, dict):
            try:
                return keras.layers.Resizing.from_config({**layer.seed, "dtype": "uint8"})
            except Exception as error:  # whatever a made-up file says
                raise InputError(
                    f"layer {layer.name!r} says no resize: {one_line(error)}"
                ) from None
    return None


def _carried(layer: Any, kind: type) -> bool:
    return isinstance(layer, keras.layers.Dropout) and isinstance(layer.seed, kind)
