"""What a promoted model file is for: measuring it on other data, and predicting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.dataset.source import UnreadableError, read_file
from featurestore.errors import DatasetError, ImageError, InputError
from featurestore.images import decode
from featurestore.promotion.evaluation import measure
from featurestore.promotion.predictor import Predictor
from featurestore.promotion.saved import load_model, read_seen

if TYPE_CHECKING:
    from featurestore.dataset import Dataset


@dataclass(frozen=True)
class Prediction:
    """What a promoted model says of one image.

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


def evaluate(model_path: str | Path, data: Dataset) -> dict[str, dict[str, Any]]:
    """Measure a promoted model on labelled samples, on those that it has seen apart.

    Which samples it has seen, the model file says, by their digests; the splits of ``data`` do not
    matter.

    Parameters
    ----------
    model_path : path-like
        A promoted ``.keras`` file.
    data : Dataset
        Labelled with the classes that the model knows.

    Returns
    -------
    dict of str to dict
        Metrics of each group of samples: ``train``, ``val`` and ``test`` as they were split when
        the model was made, ``unseen`` those that were not in its data set. ``used_for`` is what
        the model used a group for: ``training``, ``selection`` (of the head or the epoch),
        ``nothing``, or ``unknown`` if the model was trained further after promotion.

    Raises
    ------
    InputError
        Where the file is no promoted model.
    DatasetError
        Where the data set has no labels, or labels of another kind.
    """
    model, metadata = load_model(model_path)
    if data.labels is None or data.task != metadata["task"]:
        raise DatasetError(
            f"{model_path} was trained for {metadata['task']}, and {data.name} has "
            f"{f'labels for {data.task}' if data.task else 'no labels'}; give data that is "
            "labelled alike, or use `featurestore predict`"
        )
    known = metadata["classes"]
    if known and not set(known) & set(data.classes):
        raise DatasetError(
            f"{model_path} knows the classes {', '.join(map(str, known[:5]))}, and none of them "
            f"is a label in {data.name} ({', '.join(map(str, data.classes[:5]))})"
        )
    return measure(model, data, read_seen(Path(model_path), metadata), known)


def predict(model_path: str | Path, images: Sequence[str | Path]) -> list[Prediction]:
    """Predict image files with a promoted model.

    Parameters
    ----------
    model_path : path-like
        A promoted ``.keras`` file.
    images : sequence of path-like
        Files of any format and size that a data set takes.

    Returns
    -------
    list of Prediction
        In the order of the images.

    Raises
    ------
    InputError
        Where the file is no promoted model, or an image cannot be read.
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
        return decode(read_file(str(path))[0], then)
    except UnreadableError as error:
        raise InputError(f"cannot read {str(path)!r}: {error}") from None
    except ImageError as error:
        raise ImageError(f"cannot decode {str(path)!r}: {error}") from None
