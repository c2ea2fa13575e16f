"""Promoted models as files: plain ``.keras`` archives with two more members.

Keras ignores them. ``featurestore.json`` holds the class names, the task and the lineage;
``featurestore-samples.bin`` the digests of the samples that the model has seen.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from featurestore import durable
from featurestore.backbone import sources
from featurestore.digests import digest_array, digest_fields, json_text
from featurestore.errors import InputError, nearest, one_line
from featurestore.promotion.seen import Seen
from featurestore.scratch import scratch

if TYPE_CHECKING:
    import keras

MEMBER = "featurestore.json"
SAMPLES = "featurestore-samples.bin"


class Metadata(BaseModel):
    """The fields of ``featurestore.json`` that a model is used by; others are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow")

    task: Literal["classification", "regression"]
    classes: list[str] | list[int]

    @model_validator(mode="after")
    def _fit(self) -> Metadata:
        count = len(self.classes)
        fits = count == 0 if self.task == "regression" else count > 1
        if not fits or len(set(self.classes)) < count:
            raise ValueError(f"{self.classes[:5]} are not the classes of a {self.task}")
        return self


def save_model(
    model: keras.Model, path: str | Path, metadata: dict[str, Any], seen: Seen | None = None
) -> None:
    """Write a model and its metadata as one file, atomically.

    Parameters
    ----------
    model : keras.Model
        Of stock Keras layers.
    path : path-like
        Must end in ``.keras``.
    metadata : dict of JSON values
        ``classes``, ``task`` and the lineage.
    seen : Seen, optional
        The samples that the model was made with.

    Raises
    ------
    InputError
        If the path does not end in ``.keras``, its folder does not exist, or it cannot be
        written to. A former file of that name is then unchanged.
    """
    path = check_target(path)
    try:
        with scratch(beside=path.parent) as folder:
            part = folder / path.name
            type(model).save(model, part)
            with zipfile.ZipFile(part, "a") as archive:
                if seen is not None:
                    metadata = {**metadata, "samples": seen.fields()}
                    archive.writestr(SAMPLES, seen.samples.tobytes())
                archive.writestr(MEMBER, json_text(metadata))
            durable.commit(part, path)
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r}: {error.strerror or one_line(error)}; make room, or give "
            "another file"
        ) from error


def check_target(path: str | Path) -> Path:
    """Return the path if a model file can be written to it; see :func:`save_model`."""
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"a model is saved as a .keras file; got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"no folder {str(path.parent)!r} to write {path.name} into; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "it is a folder" if path.is_dir() else "the folder is read-only"
        raise InputError(f"cannot write {str(path)!r}: {why}; give another file, ending in .keras")
    return path


def weights_digest(model: keras.Model) -> str:
    """Return a digest of a model's weights."""
    return digest_fields({"weights": [digest_array(each) for each in model.get_weights()]})


def load_model(path: str | Path) -> tuple[keras.Model, dict[str, Any]]:
    """Load a promoted model, in Keras' safe mode, with its metadata.

    Parameters
    ----------
    path : path-like
        A file that :func:`save_model` wrote.

    Returns
    -------
    model : keras.Model
        Takes raw uint8 RGB images (batch, height, width, channel=3).
    metadata : dict
        ``classes``, ``task`` and the lineage.

    Raises
    ------
    InputError
        If there is no such file, or it is not a promoted model.
    """
    metadata = read_metadata(path)
    try:
        model = sources.load_model(path)
    except InputError as error:
        raise InputError(f"cannot load {path} as a Keras model: {error}") from error
    expected = (None, None, None, 3), (None, len(metadata["classes"]) or 1)
    resizes = any(_resizes(layer) for layer in model.layers)
    if (model.input_shape, model.output_shape) != expected or not resizes:
        raise InputError(
            f"{path} maps {model.input_shape} to {model.output_shape}; expected a promoted model, "
            f"which by its {MEMBER} maps images {expected[0]} to {expected[1]}; promote the head "
            "again"
        )
    return model, metadata


def _resizes(layer: keras.Layer) -> bool:
    import keras

    return layer.name == "resizing" and isinstance(layer, keras.layers.Resizing)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata of a promoted model without loading Keras.

    Raises
    ------
    InputError
        If there is no such file, or it is not a promoted model.
    """
    path = Path(path)
    if not path.is_file():
        known = [str(each) for each in path.parent.glob("*.keras")] if path.parent.is_dir() else []
        raise InputError(f"no model file {str(path)!r}; {nearest(str(path), known)}")
    try:
        with zipfile.ZipFile(path) as archive:
            return Metadata.model_validate(json.loads(archive.read(MEMBER))).model_dump()
    except Exception as error:  # zipfile, zlib, JSON and pydantic raise a dozen kinds
        raise InputError(
            f"{path} is not a promoted model: {one_line(error)}; make one with "
            "`featurestore promote HEAD -o MODEL.keras`"
        ) from error


def read_seen(path: str | Path) -> Seen:
    """Read which samples a promoted model was trained and selected on.

    Raises
    ------
    InputError
        If the file is not a promoted model, or does not record it.
    """
    metadata = read_metadata(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return Seen.from_bytes(archive.read(SAMPLES), metadata["samples"])
    except Exception as error:  # zipfile and zlib raise a dozen kinds
        raise InputError(
            f"{path} does not say which samples it was trained on ({one_line(error)}); promote the "
            "head again with `featurestore promote HEAD -o MODEL.keras`"
        ) from error
