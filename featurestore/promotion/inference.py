"""Predict images of any size with a promoted model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone.forward import compiled, compiled_resize
from featurestore.dataset.source import UnreadableError, read
from featurestore.errors import ImageError, InputError
from featurestore.images import decode
from featurestore.promotion.saved import load_model
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    import keras

BATCH = 32
# Batches decoded while another is computed.
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Prediction:
    """The prediction of a promoted model for one image.

    Attributes
    ----------
    path : str
        The image file.
    label : str, int or float
        The class of the highest probability, or the predicted value.
    probabilities : dict
        By class; empty for regression.
    """

    path: str
    label: Any
    probabilities: dict[str, float]


def predict(model_path: str | Path, images: Sequence[str | Path]) -> list[Prediction]:
    """Predict image files with a promoted model.

    Parameters
    ----------
    model_path : path-like
        A promoted ``.keras`` file.
    images : sequence of path-like
        Of any format and size that a data set takes.

    Returns
    -------
    list of Prediction
        In the order of the images.

    Raises
    ------
    InputError
        If the file is not a promoted model, or an image cannot be read.
    """
    model, metadata = load_model(model_path)
    output = Predictor(model)(_read, [Path(image) for image in images])
    classes = metadata["classes"]
    return [_prediction(str(path), row, classes) for path, row in zip(images, output, strict=True)]


def _prediction(path: str, row: np.ndarray, classes: list[Any]) -> Prediction:
    if not classes:
        return Prediction(path, float(row[0]), {})
    probabilities = {str(name): float(each) for name, each in zip(classes, row, strict=True)}
    return Prediction(path, classes[int(row.argmax())], probabilities)


def _read(path: Path, then: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    try:
        return decode(read(str(path)), then)
    except UnreadableError as error:
        raise InputError(f"cannot read {str(path)!r}: {error}") from None
    except ImageError as error:
        raise ImageError(f"cannot decode {str(path)!r}: {error}") from None


class Predictor:
    """A promoted model compiled for inference, with its current weights.

    Threads decode images and resize them with the model's own layer, ahead of the current batch.
    The model resizes them again, which does not change an image of the right size.

    Parameters
    ----------
    model : keras.Model
        Promoted: takes uint8 RGB images (batch, height, width, channel=3).
    """

    def __init__(self, model: keras.Model) -> None:
        resizing = model.get_layer("resizing")
        self.resize = compiled_resize(resizing)
        self._columns = model.output_shape[-1]
        self._forward = compiled(
            lambda images: [model(images, training=False)], (resizing.height, resizing.width, 3)
        )

    def __call__(self, read: Callable[[Any, Any], np.ndarray], items: Any) -> np.ndarray:
        """Predict for each item.

        Parameters
        ----------
        read : callable
            Takes an item and a function; applies the function to the item's decoded image
            (height, width, 3) and returns the result. Called in threads; such as
            :meth:`Dataset.image`.
        items : sequence
            Such as row numbers.

        Returns
        -------
        numpy.ndarray of float32, (item, class) or (item, 1)
        """
        parts = [np.zeros((0, self._columns), np.float32)]
        images = map_ahead(lambda item: read(item, self.resize), items, BATCHES_AHEAD * BATCH)
        with closing(images):
            while batch := list(islice(images, BATCH)):
                parts.append(self._forward(np.stack(batch))[0])
        return np.concatenate(parts)
