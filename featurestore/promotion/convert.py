"""Fitted scikit-learn estimators as stock Keras layers, step by step.

Linear classifiers and regressors, ``MLPClassifier`` and ``MLPRegressor`` convert, alone or behind
scalers, PCA and feature selection in a ``Pipeline``, calibrated or with a threshold (see
:mod:`featurestore.promotion.calibration`), or inside a fitted search.

All that a head has learned becomes ordinary weights, which ``set_weights`` and every exporter
carry. The weights of scaling and selection are not trainable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.errors import PromotionError
from featurestore.heads.decision import Threshold
from featurestore.promotion.calibration import (
    calibrated,
    inner_classifiers,
    log,
    refusal,
    scaled,
)

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
        import keras

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
    return _apply(estimator, Flow.of(x), prefix, softmax)


def _apply(estimator: Any, flow: Flow, prefix: str, softmax: str) -> tuple[Any, Any]:
    """Apply an estimator that `check` accepts; as :func:`as_layers`."""
    import keras

    *before, last = _steps(estimator)
    for number, step in enumerate(before):
        convert = _transformer(step)
        assert convert is not None
        flow = convert(step, flow, f"{prefix}{number}_{type(step).__name__.lower()}")
    name = f"{prefix}{len(before)}_{type(last).__name__.lower()}"
    threshold = Threshold.of(last)
    if threshold is not None:
        scores, output = _apply(last.estimator_, flow, f"{name}_", f"{name}_probabilities")
        # The scores of a calibrated classifier are its probabilities.
        logits = log(output, f"{name}_log") if scores is output else scores
        logits = scaled(logits, 1.0, [0.0, threshold.shift], f"{name}_threshold")
        output = keras.layers.Softmax(name=softmax)(logits)
        return (logits if threshold.response == "decision_function" else output), output
    if inner_classifiers(last):
        output = _calibrated(last, flow, name, softmax)
        return output, output
    predictor = _predictor(last)
    assert predictor is not None
    scores = predictor(last, flow, name).x
    if not hasattr(last, "classes_"):
        return scores, scores
    logits = scores
    if _is_one_versus_rest(last):
        # Each sigmoid's share of their sum is the softmax of their logarithms.
        logits = keras.layers.Activation("log_sigmoid", name=f"{prefix}log_sigmoid")(scores)
    return scores, keras.layers.Softmax(name=softmax)(logits)


def _calibrated(calibration: Any, flow: Flow, name: str, softmax: str) -> Any:
    """Apply the classifier of each fold, calibrated; the mean of their probabilities."""
    import keras

    outputs = []
    for number, fold in enumerate(calibration.calibrated_classifiers_):
        own = f"{name}_{number}"
        scores, output = _apply(fold.estimator, flow, f"{own}_", f"{own}_probabilities")
        outputs.append(calibrated(fold, scores, output, own))
    if len(outputs) == 1:
        return keras.layers.Activation("linear", name=softmax)(outputs[0])
    return keras.layers.Average(name=softmax)(outputs)


def check(estimator: Any) -> None:
    """Raise PromotionError if a step of a fitted estimator has no Keras form."""
    steps = _steps(estimator)
    for step in steps:
        name, last = type(step).__name__, step is steps[-1]
        inner = inner_classifiers(step) if last else []
        convert = inner or (_predictor(step) if last else _transformer(step))
        if not convert or not type(step).__module__.startswith("sklearn."):
            place = "as the last step" if last else "before another step"
            raise no_form(f"{name} {place}" if len(steps) > 1 else name)
        reason = refusal(step) if inner else _refusal(step)
        if reason is not None:
            raise PromotionError(f"{name} cannot be promoted: {reason}")
        for classifier in inner:
            check(classifier)


def no_form(what: str) -> PromotionError:
    """Return the error for a head, or a step of one, that has no Keras form."""
    return PromotionError(
        f"{what} has no Keras form and cannot be promoted",
        PROMOTABLE,
        "train one of these on the same features with `featurestore train`",
    )


def _steps(estimator: Any) -> list[Any]:
    if hasattr(estimator, "best_estimator_"):
        return _steps(estimator.best_estimator_)
    if type(estimator).__name__ == "FrozenEstimator":
        return _steps(estimator.estimator)
    if hasattr(estimator, "steps"):
        inner = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        return [part for step in inner for part in _steps(step)]
    return [estimator]


def _transformer(step: Any) -> Convert | None:
    if hasattr(step, "get_support"):
        return _selection
    return _TRANSFORMERS.get(type(step).__name__)


def _predictor(step: Any) -> Convert | None:
    name = type(step).__name__
    if type(step).__module__.startswith("sklearn.linear_model.") and name not in _LINKED:
        return _linear if hasattr(step, "coef_") and hasattr(step, "intercept_") else None
    return _PREDICTORS.get(name)


def _refusal(step: Any) -> str | None:
    """Return why a step does not convert although its class does, or None."""
    name = type(step).__name__
    if getattr(step, "clip", False):
        return "clip=True has no Keras form; fit it with clip=False"
    if name == "Normalizer" and step.norm != "l2":
        return f"norm={step.norm!r} has no Keras form; use norm='l2'"
    if name == "SGDClassifier" and step.loss == "modified_huber":
        return "loss='modified_huber' gives probabilities that no layer gives; use 'log_loss'"
    if name == "MLPClassifier" and step.out_activation_ == "logistic" and len(step.classes_) > 2:
        return "it predicts several labels for one sample; use one class for each sample"
    if name == "MLPRegressor" and step.out_activation_ != "identity":
        return f"its output is {step.out_activation_!r} of a sum; use loss='squared_error'"
    return None


def _is_one_versus_rest(step: Any) -> bool:
    if len(step.classes_) < 3 or not hasattr(step, "predict_proba"):
        return False
    if type(step).__name__ == "SGDClassifier":
        return step.loss == "log_loss"
    # Before scikit-learn 1.8.
    return getattr(step, "multi_class", None) == "ovr" or getattr(step, "solver", "") == "liblinear"


# Linear inside, but with a link function between the product and the prediction.
_LINKED = {"PoissonRegressor", "GammaRegressor", "TweedieRegressor"}


def _standard_scaler(step: Any, flow: Flow, name: str) -> Flow:
    mean = step.mean_ if step.with_mean else 0.0
    return flow.scaled(mean, 1 / step.scale_ if step.with_std else 1.0, name)


def _min_max_scaler(step: Any, flow: Flow, name: str) -> Flow:
    return flow.scaled(-step.min_ / step.scale_, step.scale_, name)


def _max_abs_scaler(step: Any, flow: Flow, name: str) -> Flow:
    return flow.scaled(0.0, 1 / step.scale_, name)


def _robust_scaler(step: Any, flow: Flow, name: str) -> Flow:
    center = step.center_ if step.with_centering else 0.0
    return flow.scaled(center, 1 / step.scale_ if step.with_scaling else 1.0, name)


def _normalizer(step: Any, flow: Flow, name: str) -> Flow:
    import keras

    # Features that were not selected are zero, so they do not count.
    return Flow(keras.layers.UnitNormalization(axis=-1, name=name)(flow.x), flow.index)


def _pca(step: Any, flow: Flow, name: str) -> Flow:
    kernel = step.components_.astype("float64").T
    if step.whiten:
        # As scikit-learn does if components of no variance were kept.
        deviation = np.sqrt(step.explained_variance_)
        kernel = kernel / np.maximum(deviation, np.finfo(deviation.dtype).eps)
    return flow.scaled(step.mean_, 1.0, f"{name}_centered").dense(kernel, 0.0, name)


def _truncated_svd(step: Any, flow: Flow, name: str) -> Flow:
    return flow.dense(step.components_.T, 0.0, name)


def _selection(step: Any, flow: Flow, name: str) -> Flow:
    selected = flow.index[step.get_support(indices=True)]
    return Flow(flow.x, selected).scaled(0.0, 1.0, name)


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
    "MaxAbsScaler": _max_abs_scaler,
    "MinMaxScaler": _min_max_scaler,
    "Normalizer": _normalizer,
    "PCA": _pca,
    "RobustScaler": _robust_scaler,
    "StandardScaler": _standard_scaler,
    "TruncatedSVD": _truncated_svd,
}
_PREDICTORS: dict[str, Convert] = {
    "LinearDiscriminantAnalysis": _linear,
    "LinearSVC": _linear,
    "LinearSVR": _linear,
    "MLPClassifier": _multilayer_perceptron,
    "MLPRegressor": _multilayer_perceptron,
}
