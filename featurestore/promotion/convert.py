"""Fitted scikit-learn estimators as stock Keras layers, step by step.

Linear classifiers and regressors, ``MLPClassifier`` and ``MLPRegressor`` convert, alone, behind
scalers, PCA and feature selection in a ``Pipeline``, or inside a fitted search. A linear classifier
may be calibrated (see :mod:`featurestore.promotion.calibration`), and either may have a threshold.

All that a head has learned becomes ordinary weights, which ``set_weights`` and every exporter
carry. The weights of scaling, selection, calibration and thresholds are not trainable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from featurestore.errors import PromotionError
from featurestore.heads.decision import Threshold
from featurestore.promotion.calibration import calibrated, scaled

PROMOTABLE = (
    "Keras heads, linear classifiers and regressors (logistic, ridge, linear-svm, "
    "LinearDiscriminantAnalysis, SGDClassifier, Lasso, …), MLPClassifier or MLPRegressor, also "
    "behind scalers, PCA or feature selection, and calibrated or with a threshold"
)


@dataclass(frozen=True)
class Flow:
    """Features between two steps of a head.

    A selection keeps the width and sets the other features to zero. Dropping them would take a
    matrix of the features squared, or a list of numbers as text in the model's configuration.

    Attributes
    ----------
    x : KerasTensor (row, feature)
    index : numpy.ndarray of int, (selected,)
        Selected features; the others are zero, unless all are selected.
    """

    x: Any
    index: np.ndarray

    @classmethod
    def of(cls, x: Any) -> Flow:
        """Start at a tensor, with all features."""
        return cls(x, np.arange(int(x.shape[-1])))

    def scaled(self, center: Any, factor: Any, name: str) -> Flow:
        """Apply ``(features - center) * factor``, a layer that is not trained."""
        width, selected = int(self.x.shape[-1]), len(self.index)
        factors, bias = np.zeros(width, "float32"), np.zeros(width, "float32")
        factors[self.index] = np.broadcast_to(factor, selected)
        # Use the factors as float32 rounds them, so that features far from zero do not shift.
        center = np.broadcast_to(np.asarray(center, "float64"), selected)
        bias[self.index] = -center * factors[self.index].astype("float64")
        return Flow(scaled(self.x, factors, bias, name), self.index)

    def dense(
        self, kernel: np.ndarray, bias: Any, name: str, activation: str | None = None
    ) -> Flow:
        """Apply ``activation(features @ kernel + bias)``."""
        full = np.zeros((int(self.x.shape[-1]), kernel.shape[1]), "float32")
        full[self.index] = kernel
        layer = keras.layers.Dense(kernel.shape[1], activation=activation, name=name)
        x = layer(self.x)
        layer.set_weights([full, np.broadcast_to(np.asarray(bias, "float32"), kernel.shape[1])])
        return Flow.of(x)


# (fitted step, flow, layer name) -> flow
Convert = Callable[[Any, Flow, str], Flow]


def as_layers(estimator: Any, x: Any, prefix: str, softmax: str) -> tuple[Any, Any]:
    """Apply a fitted estimator to a tensor of flat features (row, feature), as stock Keras layers.

    ``prefix`` begins the names of the layers; ``softmax`` is the name of a classifier's last layer.

    Returns
    -------
    scores : KerasTensor
        Logits (row, class), one column for each class also if there are two; or the predicted
        value (row, 1) of a regressor. The output itself for a classifier that is calibrated, or
        has a threshold on its probabilities.
    output : KerasTensor
        The probabilities (row, class) of a classifier's ``predict_proba``, or the softmax of its
        decision values if it has none; the scores of a regressor. The largest is the predicted
        class: a threshold shifts the logits, as in `featurestore.heads.decision`.

    Raises
    ------
    PromotionError
        If a step has no Keras form; the message lists what can be promoted.
    """
    check(estimator)
    last, flow, name = _before_last(estimator, Flow.of(x), prefix)
    if type(last).__name__ == "CalibratedClassifierCV":
        folds = last.calibrated_classifiers_
        scores = [
            _scores(fold.estimator, flow, f"{name}_{number}_") for number, fold in enumerate(folds)
        ]
        output = calibrated(folds, scores, name, softmax)
        return output, output
    threshold = Threshold.of(last)
    if threshold is not None:
        scores = _scores(last.estimator_, flow, f"{name}_")
        logits = scaled(scores, 1.0, [0.0, threshold.shift], f"{name}_threshold")
        output = keras.layers.Softmax(name=softmax)(logits)
        return (logits if threshold.response == "decision_function" else output), output
    scores = _predictor(last)(last, flow, name).x
    classifies = hasattr(last, "classes_")
    return scores, keras.layers.Softmax(name=softmax)(scores) if classifies else scores


def _before_last(estimator: Any, flow: Flow, prefix: str) -> tuple[Any, Flow, str]:
    """Apply all steps but the last; return that one, its input, and the name of its layer."""
    *before, last = _steps(estimator)
    for number, step in enumerate(before):
        flow = _transformer(step)(step, flow, f"{prefix}{number}_{type(step).__name__.lower()}")
    return last, flow, f"{prefix}{len(before)}_{type(last).__name__.lower()}"


def _scores(classifier: Any, flow: Flow, prefix: str) -> Any:
    """Return the logits (row, class) of a classifier inside a calibration or a threshold."""
    last, flow, name = _before_last(classifier, flow, prefix)
    return _predictor(last)(last, flow, name).x


def check(estimator: Any, *, inside: bool = False) -> None:
    """Raise PromotionError if a step of a fitted estimator has no Keras form.

    ``inside`` a calibration or a threshold there can be no other.
    """
    *before, last = _steps(estimator)
    for step in before:
        _require(step, _transformer(step), f"{type(step).__name__} before another step")
    name = type(last).__name__
    calibrates, threshold = name == "CalibratedClassifierCV", Threshold.of(last)
    wraps = (calibrates or threshold) and not inside
    _require(last, wraps or _predictor(last), f"{name} as the last step" if before else name)
    if calibrates:
        for fold in last.calibrated_classifiers_:
            check(fold.estimator, inside=True)
            if not hasattr(fold.estimator, "decision_function"):
                raise no_form(f"a calibrated {type(_steps(fold.estimator)[-1]).__name__}")
            # For temperatures, the classes of the folds are numbers.
            if len(fold.estimator.classes_) < len(last.classes_):
                raise PromotionError(
                    f"{name} cannot be promoted: some of its folds lack a class; calibrate with "
                    "ensemble=False"
                )
    elif threshold:
        check(last.estimator_, inside=True)
        if not np.isfinite(threshold.shift):
            raise PromotionError(
                f"{name} cannot be promoted: its threshold predicts one class for all rows; "
                "expected one between 0 and 1"
            )


def _require(step: Any, converts: Any, what: str) -> None:
    if not converts or not type(step).__module__.startswith("sklearn."):
        raise no_form(what)
    for kind, parameter, value, instead in _REFUSED:
        if type(step).__name__ == kind and getattr(step, parameter, None) == value:
            raise PromotionError(
                f"{kind} with {parameter}={value!r} has no Keras form; use {instead}"
            )


def no_form(what: str) -> PromotionError:
    """Return the error for a head, or a step of one, that has no Keras form."""
    return PromotionError(
        f"{what} has no Keras form and cannot be promoted",
        PROMOTABLE,
        "train one of these on the same features with `featurestore train`",
    )


# Class, parameter, its value without a Keras form, and what to use instead.
_REFUSED = (
    ("CalibratedClassifierCV", "method", "isotonic", "method='sigmoid' or 'temperature'"),
    ("MinMaxScaler", "clip", True, "clip=False"),
    ("MLPRegressor", "loss", "poisson", "loss='squared_error'"),
    ("Normalizer", "norm", "l1", "norm='l2'"),
    ("Normalizer", "norm", "max", "norm='l2'"),
    # One sigmoid for each class, which no softmax gives.
    ("SGDClassifier", "loss", "log_loss", "loss='hinge', or LogisticRegression"),
    ("SGDClassifier", "loss", "modified_huber", "loss='hinge', or LogisticRegression"),
)
# Linear inside, but with a link function between the product and the prediction.
_LINKED = {"PoissonRegressor", "GammaRegressor", "TweedieRegressor"}


def _steps(estimator: Any) -> list[Any]:
    if hasattr(estimator, "best_estimator_"):
        return _steps(estimator.best_estimator_)
    if hasattr(estimator, "steps"):
        inner = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        return [part for step in inner for part in _steps(step)]
    return [estimator]


def _transformer(step: Any) -> Any:
    return _selection if hasattr(step, "get_support") else _TRANSFORMERS.get(type(step).__name__)


def _predictor(step: Any) -> Any:
    name = type(step).__name__
    if type(step).__module__.startswith("sklearn.linear_model.") and name not in _LINKED:
        return _linear if hasattr(step, "coef_") else None
    return _PREDICTORS.get(name)


def _selection(step: Any, flow: Flow, name: str) -> Flow:
    selected = flow.index[step.get_support(indices=True)]
    return Flow(flow.x, selected).scaled(0.0, 1.0, name)


def _pca(step: Any, flow: Flow, name: str) -> Flow:
    kernel = step.components_.astype("float64").T
    if step.whiten:
        # As scikit-learn does if components of no variance were kept.
        deviation = np.sqrt(step.explained_variance_)
        kernel = kernel / np.maximum(deviation, np.finfo(deviation.dtype).eps)
    return flow.scaled(step.mean_, 1.0, f"{name}_centered").dense(kernel, 0.0, name)


def _linear(step: Any, flow: Flow, name: str) -> Flow:
    kernel = np.atleast_2d(np.asarray(step.coef_, "float64")).T
    bias = np.broadcast_to(np.asarray(step.intercept_, "float64"), kernel.shape[1])
    if hasattr(step, "classes_") and kernel.shape[1] == 1:
        kernel, bias = _two_classes(kernel, bias)
    return flow.dense(kernel, bias, name)


def _two_classes(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One decision z as two logits (0, z): their softmax is the sigmoid of z."""
    zero = np.zeros_like(kernel)
    return np.concatenate([zero, kernel], axis=1), np.concatenate([[0.0], bias])


def _multilayer_perceptron(step: Any, flow: Flow, name: str) -> Flow:
    activation = {"identity": None, "logistic": "sigmoid"}.get(step.activation, step.activation)
    layers = list(zip(step.coefs_, step.intercepts_, strict=True))
    for number, (kernel, bias) in enumerate(layers[:-1]):
        flow = flow.dense(kernel, bias, f"{name}_hidden_{number}", activation)
    kernel, bias = layers[-1]
    if step.out_activation_ == "logistic":
        kernel, bias = _two_classes(kernel, bias)
    return flow.dense(kernel, bias, name)


_TRANSFORMERS: dict[str, Convert] = {
    "IncrementalPCA": _pca,
    "MaxAbsScaler": lambda step, flow, name: flow.scaled(0.0, 1 / step.scale_, name),
    "MinMaxScaler": lambda step, flow, name: flow.scaled(
        -step.min_ / step.scale_, step.scale_, name
    ),
    "Normalizer": lambda step, flow, name: Flow(
        # Features that were not selected are zero, so they do not count.
        keras.layers.UnitNormalization(axis=-1, name=name)(flow.x),
        flow.index,
    ),
    "PCA": _pca,
    "RobustScaler": lambda step, flow, name: flow.scaled(
        step.center_ if step.with_centering else 0.0,
        1 / step.scale_ if step.with_scaling else 1.0,
        name,
    ),
    "StandardScaler": lambda step, flow, name: flow.scaled(
        step.mean_ if step.with_mean else 0.0, 1 / step.scale_ if step.with_std else 1.0, name
    ),
    "TruncatedSVD": lambda step, flow, name: flow.dense(step.components_.T, 0.0, name),
}
_PREDICTORS: dict[str, Convert] = {
    "LinearDiscriminantAnalysis": _linear,
    "LinearSVC": _linear,
    "LinearSVR": _linear,
    "MLPClassifier": _multilayer_perceptron,
    "MLPRegressor": _multilayer_perceptron,
}
