"""Promoted models as files: plain ``.keras`` archives with two more members.

Keras ignores them, and leaves them out when it saves the model itself. ``featurestore.json`` holds
the provenance, ``featurestore-samples.bin`` the digests of the samples that the model has seen. The
class names are in the model; see :mod:`featurestore.promotion.carried`.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.backbone import sources
from featurestore.digests import digest_array, digest_fields, json_text
from featurestore.errors import InputError, nearest, one_line, received
from featurestore.promotion.seen import Seen
from featurestore.scratch import check_place, written
from featurestore.table import printable

if TYPE_CHECKING:
    import keras

MEMBER = "featurestore.json"
SAMPLES = "featurestore-samples.bin"


@dataclass(frozen=True)
class Promoted:
    """A promoted model, ready to evaluate and to predict.

    Attributes
    ----------
    name : str
        Its file, for messages.
    model : keras.Model
    classes : tuple of str or int
        The class of each column of its output; empty for a regressor.
    resizing : keras.layers.Resizing
        How images get the size that the backbone takes.
    seen : Seen or None
        The samples that it was trained and selected on; None if nothing says which.
    metadata : dict
        The provenance; empty if Keras saved the file.
    """

    name: str
    model: keras.Model
    classes: tuple[Any, ...]
    resizing: Any
    seen: Seen | None
    metadata: dict[str, Any]

    @property
    def task(self) -> str:
        """``classification``, or ``regression``."""
        return "classification" if self.classes else "regression"


def save_model(
    model: keras.Model, path: str | Path, metadata: dict[str, Any], seen: Seen | None = None
) -> None:
    """Write a model of stock Keras layers as one file, atomically, with its provenance.

    Raises
    ------
    InputError
        If the path does not end in ``.keras``, its folder does not exist, or it cannot be
        written to. An existing file of that name is then unchanged.
    """
    with written(check_target(path)) as part:
        type(model).save(model, part)
        with zipfile.ZipFile(part, "a") as archive:
            if seen is not None:
                metadata = {**metadata, "samples": seen.fields()}
                archive.writestr(SAMPLES, seen.samples.tobytes())
            archive.writestr(MEMBER, json_text(metadata))


def check_target(path: str | Path) -> Path:
    """Return the path if a model file can be written to it; see :func:`save_model`."""
    path = Path(path)
    if path.suffix != ".keras":
        raise InputError(f"a model is saved as a .keras file; got {str(path)!r}")
    check_place(path)
    return path


def weights_digest(model: keras.Model) -> str:
    """Return a digest of a model's weights."""
    return digest_fields({"weights": [digest_array(each) for each in model.get_weights()]})


def load_model(
    model: str | Path | keras.Model | Promoted, classes: Sequence[Any] | None = None
) -> Promoted:
    """Open a promoted model: its file, in Keras' safe mode, or a model in memory.

    Training it further, saving it with Keras and nesting it in a ``keras.Sequential`` leave it
    what it is.

    Parameters
    ----------
    model : path-like or keras.Model
        What :meth:`Promotion.save`, ``keras.Model.save`` or ``ModelCheckpoint`` wrote, or the model
        itself.
    classes : sequence of str or int, optional
        The class of each column of the output, if the model does not carry them.

    Raises
    ------
    InputError
        If there is no such file, it is not a promoted model, or its classes are not known.
    """
    if isinstance(model, Promoted):
        return model
    opened = open_model(model)
    if not isinstance(model, str | os.PathLike):
        return _promoted(f"model {opened.name!r}", opened, classes, None, {})
    path = Path(model)
    return _promoted(str(path), opened, classes, read_seen(path), read_metadata(path))


def open_model(model: str | Path | keras.Model | Promoted) -> keras.Model:
    """Return a model in memory as it is, or load that of a file in Keras' safe mode.

    Raises
    ------
    InputError
        If it is neither, there is no such file, or it is not a Keras model.
    """
    if isinstance(model, Promoted):
        return model.model
    if not isinstance(model, str | os.PathLike):
        keras = sys.modules.get("keras")  # Whoever has a Keras model has loaded Keras.
        if keras is None or not isinstance(model, keras.Model):
            raise InputError(
                f"the model is {received(model)}; expected a promoted .keras file or a "
                "keras.Model, such as promotion.model"
            )
        return model
    path = Path(model)
    read_metadata(path)
    try:
        return sources.load_model(path)
    except InputError as error:
        raise InputError(f"cannot load {path} as a Keras model: {error}") from error


def _promoted(
    name: str,
    model: keras.Model,
    classes: Sequence[Any] | None,
    seen: Seen | None,
    metadata: dict[str, Any],
) -> Promoted:
    from featurestore.backbone.graph import dissolve
    from featurestore.promotion.carried import carried_classes, resizing_of

    try:
        graph = dissolve(model)
        resizing, carried = resizing_of(graph), carried_classes(graph)
    except InputError as error:
        raise InputError(f"{name} is not a promoted model: {error}") from error
    found = tuple(graph.nodes[0].outputs[0].shape), tuple(model.output_shape)
    if resizing is None or len(found[0]) != 4 or found[0][3] != 3 or len(found[1]) != 2:
        raise InputError(
            f"{name} maps {found[0]} to {found[1]}; expected a promoted model, which resizes "
            "images (None, None, None, 3) to uint8 itself; make one with `featurestore promote "
            "HEAD -o MODEL.keras`, or put the resize before a model of your own: "
            "keras.Sequential([keras.Input((None, None, 3), dtype='uint8'), "
            "keras.layers.Resizing(224, 224, antialias=True, dtype='uint8'), model])"
        )
    return Promoted(name, model, _classes(name, model, carried, classes), resizing, seen, metadata)


def _classes(
    name: str, model: keras.Model, carried: Sequence[Any] | None, given: Sequence[Any] | None
) -> tuple[Any, ...]:
    """Return the class of each column, as the model says or, if it does not, the caller."""
    columns = int(model.output_shape[1])
    given = None if given is None else _listed(given)
    probabilities = carried is not None or _gives_probabilities(model)
    if given is None and columns == 1 and not probabilities:
        return ()
    # One sigmoid is the probability of the second of two classes.
    wanted = max(columns, 2)
    if carried is None and given is None:
        raise InputError(
            f"{name} gives {columns} values for an image, but does not name the classes; pass "
            f"--classes with {wanted} names in the order of its output, joined by commas "
            "(classes=[…] in Python)"
        )
    if not probabilities:
        raise InputError(
            f"{name} ends without softmax, so that it gives no probabilities; add one: "
            "keras.Sequential([model, keras.layers.Softmax()])"
        )
    known = tuple(carried if carried is not None else given or ())
    of_one_type = {str} == set(map(type, known)) or {int} == set(map(type, known))
    if not of_one_type or len(set(known)) < len(known) or len(known) != wanted:
        raise InputError(
            f"{name} tells {wanted} classes apart; found {len(known)} ({shown(known)}), "
            "expected a name for each, all different"
        )
    if given is not None and given != known:
        raise InputError(f"{name} already names its classes ({shown(known)}); leave --classes out")
    return known


def _listed(classes: Any) -> tuple[Any, ...]:
    """Return the classes that a caller gives, in their order: a list, an array or a column."""
    values = classes.tolist() if hasattr(classes, "tolist") else classes
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise InputError(
            f"classes is {received(classes)}; expected a list of names in the order of the "
            "model's output"
        )
    return tuple(each.item() if isinstance(each, np.generic) else each for each in values)


def shown(classes: Sequence[Any]) -> str:
    """Return the first of some classes for a message, which is one line."""
    return printable(", ".join(map(str, classes[:5])))


def _gives_probabilities(model: keras.Model) -> bool:
    from featurestore.heads.network import last_operation

    last = last_operation(model)
    name = getattr(getattr(last, "activation", None), "__name__", type(last).__name__)
    return name.lower() in ("sigmoid", "softmax")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the provenance of a promoted model without loading Keras; ``{}`` if it records none.

    Raises
    ------
    InputError
        If there is no such file, it is not a Keras model, or its provenance is damaged.
    """
    path = Path(path)
    if not path.is_file():
        known = [str(each) for each in path.parent.glob("*.keras")] if path.parent.is_dir() else []
        raise InputError(f"no model file {str(path)!r}; {nearest(str(path), known)}")
    if path.suffix in (".h5", ".hdf5"):
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            archive.getinfo("config.json")
            if MEMBER not in archive.namelist():
                return {}
            metadata = json.loads(archive.read(MEMBER))
            if not isinstance(metadata, dict):
                raise ValueError(f"{MEMBER} is not an object")
            return metadata
    except Exception as error:  # zipfile, zlib and JSON raise a dozen kinds
        raise InputError(
            f"{path} is not a promoted model: {one_line(error)}; make one with "
            "`featurestore promote HEAD -o MODEL.keras`"
        ) from error


def read_seen(path: str | Path) -> Seen | None:
    """Read which samples a promoted model was trained and selected on; None if it does not say.

    Raises
    ------
    InputError
        If the file is not a Keras model, or the record is damaged.
    """
    fields = read_metadata(path).get("samples")
    if fields is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return Seen.from_bytes(archive.read(SAMPLES), fields)
    except Exception as error:  # zipfile and zlib raise a dozen kinds
        raise InputError(
            f"{path} does not say which samples it was trained on ({one_line(error)}); promote the "
            "head again with `featurestore promote HEAD -o MODEL.keras`"
        ) from error
