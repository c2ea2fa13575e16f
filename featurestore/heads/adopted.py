"""The user's own Keras models as heads: which are accepted, and their identity."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from featurestore.digests import digest_array
from featurestore.errors import HeadError
from featurestore.heads.network import Network, TrainingOptions, gives_logits

if TYPE_CHECKING:
    import keras

    from featurestore.features import Features


def adopt(
    model: keras.Model, options: TrainingOptions, features: Features
) -> tuple[Network, dict[str, Any]]:
    """Return a user's model as a head, and the fields of its identity.

    The model is sequential or functional, of Keras' own layers, and is not changed. If it is not
    built, it gets the shape of the features and new weights; otherwise training starts from its
    weights.

    Raises
    ------
    HeadError
        If it cannot be stored, or does not fit the features or the labels.
    """
    from featurestore.backbone.copying import seeded, set_weights
    from featurestore.backbone.graph import dissolve
    from featurestore.backbone.identity import graph_digests

    config = _config(model)
    weights = model.get_weights() if model.built else None
    if options.epochs == 0 and weights is None:
        raise HeadError("epochs is 0, and the model is not built: it has no weights to keep")
    if options.epochs and model.compiled:
        raise HeadError(
            "the model is compiled, and its optimizer and loss would not be used; pass it "
            "uncompiled, with parameters such as optimizer and learning_rate, or train it yourself "
            "and pass it with epochs=0"
        )

    def build(mean: float, deviation: float) -> keras.Model:
        built = _build(type(model), config, features.shape[1:])
        if weights is not None:
            set_weights(built, weights)
        return built

    with seeded():
        built = build(0.0, 1.0)
    _check_output(built, features)
    graph = dissolve(built)
    ((end, output),) = graph.outputs
    fields = {
        "class": type(model).__name__,
        "graph": [graph_digests(graph, training=True)[end], output],
        "weights": None if weights is None else [digest_array(array) for array in weights],
        "training": options.fields(),
    }
    return Network(build, options), fields


def _config(model: keras.Model) -> dict[str, Any]:
    """Return the configuration of a model, if all its parts are Keras' own."""
    from featurestore.backbone.custom import foreign_names, is_keras, own_code

    kind = type(model)
    if not (is_keras(kind) and kind.__name__ in ("Sequential", "Functional")):
        raise HeadError(
            f"a model of class {kind.__name__} cannot be a head: expected keras.Sequential or a "
            "functional keras.Model"
        )
    config = json.loads(model.to_json())["config"]
    for name in [*(code.__name__ for code in own_code(model)), *foreign_names(config)]:
        raise HeadError(
            f"the model uses {name!r}, which is not part of Keras, so that it could not be "
            "loaded without your code; use layers and functions of Keras"
        )
    return config


def _build(kind: Any, config: dict[str, Any], shape: tuple[int, ...]) -> keras.Model:
    from keras import KerasTensor

    model = kind.from_config(copy.deepcopy(config))  # Keras changes what it is given.
    try:
        model(KerasTensor((None, *shape)))
    except Exception as error:  # layers raise anything
        raise HeadError(
            f"the model does not take features of shape {shape}; make its keras.Input of that "
            "shape, or leave it out"
        ) from error
    return model


def _check_output(model: keras.Model, features: Features) -> None:
    classes = len(features.classes)
    shapes = [tuple(output.shape[1:]) for output in model.outputs]
    if shapes != [(classes or 1,)]:
        what = f"{classes} classes" if classes else "one value"
        raise HeadError(
            f"the model gives {' and '.join(map(str, shapes))} for each row; "
            f"expected ({classes or 1},): {what}"
        )
    if classes:
        gives_logits(model)
