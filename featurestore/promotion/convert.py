"""Fitted scikit-learn estimators as stock Keras layers, step by step.

What converts: linear classifiers and regressors, ``MLPClassifier`` and ``MLPRegressor``, alone or
behind scalers, PCA and feature selection in a ``Pipeline``, or inside a fitted search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from featurestore.errors import PromotionError

PROMOTABLE = (
    "Keras heads; linear classifiers and regressors (logistic, ridge, linear-svm, "
    "LinearDiscriminantAnalysis, SGDClassifier, Lasso, …); MLPClassifier and MLPRegressor; each "
    "also behind scalers, PCA or feature selection"
)

# (fitted step, KerasTensor (row, feature), layer name) -> KerasTensor
Convert = Callable[[Any, Any, str], Any]


def scores_tensor(estimator: Any, x: Any) -> Any:
    """Apply a fitted estimator to a tensor of flat features, as stock Keras layers.

    Parameters
    ----------
    estimator : scikit-learn estimator
        Fitted.
    x : KerasTensor (row, feature)
        Features.

    Returns
    -------
    KerasTensor
        Logits (row, class), one column for each class also where there are two; or the predicted
        value (row, 1) of a regressor.

    Raises
    ------
    PromotionError
        Where a step has no Keras form; names it, and what can be promoted instead.
    """
    steps = _steps(estimator)
    converters = [_converter(step) for step in steps]
    for number, (step, convert) in enumerate(zip(steps, converters, strict=True)):
        last = number == len(steps) - 1
        name = "head_logits" if last else f"head_{number}_{type(step).__name__.lower()}"
        x = convert(step, x, name)
    return x


def require_convertible(estimator: Any) -> None:
    """Raise PromotionError where a step of a fitted estimator has no Keras form."""
    for step in _steps(estimator):
        _converter(step)


def _steps(estimator: Any) -> list[Any]:
    if hasattr(estimator, "best_estimator_"):
        return _steps(estimator.best_estimator_)
    if hasattr(estimator, "steps"):
        inner = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        return [part for step in inner for part in _steps(step)]
    return [estimator]


def _converter(step: Any) -> Convert:
    module, name = type(step).__module__, type(step).__name__
    if module.startswith("sklearn."):
        if name in _BY_NAME:
            return _BY_NAME[name]
        if module.startswith("sklearn.linear_model.") and name not in _LINKED:
            return _linear
        if hasattr(step, "get_support"):
            return _selection
    raise PromotionError(
        f"{name} has no Keras form and cannot be promoted; what can be: {PROMOTABLE}. Train one "
        "of these on the same features with `featurestore train`"
    )


# Linear inside, but with a link function between the product and the prediction.
_LINKED = {"PoissonRegressor", "GammaRegressor", "TweedieRegressor"}


def _affine(x: Any, mean: Any, scale: Any, name: str) -> Any:
    """(x - mean) / scale, feature by feature."""
    import keras

    width = int(x.shape[-1])
    mean = np.broadcast_to(np.asarray(mean, "float64"), width)
    scale = np.broadcast_to(np.asarray(scale, "float64"), width)
    layer = keras.layers.Normalization(
        axis=-1,
        mean=mean.astype("float32"),
        variance=np.square(scale).astype("float32"),
        name=name,
    )
    return layer(x)


def _dense(x: Any, kernel: np.ndarray, bias: Any, name: str, activation: str | None = None) -> Any:
    """X @ kernel + bias, through an activation."""
    import keras

    layer = keras.layers.Dense(kernel.shape[1], activation=activation, name=name)
    result = layer(x)
    bias = np.broadcast_to(np.asarray(bias), kernel.shape[1])
    layer.set_weights([kernel.astype("float32"), bias.astype("float32")])
    return result


def _standard_scaler(step: Any, x: Any, name: str) -> Any:
    mean = step.mean_ if step.with_mean else 0.0
    return _affine(x, mean, step.scale_ if step.with_std else 1.0, name)


def _min_max_scaler(step: Any, x: Any, name: str) -> Any:
    if step.clip:
        raise PromotionError("MinMaxScaler(clip=True) has no Keras form; fit it with clip=False")
    return _affine(x, -step.min_ / step.scale_, 1.0 / step.scale_, name)


def _max_abs_scaler(step: Any, x: Any, name: str) -> Any:
    return _affine(x, 0.0, step.scale_, name)


def _robust_scaler(step: Any, x: Any, name: str) -> Any:
    center = step.center_ if step.with_centering else 0.0
    return _affine(x, center, step.scale_ if step.with_scaling else 1.0, name)


def _normalizer(step: Any, x: Any, name: str) -> Any:
    import keras

    if step.norm != "l2":
        raise PromotionError(f"Normalizer(norm={step.norm!r}) has no Keras form; use norm='l2'")
    return keras.layers.UnitNormalization(axis=-1, name=name)(x)


def _pca(step: Any, x: Any, name: str) -> Any:
    kernel = step.components_.astype("float64").T
    if step.whiten:
        kernel = kernel / np.sqrt(step.explained_variance_)
    return _dense(x, kernel, -step.mean_ @ kernel, name)


def _truncated_svd(step: Any, x: Any, name: str) -> Any:
    return _dense(x, step.components_.T, 0.0, name)


def _selection(step: Any, x: Any, name: str) -> Any:
    kept = step.get_support(indices=True)
    kernel = np.zeros((int(x.shape[-1]), len(kept)))
    kernel[kept, np.arange(len(kept))] = 1.0
    return _dense(x, kernel, 0.0, name)


def _linear(step: Any, x: Any, name: str) -> Any:
    kernel = np.atleast_2d(np.asarray(step.coef_, "float64")).T
    bias = np.broadcast_to(np.asarray(step.intercept_, "float64"), kernel.shape[1])
    if hasattr(step, "classes_") and kernel.shape[1] == 1:
        kernel, bias = _two_classes(kernel, bias)
    return _dense(x, kernel, bias, name)


def _two_classes(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One decision z as two logits (0, z): their softmax is the sigmoid of z."""
    zero = np.zeros_like(kernel)
    return np.concatenate([zero, kernel], axis=1), np.concatenate([[0.0], bias])


def _multilayer_perceptron(step: Any, x: Any, name: str) -> Any:
    if step.out_activation_ == "logistic" and len(step.classes_) > 2:
        raise PromotionError("MLPClassifier on several labels at once cannot be promoted")
    activation = {"identity": None, "logistic": "sigmoid"}.get(step.activation, step.activation)
    layers = list(zip(step.coefs_, step.intercepts_, strict=True))
    for number, (kernel, bias) in enumerate(layers[:-1]):
        x = _dense(x, kernel, bias, f"head_hidden_{number}", activation)
    kernel, bias = layers[-1]
    if step.out_activation_ == "logistic":
        kernel, bias = _two_classes(kernel, bias)
    return _dense(x, kernel, bias, name)


_BY_NAME: dict[str, Convert] = {
    "LinearDiscriminantAnalysis": _linear,
    "LinearSVC": _linear,
    "LinearSVR": _linear,
    "MLPClassifier": _multilayer_perceptron,
    "MLPRegressor": _multilayer_perceptron,
    "MaxAbsScaler": _max_abs_scaler,
    "MinMaxScaler": _min_max_scaler,
    "Normalizer": _normalizer,
    "PCA": _pca,
    "RobustScaler": _robust_scaler,
    "StandardScaler": _standard_scaler,
    "TruncatedSVD": _truncated_svd,
}
