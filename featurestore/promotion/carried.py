"""Metadata in the layers of a promoted model, which Keras keeps in every copy.

The class names are the ``seed`` of a ``Dropout`` of rate 0 after the softmax. Such a layer draws
nothing, and gives its input: training, saving, cloning and export leave it as it is. In the same
way, a model for images of one size carries how images become that size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import keras
from pydantic import Field

from featurestore.backbone.graph import Graph
from featurestore.backbone.preprocessing import Interpolation
from featurestore.errors import InputError, one_line
from featurestore.images import MAX_PIXELS, MAX_SIDE
from featurestore.settings import Settings

CLASSES, RESIZING = "classes", "resizing"
_Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


class _Resize(Settings):
    """What a file may say of a resize: TensorFlow ends the process where some of it is wrong."""

    height: _Side
    width: _Side
    interpolation: Interpolation = "bilinear"
    crop_to_aspect_ratio: bool = False
    pad_to_aspect_ratio: bool = False
    fill_mode: Literal["constant"] = "constant"
    fill_value: Annotated[int, Field(ge=0, le=255)] = 0
    antialias: bool = False
    data_format: Literal["channels_last"] = "channels_last"

    @classmethod
    def checked(cls, config: Mapping[str, Any], takes: Sequence[int | None]) -> Self:
        """Validate the config of a layer for a model that takes images (batch, height, width, …).

        Raises
        ------
        InputError
            If TensorFlow cannot resize so, or to another size than the model takes.
        """
        resize = cls.of({name: config[name] for name in config if name not in _NO_PART})
        size = resize.height, resize.width
        if resize.height * resize.width > MAX_PIXELS:
            raise InputError(f"{size[0]}×{size[1]}; expected at most {MAX_PIXELS:,} pixels")
        if resize.crop_to_aspect_ratio and resize.pad_to_aspect_ratio:
            raise InputError("crop and pad at once; expected one of them")
        if any(side not in (None, each) for side, each in zip(takes[1:3], size, strict=False)):
            raise InputError(
                f"{size[0]}×{size[1]}; expected the size of the model's input, "
                f"{takes[1]}×{takes[2]}"
            )
        return resize


# Of a layer's config, what says nothing of the resize.
_NO_PART = ("name", "dtype", "trainable")


def classes_layer(classes: Sequence[Any], name: str = CLASSES) -> keras.Layer:
    """Return an identity layer that carries the class of each column, str or int."""
    named = [each if isinstance(each, str) else int(each) for each in classes]
    return keras.layers.Dropout(0.0, seed=named, name=name)


def resize_layer(resizing: keras.layers.Resizing) -> keras.Layer:
    """Return an identity layer that carries how images were resized before."""
    config = resizing.get_config()
    kept = {name: value for name, value in config.items() if name not in _NO_PART}
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
    takes = graph.nodes[0].outputs[0].shape
    images = {(0, 0)}
    for number, node in enumerate(graph.nodes[1:], 1):
        if not images.issuperset(node.inputs[:1]) or not node.inputs:
            continue
        layer = node.operation
        if node.kind.startswith("Random") or node.kind == "Cast":
            images.add((number, 0))
        resizes = isinstance(layer, keras.layers.Resizing) and "int" in str(layer.compute_dtype)
        if not resizes and not _carried(layer, dict):
            continue
        try:
            if resizes:
                _Resize.checked(layer.get_config(), ())
                return layer
            resize = _Resize.checked(layer.seed, takes)
            return keras.layers.Resizing(**resize.model_dump(), dtype="uint8", name=RESIZING)
        except Exception as error:  # whatever a made-up file says
            raise InputError(
                f"layer {layer.name!r} says no resize that can be done: {one_line(error)}; promote "
                "the head again with `featurestore promote HEAD -o MODEL.keras`"
            ) from None
    return None


def _carried(layer: Any, kind: type) -> bool:
    return isinstance(layer, keras.layers.Dropout) and isinstance(layer.seed, kind)
