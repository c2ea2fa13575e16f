"""Predict images of any size with a promoted model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone.forward import with_tensorflow
from featurestore.backbone.graph import dissolve
from featurestore.backbone.resizing import compiled_resize
from featurestore.dataset.folder import list_files
from featurestore.dataset.source import UnreadableError, absolute, is_uri, read
from featurestore.dataset.table import list_rows
from featurestore.dataset.table_file import is_frame, is_table
from featurestore.errors import ImageError, InputError, nearest, path_text, received
from featurestore.images import decode
from featurestore.promotion.onnx_model import OnnxModel
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
        The image file, as it was given; of a folder's files, the folder as it was given and the
        path in it.
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
    label: Any = None
    probabilities: dict[Any, float] = field(default_factory=dict)
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


def list_images(
    images: Any, image_column: str | None = None, root: str | Path | None = None
) -> list[Prediction]:
    """List image files, those of folders, and those that tables name, without labels yet.

    Raises
    ------
    InputError
        If a file, folder or table does not exist, a folder holds no file, or a table does not have
        the column.
    """
    above = None if root is None else absolute(root)
    if is_frame(images):
        return [
            Prediction(path, columns=row) for path, row in list_rows(images, image_column, above)
        ]
    places = [images] if isinstance(images, str | os.PathLike) else images
    what, expected = "the images", "image files, folders or tables, or one DataFrame"
    if not isinstance(places, Iterable):
        raise InputError(f"{what} are {received(images)}", expected)
    texts = [path_text(place, f"one of {what}", expected) for place in places]
    return [image for place in texts for image in _images_of(place, image_column, above)]


def _images_of(place: str, image_column: str | None, root: str | None) -> Iterator[Prediction]:
    if os.path.isdir(place):
        top = absolute(place)
        paths, problems = list_files(top)
        for path in paths:
            yield Prediction(os.path.join(place, os.path.relpath(path, top)))
        for problem in problems:
            if problem.kind == "quarantined":
                path = os.path.join(place, os.path.relpath(problem.path, top))
                yield Prediction(path, problem=f"cannot read {path!r}: {problem.reason}")
    elif is_table(place):
        for path, row in list_rows(absolute(place), image_column, root):
            yield Prediction(path, columns=row)
    elif is_uri(place) or os.path.lexists(place):
        yield Prediction(place)
    else:
        parent = Path(place).parent
        siblings = sorted(map(str, parent.iterdir())) if parent.is_dir() else []
        raise InputError(f"no image {place!r}", remedy=nearest(place, siblings))


def predict_listed(
    model: str | Path | keras.Model | Promoted, listed: Sequence[Prediction]
) -> Table[Prediction]:
    """Predict images that :func:`list_images` has listed; see :func:`predict`."""
    promoted = load_model(model)
    problems = {number: image.problem for number, image in enumerate(listed) if image.problem}

    def decoded(number: int, resize: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        path = listed[number].path
        try:
            if number not in problems:
                return decode(read(path), resize)
        except UnreadableError as error:
            problems[number] = f"cannot read {path!r}: {error}"
        except ImageError as error:
            problems[number] = f"cannot decode {path!r}: {error}"
        return resize(np.zeros((1, 1, 3), np.uint8))

    output = Predictor(promoted)(decoded, range(len(listed)))
    predictions = [
        replace(image, problem=problems[number])
        if number in problems
        else predicted(image, row, promoted.classes)
        for number, (image, row) in enumerate(zip(listed, output, strict=True))
    ]
    return Table(predictions, _layout, _as_row)


def predicted(image: Prediction, output: np.ndarray, classes: Sequence[Any]) -> Prediction:
    """Return the prediction that a model's output for an image, (class,) or (1,), stands for."""
    if not classes:
        return replace(image, label=float(output[0]))
    probabilities = dict(zip(classes, output.tolist(), strict=True))
    return replace(image, label=classes[int(output.argmax())], probabilities=probabilities)


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


class Predictor:
    """A promoted model compiled for inference, with its current weights.

    Threads decode images and resize them by the model's own rule, ahead of the current batch. The
    model resizes them again, which does not change an image of the right size.
    """

    def __init__(self, promoted: Promoted) -> None:
        resizing = promoted.resizing
        self.resize = compiled_resize(resizing)
        self._columns = len(promoted.classes) or 1
        if isinstance(promoted.model, OnnxModel):
            self._forward: Callable[[np.ndarray], list[np.ndarray]] = promoted.model
            return
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
