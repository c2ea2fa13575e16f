"""Promoted models as files: plain ``.keras`` archives with one more member.

``featurestore.json`` holds the provenance and the digests of the samples that trained the model.
Keras ignores it, and leaves it out when it saves the model itself. The class names are in the
model; see :mod:`featurestore.promotion.class_names`.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.backbone import sources
from featurestore.digests import digest_array, digest_fields, json_text
from featurestore.errors import InputError, nearest, one_line, received
from featurestore.images import MAX_PIXELS, MAX_SIDE
from featurestore.promotion.onnx_model import OnnxModel
from featurestore.promotion.training_record import TrainingRecord
from featurestore.scratch import check_place, written
from featurestore.table import printable

if TYPE_CHECKING:
    import keras

    from featurestore.backbone.graph import Graph

MEMBER = "featurestore.json"


@dataclass(frozen=True)
class Promoted:
    """A promoted model, ready to evaluate and to predict.

    Attributes
    ----------
    name : str
        Its file, for messages.
    model : keras.Model or OnnxModel
    classes : tuple of str or int
        The class of each column of its output; empty for a regressor.
    resizing : keras.layers.Resizing
        Its layer that gives images the size that the backbone takes.
    training_record : TrainingRecord or None
        The samples that it was trained and selected on; None if nothing says which.
    metadata : dict
        The provenance; empty if Keras saved the file.
    """

    name: str
    model: Any
    classes: tuple[Any, ...]
    resizing: Any
    training_record: TrainingRecord | None
    metadata: dict[str, Any]

    @property
    def task(self) -> str:
        """``classification``, or ``regression``."""
        return "classification" if self.classes else "regression"


def save_model(model: keras.Model | OnnxModel, path: str | Path, metadata: dict[str, Any]) -> None:
    """Write a model of stock Keras layers as one file, atomically, with its provenance.

    Raises
    ------
    InputError
        If the path does not end in ``.keras``, its folder does not exist, or it cannot be
        written to. An existing file of that name is then unchanged.
    """
    if isinstance(model, OnnxModel):
        with written(check_target(path, ".onnx")) as part:
            model.with_properties(**{MEMBER: metadata}).save(part)
        return
    with written(check_target(path)) as part:
        type(model).save(model, part)
        with zipfile.ZipFile(part, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MEMBER, json_text(metadata))


def check_target(path: str | Path, ending: str = ".keras") -> Path:
    """Return the path if a model file can be written to it; see :func:`save_model`."""
    path = Path(path)
    if path.suffix != ending:
        raise InputError(f"this model is saved as a {ending} file; got {str(path)!r}")
    check_place(path)
    return path


def weights_digest(model: keras.Model | OnnxModel) -> str:
    """Return a digest of a model's weights."""
    if isinstance(model, OnnxModel):
        return model.weights_digest()
    return digest_fields({"weights": [digest_array(weight) for weight in model.get_weights()]})


def load_model(model: str | Path | keras.Model | OnnxModel | Promoted) -> Promoted:
    """Open a promoted model: its file, in Keras' safe mode, or a model in memory.

    Training it further, saving it with Keras and nesting it in a ``keras.Sequential`` leave it
    what it is.

    Parameters
    ----------
    model : path-like or keras.Model
        What :meth:`Promotion.save`, ``keras.Model.save`` or ``ModelCheckpoint`` wrote, or the model
        itself.

    Raises
    ------
    InputError
        If there is no such file, or it is not a promoted model.
    """
    if isinstance(model, Promoted):
        return model
    if isinstance(model, OnnxModel):
        return _promoted_onnx("the ONNX model", model)
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        if path.suffix == ".onnx":
            return _promoted_onnx(str(path), OnnxModel.read(path))
        metadata = read_metadata(path)
        try:
            opened = sources.load_model(path)
        except InputError as error:
            raise InputError(f"cannot load {path} as a Keras model: {error}") from error
        return _promoted(str(path), opened, metadata)
    keras = sys.modules.get("keras")  # Whoever has a Keras model has loaded Keras.
    if keras is None or not isinstance(model, keras.Model):
        raise InputError(
            f"the model is {received(model)}; expected a promoted .keras file or a keras.Model, "
            "such as promotion.model"
        )
    return _promoted(f"model {model.name!r}", model, {})


def _promoted(name: str, model: keras.Model, metadata: dict[str, Any]) -> Promoted:
    from featurestore.backbone.graph import dissolve
    from featurestore.promotion.class_names import class_names

    expected = (
        "expected a promoted model, which resizes images (None, None, None, 3) to uint8 itself and "
        "names its classes; make one with `featurestore promote HEAD -o MODEL.keras`"
    )
    try:
        graph = dissolve(model)
    except InputError as error:
        raise InputError(f"{name} is not a promoted model: {error}") from error
    takes, gives = tuple(graph.nodes[0].outputs[0].shape), tuple(model.output_shape)
    resizing, classes = _resizing(name, graph), class_names(graph)
    if resizing is None or len(takes) != 4 or takes[3] != 3 or len(gives) != 2:
        raise InputError(f"{name} maps {takes} to {gives}; {expected}")
    one_type = set(map(type, classes)) in ({str}, {int}, set())
    if not one_type or len(set(classes)) < len(classes) or (len(classes) or 1) != gives[1]:
        raise InputError(
            f"{name} gives {gives[1]} values for an image, and names {len(classes)} classes "
            f"({shown(classes)}); {expected}"
        )
    return Promoted(name, model, classes, resizing, _record(name, metadata), metadata)


def _promoted_onnx(name: str, model: OnnxModel) -> Promoted:
    metadata = model.properties.get(MEMBER, {})
    resizing, record = model.preprocessing.resizing(), _record(name, metadata)
    return Promoted(name, model, tuple(model.properties["classes"]), resizing, record, metadata)


def _record(name: str, metadata: dict[str, Any]) -> TrainingRecord | None:
    record = metadata.pop("training_record", None)
    try:
        return record and TrainingRecord.from_dict(record)
    except Exception as error:  # whatever a made-up file says
        raise InputError(
            f"{name} does not say which samples it was trained on ({one_line(error)}); promote the "
            "head again with `featurestore promote HEAD -o MODEL.keras`"
        ) from error


def _resizing(name: str, graph: Graph) -> Any:
    """Return the layer that resizes a model's images to integers, or None.

    Augmentation may come before it: layers such as ``RandomFlip`` do nothing in inference.
    """
    images = {(0, 0)}
    for number, node in enumerate(graph.nodes[1:], 1):
        if not node.inputs or node.inputs[0] not in images:
            continue
        if node.kind.startswith("Random") or node.kind == "Cast":
            images.add((number, 0))
        elif node.kind == "Resizing" and "int" in str(node.operation.compute_dtype):
            sides = node.operation.height, node.operation.width
            # TensorFlow ends the process at other sizes.
            whole = all(type(side) is int and 0 < side <= MAX_SIDE for side in sides)
            if not whole or sides[0] * sides[1] > MAX_PIXELS:
                raise InputError(
                    f"{name} resizes images to {sides[0]}×{sides[1]}; expected at most "
                    f"{MAX_PIXELS:,} pixels and {MAX_SIDE:,} on a side"
                )
            return node.operation
    return None


def shown(classes: Any) -> str:
    """Return the first of some classes for a message, which is one line."""
    return printable(", ".join(map(str, classes[:5])))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the provenance of a promoted model without loading Keras; ``{}`` if it records none.

    Raises
    ------
    InputError
        If there is no such file, it is not a Keras model, or its provenance is damaged.
    """
    path = Path(path)
    if not path.is_file():
        files = list(map(str, path.parent.glob("*.keras"))) if path.parent.is_dir() else []
        raise InputError(f"no model file {str(path)!r}; {nearest(str(path), files)}")
    if path.suffix == ".onnx":
        return dict(OnnxModel.read(path).properties.get(MEMBER, {}))
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
