"""How backbones are loaded: the network, its preprocessing, and the JSON that loads both again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurestore.backbone import hub, sources
from featurestore.backbone.custom import is_custom
from featurestore.backbone.engines import Computing
from featurestore.backbone.families import APPLICATIONS, Application, application
from featurestore.backbone.graph import Graph, flatten, is_automatic
from featurestore.backbone.onnx_config import preprocessing_beside
from featurestore.backbone.onnx_files import ENDING
from featurestore.backbone.onnx_graph import OnnxGraph
from featurestore.backbone.preprocessing import Preprocessing
from featurestore.backbone.recognition import find_preprocessing
from featurestore.errors import BackboneError, nearest, one_line, path_text, received
from featurestore.quiet import load_tensorflow

PIXELS = 32  # side of the images of the baseline without a network


@dataclass(frozen=True, eq=False)
class Recipe:
    """A network, its preprocessing, and where it comes from.

    Attributes
    ----------
    name : str
        The application's, the file's or the model's.
    graph : Graph
    preprocessing : Preprocessing
    source : dict
        JSON values: ``source`` (application, file, hub, model or pixels), and what names it.
    special_tokens : int or None
        Tokens at the beginning of a sequence that are not patches; None if unknown.
    """

    name: str
    graph: Graph
    preprocessing: Preprocessing
    source: dict[str, Any]
    special_tokens: int | None = None


def load(
    model: Any, weights: str | Path | None, name: str | None, options: Mapping[str, Any]
) -> Recipe:
    """Load a Keras model object, a model file, a network of ``keras.applications``, or ``pixels``.

    Parameters are those of ``Backbone.open``; the options, of :class:`Preprocessing`.
    """
    options = dict(options)
    special = options.pop("special_tokens", None)
    if special is not None and not (isinstance(special, int) and special >= 0):
        raise BackboneError(
            f"special_tokens is {received(special)}", "a number of tokens, 0 or more"
        )
    recipe = _load(model, weights, name, options)
    return recipe if special is None else replace(recipe, special_tokens=special)


def _load(
    model: Any, weights: str | Path | None, name: str | None, options: dict[str, Any]
) -> Recipe:
    keras = sys.modules.get("keras")  # Whoever has a Keras model has loaded Keras.
    if keras is not None and isinstance(model, keras.Model):
        if weights is not None:
            raise BackboneError(
                "a keras.Model has its weights", remedy="load them with its load_weights"
            )
        return _of_model(model, name, options)
    expected = "a keras.applications network, hub:PRESET, a model file or a keras.Model"
    text = path_text(model, "the backbone", expected, BackboneError)
    if text.startswith(hub.PREFIX):
        if weights is not None:
            raise BackboneError("a preset has its weights", remedy="leave out weights")
        return _of_preset(text.removeprefix(hub.PREFIX), name, options)
    network = application(text)
    if (
        network is None
        and text.casefold() != "pixels"
        and (Path(text).exists() or Path(text).suffix)
    ):
        if text.lower().endswith(ENDING):
            if weights is not None:
                raise BackboneError("an ONNX file has its weights", remedy="leave out weights")
            return _of_onnx(Path(text), name, options)
        return _of_file(Path(text), weights, name, options)
    if name is not None:
        raise BackboneError(f"{text!r} is a name itself", remedy=f"leave out name={name!r}")
    if text.casefold() == "pixels":
        return _of_pixels(options)
    if network is None:
        names = [network.constructor for network in APPLICATIONS.values()]
        raise BackboneError(
            f"no keras.applications network is called {text!r}; {nearest(text, names)}"
        )
    return _of_application(network, str(weights or "imagenet"), options)


def load_spec(spec: Mapping[str, Any]) -> tuple[Recipe, Computing]:
    """Load what a ``Backbone.spec`` describes."""
    try:
        computing, options = Computing.split(spec)
        source, name = options.pop("source"), options.pop("name", None)
        weights, path = options.pop("weights", None), options.pop("path", None)
        if source == "model":
            raise BackboneError(
                f"backbone {name!r} was made from a Keras model object, which only the caller has",
                remedy="pass Backbone.open(model, …), or save the model and use its file",
            )
        model = {"application": name, "file": path, "hub": path, "pixels": "pixels"}[source]
        name = name if source in ("file", "hub") else None
        return load(model, weights, name, options), computing
    except BackboneError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"the backbone is recorded in a form unknown to this version ({one_line(error)})",
            remedy="pass it in Python",
        ) from error


def _of_application(network: Application, weights: str, options: Mapping[str, Any]) -> Recipe:
    preprocessing = Preprocessing.of(
        {"input_size": network.size, "scaling": network.scaling, **options}
    )
    if preprocessing.scaling != network.scaling:
        raise BackboneError(
            f"scaling {preprocessing.scaling!r}, which is for model files",
            f"{network.scaling!r}, with which {network.constructor} was trained",
        )
    if weights not in ("imagenet", "random"):
        weights = str(Path(weights).absolute())
    model = sources.build_application(network, weights, preprocessing.input_size)
    source = {"source": "application", "name": network.name, "weights": weights}
    return Recipe(network.name, flatten(model), preprocessing, source)


def _of_file(
    file: Path, weights: str | Path | None, name: str | None, options: Mapping[str, Any]
) -> Recipe:
    model = sources.model_from_file(file)
    if weights is not None:
        sources.load_weights(model, weights)
        weights = str(Path(weights).absolute())
    graph, name = flatten(model), name or file.stem
    preprocessing = find_preprocessing(graph, file.name, **options)
    if any(is_custom(node.operation) for node in graph.nodes[1:]):
        # A custom layer may load what is neither in its configuration nor among its weights.
        graph = sources.copied(model, graph, preprocessing)
    source = {"source": "file", "path": str(file.absolute()), "weights": weights, "name": name}
    return Recipe(name, graph, preprocessing, source)


def _of_onnx(file: Path, name: str | None, options: dict[str, Any]) -> Recipe:
    graph, name = OnnxGraph.read(file), name or file.stem
    beside = {} if "scaling" in options else preprocessing_beside(file)
    preprocessing = find_preprocessing(graph, file.name, **{**beside, **options})
    sized = graph.sized(preprocessing.input_size)
    source = {"source": "file", "path": str(file.absolute()), "weights": None, "name": name}
    return Recipe(name, sized, preprocessing, source, sized.special_tokens())


def _of_preset(preset: str, name: str | None, options: dict[str, Any]) -> Recipe:
    model, own = hub.load(preset, options.get("input_size"))
    graph, name = flatten(model), name or Path(preset).name
    preprocessing = find_preprocessing(graph, name, **{**own, **options})
    path = str(Path(preset).absolute()) if Path(preset).is_dir() else preset
    source = {"source": "hub", "path": f"{hub.PREFIX}{path}", "name": name}
    return Recipe(name, graph, preprocessing, source, hub.special_tokens(model))


def _of_model(model: Any, name: str | None, options: Mapping[str, Any]) -> Recipe:
    model = hub.image_network(model)
    if name is None:
        automatic = is_automatic(model.name, type(model).__name__)
        name = automatic[1] if automatic else str(model.name)
    graph = flatten(model)
    preprocessing = find_preprocessing(graph, name, **options)
    source = {"source": "model", "name": name}
    copy = sources.copied(model, graph, preprocessing)
    return Recipe(name, copy, preprocessing, source, hub.special_tokens(model))


def _of_pixels(options: Mapping[str, Any]) -> Recipe:
    load_tensorflow()
    import keras

    preprocessing = Preprocessing.of({"input_size": PIXELS, **options})
    image = keras.Input((*preprocessing.input_size, 3), name="image")
    layer = keras.layers.Rescaling(1 / 255.0, name="pixels", dtype="float32")
    graph = flatten(keras.Model(image, layer(image), name="pixels"))
    return Recipe("pixels", graph, preprocessing, {"source": "pixels"})
