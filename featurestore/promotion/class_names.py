"""The class names of a promoted model, which every copy of it keeps.

They are the ``seed`` of a ``Dropout`` of rate 0 after the softmax. Such a layer draws nothing and
returns its input. No other layer of Keras takes a list of names and computes nothing: saving,
cloning, training and export leave it as it is, where Keras drops what a file says beside the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from featurestore.backbone.graph import Graph

CLASSES = "classes"


def classes_layer(classes: Sequence[Any], name: str = CLASSES) -> keras.Layer:
    """Return an identity layer that carries the class of each column, str or int."""
    names = [label if isinstance(label, str) else int(label) for label in classes]
    return keras.layers.Dropout(0.0, seed=names, name=name)


def class_names(graph: Graph) -> tuple[Any, ...]:
    """Return the classes that a model's last layer carries; none for a model of numbers."""
    layer = graph.nodes[graph.outputs[0][0]].operation
    return tuple(layer.seed) if has_class_names([layer]) else ()


def has_class_names(layers: Iterable[Any]) -> bool:
    """Whether one of these layers carries classes, so that they come from a promoted model."""
    dropouts = [layer for layer in layers if isinstance(layer, keras.layers.Dropout)]
    return any(isinstance(layer.seed, list) for layer in dropouts)
