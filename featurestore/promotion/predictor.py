"""Predictions of a promoted model on images of any size, quickly: its own resizing, in threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone.forward import compiled, compiled_resize
from featurestore.errors import InputError
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    import keras

BATCH = 32
# Decoded while the one before them is computed.
BATCHES_AHEAD = 2


class Predictor:
    """A promoted model compiled for inference, with the weights that it has now.

    Images are resized one by one, by the model's own layer, and go on in batches: resizing what
    has the right size already changes nothing.

    Parameters
    ----------
    model : keras.Model
        From uint8 RGB images (batch, height, width, channel=3).

    Raises
    ------
    InputError
        Where the model has no resizing layer, and so was not promoted here.
    """

    def __init__(self, model: keras.Model) -> None:
        layer = _resizing(model)
        self.resize = compiled_resize(layer)
        self._columns = model.output_shape[-1]
        weight_bytes = sum(int(np.prod(each.shape)) * 4 for each in model.weights)
        self._forward = compiled(
            lambda images: [model(images, training=False)],
            (layer.height, layer.width, 3),
            weight_bytes,
        )

    def __call__(self, read: Callable[[Any, Any], np.ndarray], items: Any) -> np.ndarray:
        """Predict for each item.

        Parameters
        ----------
        read : callable
            From an item, and a function to apply to its decoded image (height, width, 3), to what
            that gives; called in threads. Such as :meth:`Dataset.image`.
        items : sequence
            Such as row numbers.

        Returns
        -------
        numpy.ndarray of float32, (item, class) or (item, 1)
        """
        parts: list[np.ndarray] = []
        images = map_ahead(lambda item: read(item, self.resize), items, BATCHES_AHEAD * BATCH)
        with closing(images):
            while batch := list(islice(images, BATCH)):
                parts.append(self._forward(np.stack(batch))[0])
        return np.concatenate(parts) if parts else np.zeros((0, self._columns), np.float32)


def _resizing(model: keras.Model) -> keras.layers.Resizing:
    import keras

    layers = [each for each in model.layers if each.name == "resizing"]
    if not layers or not isinstance(layers[0], keras.layers.Resizing):
        raise InputError(
            f"model {model.name!r} has no layer 'resizing', and so was not promoted from a head; "
            "make one with `featurestore promote HEAD -o MODEL.keras`"
        )
    return layers[0]
