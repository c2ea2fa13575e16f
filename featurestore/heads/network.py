"""Keras heads: their options, the ready-made ones, and the logits of any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from featurestore.errors import HeadError, nearest
from featurestore.heads.identity import canonical
from featurestore.settings import Settings

if TYPE_CHECKING:
    import keras

    from featurestore.features import Features


def _weighted(value: Any) -> Any:
    if value is None or value == "balanced" or isinstance(value, dict):
        return value
    raise ValueError("expected 'balanced', or the weight of each class, such as {cat: 2}")


Optimizer = Literal[
    "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "ftrl", "lion", "muon", "nadam",
    "rmsprop", "sgd",
]  # fmt: skip
Weight = Annotated[float, Field(gt=0)]
ClassWeight = Annotated[
    Literal["balanced"] | dict[str | int, Weight] | None, BeforeValidator(_weighted)
]


class TrainingOptions(Settings):
    """How a Keras head is trained: the options of a user's own model.

    Attributes
    ----------
    epochs : int
        0 leaves the weights of a user's model as they are: it was trained elsewhere.
    learning_rate, weight_decay : float or None
        None is the optimizer's default.
    class_weight : {"balanced"} or dict or None
        Weight of the training rows of each class, by label; 1 for those that are left out.
        ``"balanced"``: rows / (classes * rows of the class), as scikit-learn has it.
    early_stopping : int or None
        Stop after this many epochs without a lower validation loss, and take the best epoch.
    """

    epochs: NonNegativeInt = 10
    batch_size: PositiveInt = 32
    optimizer: Optimizer = "adam"
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    class_weight: ClassWeight = None
    early_stopping: Annotated[int, Field(gt=0, strict=True)] | None = None

    def fields(self) -> dict[str, Any]:
        """Return what decides the training, as JSON values."""
        return {name: canonical(value, name) for name, value in self.model_dump().items()}

    def check(self, features: Features, name: str) -> None:
        """Raise HeadError if the data set does not have the classes or the rows that it takes."""
        if self.early_stopping and not len(features.rows("val")):
            raise HeadError(
                f"head {name!r}: early_stopping needs validation rows, and data set "
                f"{features.dataset.name!r} has none with labels; `featurestore scan --val F` "
                "gives it some"
            )
        if self.class_weight is None:
            return
        if features.task != "classification":
            raise HeadError(
                f"head {name!r}: class_weight is for classes, and the labels are numbers"
            )
        classes = list(features.classes)
        for label in () if self.class_weight == "balanced" else self.class_weight:
            if label not in classes:
                offer = nearest(str(label), map(str, classes))
                raise HeadError(f"head {name!r}: class_weight names no class {label!r}; {offer}")

    def class_weights(self, classes: Sequence[Any], targets: np.ndarray) -> dict[int, float] | None:
        """Return the weight of each class by its code, given those of the training rows."""
        if self.class_weight is None:
            return None
        if self.class_weight != "balanced":
            return {code: self.class_weight.get(name, 1.0) for code, name in enumerate(classes)}
        counts = np.bincount(targets, minlength=len(classes))
        shares = (counts > 0).sum() * counts / len(targets)
        return {code: float(1 / share) if share else 1.0 for code, share in enumerate(shares)}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else [value]


class DenseOptions(TrainingOptions):
    """The options of a ready-made Keras head; ``units`` has a number for each hidden layer."""

    epochs: PositiveInt = 10
    pool: Literal["avg", "max", "flatten"] = "avg"
    units: Annotated[list[PositiveInt], BeforeValidator(_listed)] = Field(default=[128])
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class Network:
    """How a Keras head is built and trained.

    Attributes
    ----------
    build : callable
        Returns a new, uncompiled model. Its arguments are the mean and the standard deviation of
        the training labels, which scale the output of a ready-made regression head.
    options : TrainingOptions
    """

    build: Callable[[float, float], keras.Model]
    options: TrainingOptions


def dense(options: DenseOptions, features: Features) -> Network:
    """Return a ready-made head: pooling, hidden layers, logits and a separate softmax."""
    shape, outputs = features.shape[1:], len(features.classes) or 1
    classification = features.task == "classification"

    def build(mean: float, deviation: float) -> keras.Model:
        from keras import Input, Model, layers

        inputs = x = Input(shape, name="features")
        if len(shape) > 1:
            x = _pooling(options.pool, len(shape) - 1)(x)
        for number, units in enumerate(options.units):
            x = layers.Dense(units, activation="relu", name=f"hidden_{number}")(x)
            if options.dropout:
                x = layers.Dropout(options.dropout, name=f"dropout_{number}")(x)
        if classification:
            x = layers.Dense(outputs, name="logits")(x)
            return Model(inputs, layers.Softmax(name="probabilities")(x), name="head")
        # Adam's steps have a fixed size: unscaled labels in the thousands would need thousands.
        x = layers.Dense(1, name="scaled")(x)
        value = layers.Rescaling(deviation or 1.0, mean, name="value")(x)
        return Model(inputs, value, name="head")

    return Network(build, options)


def _pooling(pool: str, axes: int) -> Any:
    from keras import layers

    if pool == "flatten":
        return layers.Flatten(name="flatten")
    kind = "Average" if pool == "avg" else "Max"
    return getattr(layers, f"Global{kind}Pooling{axes}D")(name="pool")


def last_operation(model: keras.Model) -> Any:
    """Return the layer or operation that computes a model's output; also inside nested models."""
    from featurestore.backbone.graph import as_functional

    functional: Any = as_functional(model)
    operation = functional.outputs[0]._keras_history.operation
    return operation if as_functional(operation) is None else last_operation(operation)


def gives_logits(model: keras.Model) -> bool:
    """Whether a classifier's output is logits; False if it is probabilities.

    Raises
    ------
    HeadError
        If it is neither.
    """
    last = last_operation(model)
    if type(last).__name__ == "Softmax":
        return False
    activation = getattr(getattr(last, "activation", None), "__name__", "linear")
    if activation not in ("softmax", "linear"):
        raise HeadError(
            f"the model ends in {activation!r}; expected softmax (probabilities) or no activation "
            "(logits), one for each class"
        )
    return activation == "linear"


def logits_model(model: keras.Model) -> keras.Model:
    """Return a model of the logits that a classifier's softmax takes."""
    import keras

    from featurestore.backbone.copying import clone_onto

    if gives_logits(model):
        return model
    # A copy, because the softmax may be inside a nested model.
    features = keras.Input(model.inputs[0].shape[1:])
    copy = keras.Model(features, clone_onto(model, features))
    last = last_operation(copy)
    if type(last).__name__ in ("Softmax", "Activation"):
        return keras.Model(features, last.input)
    without = type(last).from_config({**last.get_config(), "activation": "linear"})
    logits = without(last.input)
    without.set_weights(last.get_weights())
    return keras.Model(features, logits)
