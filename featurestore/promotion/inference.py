"""Predict images of any size with a promoted model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone.forward import with_tensorflow
from featurestore.backbone.graph import dissolve
from featurestore.backbone.resizing import compiled_resize
from featurestore.dataset.source import UnreadableError, read
from featurestore.errors import ImageError, InputError
from featurestore.images import decode
from featurestore.promotion.listing import Listed, list_images
from featurestore.promotion.saved import Promoted, load_model
from featurestore.table import Grid, Table
from featurestore.threads import map_ahead

if TYPE_CHECKING:
    import keras
    import pandas

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
    label : str, int, float or None
        The class of the highest probability, or the predicted value; None if the image cannot be
        used.
    probabilities : dict
        By class, str or int as `label` is; empty for regression.
    columns : dict
        The cells of the image's row, if a table listed it.
    problem : str or None
        Why the image cannot be used.
    """

    path: str
    label: Any
    probabilities: dict[Any, float]
    columns: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def predict(
    model: str | Path | keras.Model | Promoted,
    images: str | Path | Sequence[str | Path] | pandas.DataFrame,
    *,
    image_column: str | None = None,
    root: str | Path | None = None,
) -> Table[Prediction]:
    """Predict the classes or values of images with a promoted model.

    Parameters
    ----------
    model : path-like or keras.Model
        A promoted model; see :func:`load_model`.
    images : path-like, sequence of these, or DataFrame
        Image files of any format and size that a data set takes, folders of them, and CSV, TSV or
        Parquet tables of them; or a table as a DataFrame of pandas, polars or Arrow.
    image_column : str, optional
        Column of paths in tables; by default ``path``.
    root : path-like, optional
        What paths in tables are relative to; by default the table's folder, or the working
        folder for a DataFrame.

    Returns
    -------
    Table of Prediction
        In the order given: a folder's files sorted, a table's rows as they are. An image that
        cannot be read has a ``problem`` and no label.

    Raises
    ------
    InputError
        If the model cannot be used, or a file, folder or table does not exist.
    """
    return predict_listed(model, list_images(images, image_column, root))


def predict_listed(
    model: str | Path | keras.Model | Promoted, listed: Sequence[Listed]
) -> Table[Prediction]:
    """Predict images that :func:`list_images` has listed; see :func:`predict`."""
    promoted = load_model(model)
    problems: dict[int, str] = {}

    def read(number: int, then: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        try:
            return _read(listed[number], then)
        except InputError as error:
            problems[number] = str(error)
            return then(np.zeros((1, 1, 3), np.uint8))

    output = Predictor(promoted)(read, range(len(listed)))
    predictions = [
        _prediction(image, row, promoted.classes, problems.get(number))
        for number, (image, row) in enumerate(zip(listed, output, strict=True))
    ]
    return Table(predictions, _layout, _as_row)


def _layout(rows: list[dict[str, Any]]) -> Iterator[Grid]:
    likely = any("probability" in row for row in rows)
    fields = ["path", "label", *(["probability"] if likely else [])]
    yield Grid(rows, fields, {"path": "image"})


def _as_row(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as a row of a table: the cells of the user's own, then what is new."""
    new = {"label": prediction.label}
    if likely := prediction.probabilities:
        new["probability"] = max(likely.values())
        new |= {f"probability_{name}": probability for name, probability in likely.items()}
    if prediction.problem:
        new["problem"] = prediction.problem
    columns = {"path": prediction.path, **prediction.columns}
    return {
        **{f"{name}_input" if name in new else name: cells for name, cells in columns.items()},
        **new,
    }


def _prediction(
    image: Listed, row: np.ndarray, classes: Sequence[Any], problem: str | None = None
) -> Prediction:
    if problem is not None:
        return Prediction(image.path, None, {}, image.columns, problem)
    if not classes:
        return Prediction(image.path, float(row[0]), {}, image.columns)
    probabilities = dict(zip(classes, row.tolist(), strict=True))
    return Prediction(image.path, classes[int(row.argmax())], probabilities, image.columns)


def _read(image: Listed, then: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    if image.problem:
        raise InputError(image.problem)
    try:
        return decode(read(image.path), then)
    except UnreadableError as error:
        raise InputError(f"cannot read {image.path!r}: {error}") from None
    except ImageError as error:
        raise ImageError(f"cannot decode {image.path!r}: {error}") from None


class Predictor:
    """A promoted model compiled for inference, with its current weights.

    Threads decode images and resize them by the model's own rule, ahead of the current batch. The
    model resizes them again, which does not change an image of the right size.
    """

    def __init__(self, promoted: Promoted) -> None:
        resizing = promoted.resizing
        self.resize = compiled_resize(resizing)
        self._columns = int(promoted.model.output_shape[-1])
        graph = dissolve(promoted.model)
        (end, output), *_ = graph.outputs
        self._forward = with_tensorflow(
            lambda images: [graph.run(images, [end])[0][output]],
            (resizing.height, resizing.width, 3),
        )

    def __call__(self, read: Callable[[Any, Any], np.ndarray], items: Any) -> np.ndarray:
        """Predict for each item, such as a row number: float32 (item, class) or (item, 1).

        ``read`` takes an item and a function; it applies the function to the item's decoded image
        (height, width, 3) and returns the result. It is called in threads; such as
        :meth:`Dataset.image`.
        """
        batches = [np.zeros((0, self._columns), np.float32)]
        images = map_ahead(lambda item: read(item, self.resize), items, BATCHES_AHEAD * BATCH)
        with closing(images):
            while batch := list(islice(images, BATCH)):
                batches += self._forward(np.stack(batch))
        return np.concatenate(batches)
