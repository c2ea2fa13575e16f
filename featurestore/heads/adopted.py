"""The user's own Keras models as heads: which are accepted, and their identity."""

from __future__ import annotations

import copy
import json
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn

from featurestore.digests import digest_array
from featurestore.errors import HeadError
from featurestore.heads.network import Network, TrainingOptions, gives_logits

if TYPE_CHECKING:
    import keras

    from featurestore.features import Features


# What a model is compiled with that does not change how it is trained.
_WITHOUT_EFFECT = frozenset(
    {"metrics", "weighted_metrics", "run_eagerly", "steps_per_execution", "jit_compile"}
)


def adopt(
    model: keras.Model, options: TrainingOptions, features: Features, seed: int
) -> tuple[Network, dict[str, Any]]:
    """Return a user's model as a head, and the fields of its identity.

    The model is sequential or functional, of Keras' own layers, and is not changed. If it is not
    built, it gets the shape of the features and weights drawn from the seed; otherwise training
    starts from its weights. A compiled model keeps its optimizer unless the options name another.

    Raises
    ------
    HeadError
        If it cannot be stored, or does not fit the features or the labels.
    """
    from featurestore.backbone.copying import set_weights
    from featurestore.backbone.graph import dissolve
    from featurestore.backbone.identity import canonical_config, graph_digests

    config = _config(model)
    weights = model.get_weights() if model.built else None

    def build(mean: float, deviation: float) -> keras.Model:
        built = _build(type(model), config, features.shape[1:], seed)
        if weights is not None:
            set_weights(built, weights)
        return built

    built = build(0.0, 1.0)
    _check_output(built, features)
    logits = features.task == "classification" and gives_logits(built)
    compiled, sparse = None, False
    if model.compiled:
        compiled = _compile_config(model)
        loss, from_logits = _loss(model)
        sparse = "sparse" in loss
        if features.task == "classification" and "crossentropy" in loss and from_logits != logits:
            raise HeadError(
                f"the model ends {'without' if logits else 'in'} softmax and its loss has "
                f"from_logits={from_logits}; compile it with from_logits={logits}, or leave "
                "it uncompiled"
            )
    graph = dissolve(built)
    ((end, output),) = graph.outputs
    network = Network(build, options, compiled, sparse)
    fields = {
        "class": type(model).__name__,
        "graph": [graph_digests(graph, training=True)[end], output],
        "weights": None if weights is None else [digest_array(each) for each in weights],
        "compiled": compiled
        and {
            key: canonical_config(value, training=True)
            for key, value in compiled.items()
            if key not in _WITHOUT_EFFECT
        },
        "training": options.fields(compiled=compiled is not None),
    }
    return network, fields


def _config(model: keras.Model) -> dict[str, Any]:
    """Return the configuration of a model, if all its parts are Keras' own."""
    from featurestore.backbone.custom import is_keras, own_code

    kind = type(model)
    if not (is_keras(kind) and kind.__name__ in ("Sequential", "Functional")):
        raise HeadError(
            f"a model of class {kind.__name__} cannot be a head: expected keras.Sequential or a "
            "functional keras.Model"
        )
    for code in own_code(model):
        _refuse(code.__name__)
    config = json.loads(model.to_json())["config"]
    _refuse_foreign(config)
    return config


def _compile_config(model: keras.Model) -> dict[str, Any]:
    """Return how a model was compiled, if with Keras' own optimizer, loss and metrics."""
    from featurestore.backbone.custom import is_keras

    compiled = dict(model.get_compile_config())
    if isinstance(model.loss, FunctionType) and is_keras(model.loss):
        compiled["loss"] = model.loss.__name__  # Keras leaves out the module of a function.
    _refuse_foreign(compiled)
    return compiled


def _refuse_foreign(config: Any) -> None:
    from featurestore.backbone.custom import foreign_names

    for name in foreign_names(config):
        _refuse(name)


def _refuse(name: str) -> NoReturn:
    raise HeadError(
        f"the model uses {name!r}, which is not part of Keras, so that it could not be loaded "
        "without your code; use layers, functions, losses and metrics of Keras"
    )


def _loss(model: keras.Model) -> tuple[str, bool]:
    """Return the lower-case name of a model's loss without underscores, and ``from_logits``."""
    loss = model.loss
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if loss is None or isinstance(loss, list | tuple | dict):
        raise HeadError(f"the model is compiled with loss={loss!r}; expected one loss")
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    return name.lower().replace("_", ""), bool(config.get("from_logits", False))


def _build(kind: Any, config: dict[str, Any], shape: tuple[int, ...], seed: int) -> keras.Model:
    from keras import KerasTensor

    from featurestore.backbone.copying import seeded

    with seeded(seed):
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
    given = [tuple(output.shape[1:]) for output in model.outputs]
    if given != [(classes or 1,)]:
        what = f"{classes} classes" if classes else "one value"
        raise HeadError(
            f"the model gives {' and '.join(map(str, given))} for each row; "
            f"expected ({classes or 1},): {what}"
        )
