"""Predictions of a promoted model on images of any size, quickly: its own resizing, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone.forward import compiled, compiled_resize
from featurestore.errors import InputError

if TYPE_CHECKING:
    import keras

BATCH = 32


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
        self.resize = resizing(model)
        layer = model.get_layer("resizing")
        weight_bytes = sum(int(np.prod(each.shape)) * 4 for each in model.weights)
        self._forward = compiled(
            lambda images: [model(images, training=False)],
            (layer.height, layer.width, 3),
            weight_bytes,
        )

    def __call__(self, read: Callable[[Any], np.ndarray], items: Any) -> np.ndarray:
        """Predict for each item.

        Parameters
        ----------
        read : callable
            From an item to its decoded image, uint8 (height, width, 3); called in threads.
        items : sequence
            Such as row numbers.

        Returns
        -------
        numpy.ndarray of float32, (item, class) or (item, 1)
        """
        parts = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(items), BATCH):
                batch = items[start : start + BATCH]
                images = list(pool.map(lambda item: self.resize(read(item)), batch))
                parts.append(self._forward(np.stack(images))[0])
        return np.concatenate(parts)


def resizing(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return the resizing of a promoted model: uint8 (height, width, 3) of any size to its own."""
    try:
        layer = model.get_layer("resizing")
    except ValueError:
        raise InputError(
            f"model {model.name!r} has no layer 'resizing', and so was not promoted from a head; "
            "make one with `featurestore promote HEAD -o MODEL.keras`"
        ) from None
    return compiled_resize(layer)
