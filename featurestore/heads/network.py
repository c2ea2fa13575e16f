"""Keras heads: the dense ones by their options, and models that a user brings."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal

from featurestore.backbone.seeding import seeded
from featurestore.digests import digest_array
from featurestore.errors import BackboneError, HeadError, one_line

if TYPE_CHECKING:
    import keras

    from featurestore.features import Features

Ending = Literal["softmax", "linear"]


@dataclass(frozen=True)
class Network:
    """How a Keras head is built and trained.

    Attributes
    ----------
    build : callable
        Gives a new, uncompiled model. It takes the mean and the standard deviation of the
        training labels, which a dense regression head scales its output by.
    epochs, batch_size : int
        As ``fit`` takes them.
    learning_rate : float or None
        Of Adam; None keeps what the user compiled.
    compiled : dict or None
        The user's own optimizer and loss, as Keras serializes them.
    """

    build: Callable[[float, float], keras.Model]
    epochs: int
    batch_size: int
    learning_rate: float | None
    compiled: dict[str, Any] | None = None


def dense(options: Mapping[str, Any], features: Features) -> Network:
    """Return a ready-made head: pooling, hidden layers, and logits before a separate softmax."""
    shape, outputs = features.shape[1:], len(features.classes) or 1
    classification = features.task == "classification"

    def build(mean: float, deviation: float) -> keras.Model:
        from keras import Input, Model, layers

        inputs = x = Input(shape, name="features")
        if len(shape) > 1:
            x = _pooling(options["pool"], len(shape))(x)
        for number, units in enumerate(options["units"]):
            x = layers.Dense(units, activation="relu", name=f"hidden_{number}")(x)
            if options["dropout"]:
                x = layers.Dropout(options["dropout"], name=f"dropout_{number}")(x)
        if classification:
            x = layers.Dense(outputs, name="logits")(x)
            return Model(inputs, layers.Softmax(name="probabilities")(x), name="head")
        # Adam's steps have one size: labels in the thousands would take it thousands of steps.
        x = layers.Dense(1, name="scaled")(x)
        value = layers.Rescaling(deviation or 1.0, mean, name="value")(x)
        return Model(inputs, value, name="head")

    return Network(build, options["epochs"], options["batch_size"], options["learning_rate"])


def _pooling(pool: str, rank: int) -> Any:
    from keras import layers

    if pool == "flatten" or rank > 4:
        return layers.Flatten(name="flatten")
    kind = "Average" if pool == "avg" else "Max"
    return getattr(layers, f"Global{kind}Pooling{rank - 1}D")(name="pool")


def adopt(
    model: keras.Model, options: Mapping[str, Any], features: Features, seed: int
) -> tuple[Network, dict[str, Any]]:
    """Take a user's model as a head, without ever changing it.

    Parameters
    ----------
    model : keras.Model
        Sequential or functional, of Keras' own layers. Not built: it gets the features' shape and
        weights drawn from the seed. Built: its weights are where training starts.
    options : mapping
        ``epochs``, ``batch_size`` and ``learning_rate``, where given.
    features : Features
        What it must take and tell apart.
    seed : int
        For the weights of a model that is not built.

    Returns
    -------
    network : Network
    fields : dict
        The model's identity: graph, settings, compilation, initial weights.

    Raises
    ------
    HeadError
        If it cannot be stored, or does not fit the features or the labels.
    """
    from featurestore.backbone.identity import canonical_config, training_digest

    config = _stock_config(model)
    weights = model.get_weights() if model.built else None
    built_for = _built(type(model), config, features.shape[1:], seed)
    _check_shapes(built_for, features)
    compiled = _compilation(model) if model.compiled else None
    if compiled is not None:
        _check_loss(compiled, built_for, features)

    def build(mean: float, deviation: float) -> keras.Model:
        built = _built(type(model), config, features.shape[1:], seed)
        if weights is not None:
            from featurestore.backbone.copying import set_weights

            set_weights(built, weights)
        return built

    network = Network(
        build,
        options.get("epochs", 10),
        options.get("batch_size", 32),
        options.get("learning_rate", None if compiled else 1e-3),
        compiled,
    )
    fields = {
        "class": type(model).__name__,
        "graph": training_digest(built_for),
        "weights": None if weights is None else [digest_array(each) for each in weights],
        "compiled": compiled
        and {key: canonical_config(compiled[key], training=True) for key in ("optimizer", "loss")},
    }
    return network, fields


def _stock_config(model: keras.Model) -> dict[str, Any]:
    """Return the configuration of a model that any Keras can load again."""
    import keras

    from featurestore.backbone.foreign import refuse_hidden_functions

    kind = type(model)
    stock = kind.__module__.startswith("keras.") and kind.__name__ in ("Sequential", "Functional")
    if not stock:
        raise HeadError(
            f"a model of class {kind.__name__} cannot be a head: expected keras.Sequential or a "
            "functional keras.Model"
        )
    config = json.loads(model.to_json())["config"]
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Lambda):
            raise HeadError(
                f"layer {layer.name!r} is a Lambda, whose code cannot be stored safely; "
                "use a layer of Keras, or keras.ops on tensors"
            )
    try:
        refuse_hidden_functions(model)
    except BackboneError as error:
        raise HeadError(f"the model {error}") from None
    _refuse_foreign(config)
    return config


def _compilation(model: keras.Model) -> dict[str, Any]:
    """Return how a model was compiled, of Keras' own optimizers, losses and metrics."""
    from featurestore.backbone.foreign import is_keras

    compiled = dict(model.get_compile_config())
    if isinstance(model.loss, FunctionType) and is_keras(model.loss):
        compiled["loss"] = model.loss.__name__  # Keras would not say whose function it is.
    _refuse_foreign(compiled)
    return compiled


def _refuse_foreign(config: Any) -> None:
    from featurestore.backbone.foreign import foreign_names

    for name in foreign_names(config):
        raise HeadError(
            f"the model uses {name!r}, which is not part of Keras, so that it could not be "
            "loaded without your code; use layers, functions, losses and metrics of Keras"
        )


def _built(kind: Any, config: dict[str, Any], shape: tuple[int, ...], seed: int) -> keras.Model:
    with seeded(seed):
        # A copy: Keras takes apart what it is given.
        model = kind.from_config(copy.deepcopy(config))
        if not model.built:
            try:
                model.build((None, *shape))
            except Exception as error:  # whatever a layer raises that does not take the shape
                raise HeadError(
                    f"the model does not take features of shape {shape}: {one_line(error)}"
                ) from error
    return model


def _check_shapes(model: keras.Model, features: Features) -> None:
    shape, classes = features.shape[1:], len(features.classes)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise HeadError(
            f"the model has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
            "a head has one of each"
        )
    takes = tuple(model.inputs[0].shape)[1:]
    if len(takes) != len(shape) or any(
        want not in (None, have) for want, have in zip(takes, shape, strict=True)
    ):
        raise HeadError(
            f"the model takes {takes} and the features of {features.ref!r} are {shape}; make its "
            "keras.Input of that shape, or leave it out"
        )
    gives = tuple(model.outputs[0].shape)[1:]
    wanted = (1,) if features.task == "regression" else (classes,)
    if gives != wanted:
        what = "one value" if features.task == "regression" else f"{classes} classes"
        raise HeadError(f"the model gives {gives} for each row; expected {wanted}: {what}")
    if features.task == "classification":
        ending(model)


def _check_loss(compiled: Mapping[str, Any], model: keras.Model, features: Features) -> None:
    name, from_logits = _loss(compiled)
    if "crossentropy" not in name or features.task == "regression":
        return
    if from_logits != (ending(model) == "linear"):
        raise HeadError(
            f"the model ends {'in softmax' if from_logits else 'without softmax'} and its loss has "
            f"from_logits={from_logits}; compile it with from_logits={not from_logits}, or leave "
            "it uncompiled"
        )


def _loss(compiled: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the lower-case name of a compiled loss without underscores, and ``from_logits``."""
    loss = compiled["loss"]
    if isinstance(loss, list) and len(loss) == 1:
        loss = loss[0]
    if isinstance(loss, str):
        return loss.lower().replace("_", ""), False
    if isinstance(loss, dict) and "class_name" in loss:
        settings = loss["config"] if isinstance(loss["config"], dict) else {}
        return loss["class_name"].lower(), bool(settings.get("from_logits", False))
    raise HeadError("the model is compiled with no single loss; expected one, or none at all")


def takes_codes(network: Network) -> bool:
    """Whether the network's loss wants class numbers in the place of one-hot rows."""
    return network.compiled is not None and "sparse" in _loss(network.compiled)[0]


def _last(model: keras.Model) -> Any:
    """Return the layer or operation that gives a model's output, looking into nested models."""
    from featurestore.backbone.graph import as_functional

    functional: Any = as_functional(model)
    output = functional.outputs[0]
    for operation in reversed(functional.operations):
        if operation.output is output:
            return operation if as_functional(operation) is None else _last(operation)
    raise HeadError(f"the output of model {model.name!r} is its input: there is nothing to train")


def ending(model: keras.Model) -> Ending:
    """Tell whether a classifier's output is probabilities or logits.

    Raises
    ------
    HeadError
        If it is neither.
    """
    last = _last(model)
    activation = getattr(last, "activation", None)
    name = "softmax" if type(last).__name__ == "Softmax" else getattr(activation, "__name__", "")
    if name not in ("softmax", "linear", ""):
        raise HeadError(
            f"the model ends in {name!r}; expected softmax (probabilities) or no activation "
            "(logits), one for each class"
        )
    return "softmax" if name == "softmax" else "linear"


def logits_model(model: keras.Model) -> keras.Model:
    """Return a model of the logits that a classifier's softmax is taken of."""
    import keras

    from featurestore.backbone.copying import clone_onto
    from featurestore.backbone.graph import as_functional

    if ending(model) == "linear":
        return model
    functional: Any = as_functional(model)
    last = _last(model)
    if last not in functional.operations:
        # The softmax is inside a nested model: dissolve it.
        features = keras.Input(functional.inputs[0].shape[1:])
        return logits_model(keras.Model(features, clone_onto(model, features)))
    if type(last).__name__ in ("Softmax", "Activation"):
        return keras.Model(functional.input, last.input)
    without = type(last).from_config({**last.get_config(), "activation": "linear"})
    logits = without(last.input)
    without.set_weights(last.get_weights())
    return keras.Model(functional.input, logits)
