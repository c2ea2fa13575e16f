"""Where Keras models come from: ``keras.applications``, files, weights files, model objects."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.backbone import forward, numerics
from featurestore.backbone.copying import clone, keras_name, seeded, set_weights
from featurestore.backbone.custom import is_custom
from featurestore.backbone.families import Application
from featurestore.backbone.graph import Graph, flatten
from featurestore.backbone.hub import is_hub
from featurestore.backbone.identity import graph_digests, has_nan
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.errors import BackboneError, InputError, one_line
from featurestore.quiet import load_tensorflow
from featurestore.scratch import scratch


def build_application(network: Application, weights: str, input_size: tuple[int, int]) -> Any:
    """Build a network of ``keras.applications`` without its classifier, for one input size.

    Parameters
    ----------
    weights : str
        ``imagenet``, ``random``, or the path of a weights file.
    """
    load_tensorflow()
    import keras

    constructor = getattr(keras.applications, network.constructor)
    options = {"include_top": False, "input_shape": (*input_size, 3)}
    source = "imagenet" if weights == "imagenet" else None
    try:
        # Keras draws its download bar on stdout, which is for the command's answer.
        with seeded(), contextlib.redirect_stdout(sys.stderr):
            model = constructor(weights=source, **options)
    except ValueError as error:
        height, width = input_size
        raise BackboneError(
            f"cannot build {network.constructor} with {weights} weights and input size"
            f" {height}×{width}: {one_line(error)}"
        ) from error
    except Exception as error:  # get_file raises a bare Exception if the download fails
        raise BackboneError(
            f"cannot get the imagenet weights of {network.constructor}: {one_line(error)}",
            remedy="pass --weights FILE, or --weights random (in Python: weights=…)",
        ) from error
    if weights not in ("imagenet", "random"):
        load_weights(model, weights)
        _correct_efficientnet(network, model)
    return model


ENDINGS = (".keras", ".h5", ".hdf5")


def refuse_other_formats(path: Path) -> None:
    """Raise BackboneError for a folder, or a file that does not end as Keras' own do."""
    if path.is_dir() or path.suffix.lower() not in ENDINGS:
        raise BackboneError(
            f"{path.name!r} is not a file of Keras layers",
            "a .keras, .h5 or .onnx file",
            "export a network of PyTorch with torch.onnx.export (docs/backbones.md)",
        )


def load_weights(model: Any, path: str | Path) -> None:
    """Load a weights file into a model, completely or not at all.

    Raises
    ------
    BackboneError
        If the file is missing, is not a weights file, or was saved from another network.
    """
    file = Path(path)
    if not file.is_file():
        raise BackboneError(
            f"no weights file {str(path)!r}",
            "the path of a .weights.h5, .h5 or .keras file, or imagenet or random for a"
            " keras.applications network",
        )
    # Keras leaves the weights that a file does not have as they are, with a warning at most.
    for weight in model.weights:
        if "float" in str(weight.dtype):
            weight.assign(np.full(weight.shape, np.nan, dtype="float32"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_weights(str(file))
        blank = [layer.name for layer in model.layers if has_nan(layer)]
        reason = blank and f"no (finite) weights for {len(blank)} layers, such as {blank[0]!r}"
    except Exception as error:  # h5py and Keras raise a dozen kinds
        differ = re.search(r"A total of (\d+) objects .*?name=([^,>]+)", str(error), re.DOTALL)
        reason = f"{differ[1]} layers differ, such as {differ[2]!r}" if differ else one_line(error)
    if reason and file.suffix == ".h5" and not file.name.endswith(".weights.h5"):
        reason += " (Keras reads weights that it saved itself only from a name in .weights.h5)"
    if reason:
        raise BackboneError(
            f"weights file {file.name!r} does not fit {model.name!r}: {reason}",
            "weights saved from this network, with its classifier only if the model has one",
        )


def load_model(path: str | Path) -> Any:
    """Load a ``.keras`` or ``.h5`` model in Keras' safe mode, uncompiled.

    Safe mode refuses lambdas, modules other than Keras' own, and files that the model refers to.

    Raises
    ------
    InputError
        If Keras refuses the file; the message is the reason.
    """
    load_tensorflow()
    import keras

    try:
        with seeded():
            return keras.models.load_model(str(path), compile=False, safe_mode=True)
    except Exception as error:  # zipfile, h5py, JSON and Keras raise a dozen kinds
        # Keras wraps the error of a layer in a page about the model around it.
        text = str(error).rpartition("Exception encountered:")[2].partition("If you trust")[0]
        raise InputError(one_line(Exception(text) if text.strip() else error)) from error


def model_from_file(path: str | Path) -> Any:
    """Load the ``.keras`` or ``.h5`` model of a backbone.

    Raises
    ------
    BackboneError
        If the file is missing, is not a model, or would run code of its own.
    """
    file = Path(path)
    refuse_other_formats(file)
    if not file.is_file():
        raise BackboneError(f"no model file {str(path)!r}", "a .keras or .h5 file")
    try:
        return load_model(file)
    except InputError as error:
        raise BackboneError(
            f"{file.name!r} does not load as a Keras model: {error}",
            remedy="pass a file of weights as --weights, with --model NAME (in Python:"
            " Backbone.open(NAME, weights=FILE))"
            if file.name.endswith("weights.h5")
            else "",
        ) from error


def saved(graph: Graph, name: str) -> bytes:
    """Return the network of a backbone as a ``.keras`` file; BackboneError if it has none."""
    try:
        with scratch() as folder:
            file = folder / "model.keras"
            _copy(graph).save(file)
            return file.read_bytes()
    except Exception as error:  # whatever a layer raises that cannot describe itself
        raise BackboneError(
            f"backbone {name!r} cannot be saved for another process: {one_line(error)}"
        ) from error


def from_bytes(data: bytes, name: str) -> Any:
    """Load a model from the bytes of a ``.keras`` file, in safe mode."""
    with scratch() as folder:
        file = folder / "model.keras"
        file.write_bytes(data)
        try:
            return load_model(file)
        except InputError as error:
            raise BackboneError(
                f"backbone {name!r} does not load in another process: {error}",
                remedy="use Keras' own layers, or extract in the process that has the model",
            ) from error


def copied(model: Any, graph: Graph, preprocessing: Preprocessing) -> Graph:
    """Return the graph of a model made of new layers, so that the caller cannot change its weights.

    Parameters
    ----------
    model : keras.Model
    graph : Graph
        Its graph.
    preprocessing : Preprocessing

    Raises
    ------
    BackboneError
        If a layer cannot be described, or its copy computes something else.
    """
    graph_digests(graph)  # refuses by name what cannot be copied
    again = _again(model) if is_hub(model) else None
    if again is not None:
        copy = flatten(again)
        # They may put the model's name in front of those of their layers.
        names = [node.name for node in graph.nodes]
    else:
        copy = flatten(_copy(graph))
        with_slash = {keras_name(node.name): node.name for node in graph.nodes}
        names = [with_slash[node.name] for node in copy.nodes]
    pairs = zip(copy.nodes, names, strict=True)
    copy = Graph([replace(node, name=name) for node, name in pairs], copy.outputs)
    _require_alike(graph, copy, preprocessing)
    return copy


def _again(model: Any) -> Any | None:
    """Build a model of KerasHub from its configuration; None if that gives another network.

    Not all layers of KerasHub describe themselves, and not all of its models do.
    """
    try:
        again = type(model).from_config(model.get_config())
        again.set_weights(model.get_weights())
    except Exception:  # whatever its constructor raises, or Keras for weights of other shapes
        return None
    return again


def _copy(graph: Graph) -> Any:
    """Return a Keras model of new layers that computes what a graph does."""
    import keras

    own = graph.nodes[0].outputs[0]
    with seeded():
        image = keras.Input(batch_shape=(None, *own.shape[1:]), dtype=own.dtype, name="image")
        return keras.Model(image, clone(graph, image, [number for number, _ in graph.outputs]))


def _require_alike(graph: Graph, copy: Graph, preprocessing: Preprocessing) -> None:
    """Raise BackboneError if a custom layer and its copy compute different things."""
    custom = [node.name for node in graph.nodes[1:] if is_custom(node.operation)]
    if not custom:
        return
    shape = (2, *preprocessing.input_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def computed(graph: Graph) -> list[np.ndarray]:
        numbers = [graph.by_name[name] for name in custom]

        def compute(images: Any) -> list[Any]:
            return [outputs[0] for outputs in graph.run(preprocessing.scale(images), numbers)]

        return forward.plain(compute)(noise)

    wanted = dict(zip(custom, computed(graph), strict=True))
    by_copy = dict(zip(custom, computed(copy), strict=True))

    def differ(values: Mapping[str, np.ndarray]) -> list[str]:
        tolerated, distance = numerics.TOLERANCE, numerics.distance
        return [name for name in custom if distance(values[name], wanted[name]) > tolerated]

    changed = differ(by_copy)
    # A layer that differs each time is refused for that when it computes.
    random = changed and differ(dict(zip(custom, computed(graph), strict=True)))
    for name in changed:
        if name not in random:
            raise BackboneError(
                f"layer {name!r} ({graph.nodes[graph.by_name[name]].kind}) computes something else"
                " when it is built from its configuration",
                remedy="give functions names of their own, and return all settings from get_config",
            )


def _correct_efficientnet(network: Application, model: Any) -> None:
    """Make a published EfficientNet weights file mean what ``weights="imagenet"`` means.

    Its Normalization holds deviations instead of variances. Keras corrects that with an extra layer
    in the network that it builds for ``imagenet`` only.
    """
    if network.module != "efficientnet":
        return
    for layer in model.layers[:4]:
        if type(layer).__name__ == "Normalization":
            mean, variance, count = layer.get_weights()
            if np.allclose(variance, (0.229, 0.224, 0.225), atol=1e-4):
                set_weights(layer, [mean, np.square(variance), count])
