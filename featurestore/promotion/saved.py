"""Promoted models as files: plain ``.keras`` archives with two more members.

``keras.models.load_model`` ignores them. They hold what a Keras model has no place for:
``featurestore.json`` the class names, the task, and where the head came from; and
``featurestore-samples.bin`` the digests of the samples that the model has seen.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import durable
from featurestore.backbone import model_files
from featurestore.digests import digest_array, digest_fields
from featurestore.errors import InputError, nearest, one_line
from featurestore.promotion.seen import Seen
from featurestore.scratch import scratch

if TYPE_CHECKING:
    import keras

MEMBER = "featurestore.json"
SAMPLES = "featurestore-samples.bin"


def save_model(
    model: keras.Model, path: str | Path, metadata: dict[str, Any], seen: Seen | None = None
) -> None:
    """Write a model and its metadata as one file, whole or not at all.

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
        Where the path does not end in ``.keras``, its folder does not exist, or it cannot be
        written to. What was there before is left as it was.
    """
    path = check_target(path)
    try:
        with scratch(beside=path.parent) as folder:
            part = folder / path.name
            type(model).save(model, part)
            if seen is not None:
                metadata = {**metadata, "samples": seen.fields()}
            with zipfile.ZipFile(part, "a") as archive:
                if seen is not None:
                    archive.writestr(SAMPLES, seen.to_bytes())
                archive.writestr(MEMBER, json.dumps(metadata, indent=2, ensure_ascii=False))
            durable.commit(part, path)
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r}: {error.strerror or one_line(error)}; make room, or give "
            "another file"
        ) from error


def check_target(path: str | Path) -> Path:
    """Return the path where it can be written to as a model file; see :func:`save_model`."""
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"a model is saved as a .keras file; got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"no folder {str(path.parent)!r} to write {path.name} into; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "it is a folder" if path.is_dir() else "Read-only folder"
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
        Where there is no such file, or it is no promoted model.
    """
    path = Path(path)
    metadata = read_metadata(path)
    try:
        model = model_files.load_model(path)
    except InputError as error:
        raise InputError(f"cannot load {path} as a Keras model: {error}") from error
    columns = len(metadata["classes"]) or 1
    if model.input_shape != (None, None, None, 3):
        raise InputError(
            f"{path} takes {model.input_shape}, and a promoted model images (None, None, None, 3); "
            "promote the head again"
        )
    if model.output_shape != (None, columns):
        raise InputError(
            f"{path} gives {model.output_shape}, and its {MEMBER} names {columns} columns; "
            "promote the head again"
        )
    return model, metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a promoted model without loading Keras."""
    if not path.is_file():
        known = [str(each) for each in path.parent.glob("*.keras")] if path.parent.is_dir() else []
        raise InputError(f"no model file {str(path)!r}; {nearest(str(path), known)}")
    try:
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read(MEMBER))
    except Exception as error:  # zipfile, zlib and JSON raise a dozen kinds
        raise InputError(
            f"{path} is no promoted model (it has no {MEMBER} that can be read); make one with "
            "`featurestore promote HEAD -o MODEL.keras`"
        ) from error
    if not _is_metadata(found):
        raise InputError(f"{path}: {MEMBER} lacks the classes or the task; promote the head again")
    return found


def find_seen(path: Path) -> Seen | None:
    """Read which samples a model file has seen; None if it is not a promoted model."""
    try:
        return read_seen(path, read_metadata(path))
    except InputError:
        return None


def read_seen(path: Path, metadata: dict[str, Any]) -> Seen:
    """Read which samples a promoted model was trained and selected on.

    Parameters
    ----------
    path : Path
        A file that :func:`save_model` wrote.
    metadata : dict
        What :func:`read_metadata` gave.

    Raises
    ------
    InputError
        If the file does not say it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(SAMPLES)
        return Seen.from_bytes(data, metadata["samples"], metadata["trained_further"] is False)
    except Exception as error:  # zipfile and zlib raise a dozen kinds
        raise InputError(
            f"{path} does not say which samples it was trained on ({one_line(error)}); promote the "
            "head again with `featurestore promote HEAD -o MODEL.keras`"
        ) from error


def _is_metadata(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("classes"), list):
        return False
    classes = found["classes"]
    if found.get("task") == "regression":
        return not classes
    kind = type(classes[0]) if len(classes) > 1 else None
    return (
        found.get("task") == "classification"
        and kind in (str, int)
        and all(type(each) is kind for each in classes)
        and len(set(classes)) == len(classes)
    )
