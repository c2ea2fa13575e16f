"""Where Keras models come from: ``keras.applications``, files, weights files."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.backbone import forward, numerics
from featurestore.backbone.copying import clone, set_weights
from featurestore.backbone.families import Application
from featurestore.backbone.foreign import is_keras
from featurestore.backbone.graph import Graph, flatten
from featurestore.backbone.identity import graph_digests, weight_arrays
from featurestore.backbone.model_files import load_model
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.backbone.seeding import seeded
from featurestore.errors import BackboneError, InputError, one_line


def build_application(
    network: Application, weights: str, input_size: tuple[int, int], include_top: bool
) -> Any:
    """Build a network of ``keras.applications`` for one input size.

    Parameters
    ----------
    weights : str
        ``imagenet``, ``random``, or the path of a weights file.
    """
    import keras

    if min(input_size) < network.least:
        raise BackboneError(
            f"{network.constructor} takes images of at least {network.least}×{network.least};"
            f" found --input-size {input_size[0]}×{input_size[1]}"
        )
    constructor = getattr(keras.applications, network.constructor)
    options = {"include_top": include_top, "input_shape": (*input_size, 3)}
    if weights == "imagenet":
        return _with_imagenet(network, constructor, options)
    try:
        with seeded():
            model = constructor(weights=None, **options)
    except ValueError as error:
        raise BackboneError(f"cannot build {network.constructor}: {one_line(error)}") from error
    if weights != "random":
        load_weights(model, weights)
        _mend_efficientnet(network, model)
    return model


def load_weights(model: Any, path: str | Path) -> None:
    """Load a weights file into a model, all of it or an error.

    Raises
    ------
    BackboneError
        If the file is missing, is not a weights file, or was saved from another network.
    """
    file = Path(path)
    if not file.is_file():
        raise BackboneError(
            f"no weights file {str(path)!r}: expected imagenet, random or the path of a"
            " .weights.h5, .h5 or .keras file"
        )
    if not file.name.endswith((".h5", ".hdf5", ".keras")):
        raise BackboneError(
            f"weights file {file.name!r} has an unknown ending: expected .weights.h5, .h5 or .keras"
        )
    _blank(model)
    try:
        with warnings.catch_warnings():
            # Keras warns of each group that it skips; what was skipped is checked below instead.
            warnings.simplefilter("ignore")
            model.load_weights(str(file))
        reason = _blanks_left(model)
    except Exception as error:  # h5py and Keras raise a dozen kinds
        reason = one_line(error)
    if reason:
        raise BackboneError(
            f"weights file {file.name!r} does not fit {model.name!r}: {reason}; expected a file"
            " saved from the same network, with its top where this has one, without where not"
        )


def model_from_file(path: str | Path) -> Any:
    """Load a ``.keras`` or ``.h5`` model in safe mode, uncompiled.

    Raises
    ------
    BackboneError
        If the file is missing, is not a model, or would run code of its own.
    """
    file = Path(path)
    if not file.is_file():
        raise BackboneError(f"no model file {str(path)!r}: expected a .keras or .h5 file")
    if file.suffix not in (".keras", ".h5", ".hdf5"):
        raise BackboneError(
            f"model file {file.name!r} has an unknown ending: expected .keras or .h5"
        )
    try:
        return load_model(file)
    except InputError as error:
        hint = "; pass a file of weights as --weights, with --model NAME"
        raise BackboneError(
            f"{file.name!r} does not load as a Keras model: {error}"
            + (hint if file.name.endswith("weights.h5") else "")
        ) from error


def copied(graph: Graph, preprocessing: Preprocessing) -> Graph:
    """Return the same graph made of new layers, so that the caller cannot change its weights.

    Raises
    ------
    BackboneError
        If a layer cannot be described, or its copy computes something else.
    """
    import keras

    graph_digests(graph)  # refuses by name what cannot be copied
    given = graph.nodes[0].outputs[0]
    with seeded():
        image = keras.Input(batch_shape=(None, *given.shape[1:]), dtype=given.dtype, name="image")
        ends = [number for number, _ in graph.outputs]
        copy = flatten(keras.Model(image, clone(graph, image, ends)))
    copy = Graph(copy.nodes, copy.outputs, graph.own_names)
    _require_alike(graph, copy, preprocessing)
    return copy


def _require_alike(graph: Graph, copy: Graph, preprocessing: Preprocessing) -> None:
    """Raise BackboneError if a layer of the user's and its copy compute different things."""
    own = [node.name for node in graph.nodes[1:] if not is_keras(type(node.operation))]
    if not own:
        return
    shape = (2, *preprocessing.input_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def computed(graph: Graph) -> list[np.ndarray]:
        def compute(images: Any) -> list[Any]:
            numbers = [graph.by_name[name] for name in own]
            return [each[0] for each in graph.run(preprocessing.scale(images), numbers)]

        return forward.plain(compute)(noise)

    results = zip(own, computed(copy), computed(graph), computed(graph), strict=True)
    for name, found, wanted, again in results:
        # One that is another each time is refused for that, where it is computed.
        steady = numerics.distance(again, wanted) <= numerics.TOLERANCE
        if steady and numerics.distance(found, wanted) > numerics.TOLERANCE:
            raise BackboneError(
                f"layer {name!r} ({graph.nodes[graph.by_name[name]].kind}) computes something else"
                " when it is built from its configuration: return all that it computes with from"
                " get_config"
            )


def _with_imagenet(network: Application, constructor: Any, options: dict[str, Any]) -> Any:
    try:
        # Keras draws its download bar on stdout, which belongs to the command's answer.
        with seeded(), contextlib.redirect_stdout(sys.stderr):
            return constructor(weights="imagenet", **options)
    except ValueError as error:
        raise BackboneError(
            f"cannot build {network.constructor} with imagenet weights: {one_line(error)}"
        ) from error
    except Exception as error:  # get_file raises a bare Exception where the download fails
        raise BackboneError(
            f"cannot get the imagenet weights of {network.constructor}: {one_line(error)};"
            " pass --weights FILE, or --weights random"
        ) from error


def _mend_efficientnet(network: Application, model: Any) -> None:
    """Make a published EfficientNet weights file mean what ``weights="imagenet"`` means.

    Its Normalization holds the deviation where the variance belongs, which Keras mends with an
    extra layer in the network that it builds for ``imagenet`` only.
    """
    if network.module != "efficientnet":
        return
    for layer in model.layers[:4]:
        if type(layer).__name__ == "Normalization":
            mean, variance, count = layer.get_weights()
            if np.allclose(variance, (0.229, 0.224, 0.225), atol=1e-4):
                set_weights(layer, [mean, np.square(variance), count])


def _blank(model: Any) -> None:
    """Fill all weights with NaN: Keras leaves those out silently that a file does not have."""
    for weight in model.weights:
        if "float" in str(weight.dtype):
            weight.assign(np.full(weight.shape, np.nan, dtype="float32"))


def _blanks_left(model: Any) -> str | None:
    blank = [
        layer.name
        for layer in model.layers
        if any(
            np.isnan(np.asarray(array, dtype="float32")).any()
            for array in weight_arrays(layer)
            if "float" in str(array.dtype)
        )
    ]
    if not blank:
        return None
    return f"it has no (finite) weights for {len(blank)} layers, {blank[0]!r} for one"
