"""Fitted scikit-learn estimators as stock Keras layers, step by step.

What converts: linear classifiers and regressors, ``MLPClassifier`` and ``MLPRegressor``, alone or
behind scalers, PCA and feature selection in a ``Pipeline``, or inside a fitted search.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from featurestore.errors import PromotionError

PROMOTABLE = (
    "Keras heads; linear classifiers and regressors (logistic, ridge, linear-svm, "
    "LinearDiscriminantAnalysis, SGDClassifier, Lasso, …); MLPClassifier and MLPRegressor; each "
    "also behind scalers, PCA or feature selection"
)
# Keras' Normalization divides by 1e-7 where the deviation is smaller; kept well away from that.
SMALLEST_SCALE = 2.0**-20

# (fitted step, KerasTensor (row, feature), layer name) -> KerasTensor
Convert = Callable[[Any, Any, str], Any]


def scores_tensor(estimator: Any, x: Any, prefix: str = "head_") -> Any:
    """Apply a fitted estimator to a tensor of flat features, as stock Keras layers.

    Parameters
    ----------
    estimator : scikit-learn estimator
        Fitted.
    x : KerasTensor (row, feature)
        Features.
    prefix : str
        Put before the name of every layer.

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
    for number, (step, convert) in enumerate(_conversions(estimator)):
        x = convert(step, x, f"{prefix}{number}_{type(step).__name__.lower()}")
    return x


def probabilities_tensor(estimator: Any, scores: Any, prefix: str, name: str) -> Any:
    """Turn a classifier's scores into the probabilities that it gives itself, by a softmax.

    Parameters
    ----------
    estimator : scikit-learn classifier
        Fitted.
    scores : KerasTensor (row, class)
        From :func:`scores_tensor`.
    prefix : str
        Put before the name of a layer between scores and softmax.
    name : str
        Of the softmax layer.
    """
    import keras

    if _is_one_versus_rest(_steps(estimator)[-1]):
        # Each sigmoid's share of their sum is the softmax of their logarithms.
        scores = keras.layers.Activation("log_sigmoid", name=f"{prefix}log_sigmoid")(scores)
    return keras.layers.Softmax(name=name)(scores)


def require_convertible(estimator: Any) -> None:
    """Raise PromotionError where a step of a fitted estimator has no Keras form."""
    _conversions(estimator)


def _conversions(estimator: Any) -> list[tuple[Any, Convert]]:
    """Return each step with what converts it; the last one predicts, the others transform."""
    steps = _steps(estimator)
    found = []
    for step in steps:
        name, last = type(step).__name__, step is steps[-1]
        convert = _predictor(step) if last else _transformer(step)
        if convert is None or not type(step).__module__.startswith("sklearn."):
            place = "as the last step" if last else "before another step"
            raise PromotionError(
                f"{name} {f'{place} ' if len(steps) > 1 else ''}has no Keras form and cannot be "
                f"promoted; what can be: {PROMOTABLE}. Train one of these on the same features "
                "with `featurestore train`"
            )
        reason = _refusal(step)
        if reason is not None:
            raise PromotionError(f"{name} cannot be promoted: {reason}")
        found.append((step, convert))
    return found


def _steps(estimator: Any) -> list[Any]:
    if hasattr(estimator, "best_estimator_"):
        return _steps(estimator.best_estimator_)
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
    """Return why a step of a class that converts does not, as it was fitted."""
    name = type(step).__name__
    if name in ("MinMaxScaler", "MaxAbsScaler") and getattr(step, "clip", False):
        return "clip=True has no Keras form; fit it with clip=False"
    if name == "Normalizer" and step.norm != "l2":
        return f"norm={step.norm!r} has no Keras form; use norm='l2'"
    if name == "SGDClassifier" and step.loss == "modified_huber":
        return "loss='modified_huber' gives probabilities that no layer gives; use 'log_loss'"
    if name == "MLPClassifier" and step.out_activation_ == "logistic" and len(step.classes_) > 2:
        return "it tells several labels of one sample at once; use one class for each sample"
    if name == "MLPRegressor" and step.out_activation_ != "identity":
        return f"its output is {step.out_activation_!r} of a sum; use loss='squared_error'"
    return None


def _is_one_versus_rest(step: Any) -> bool:
    if len(step.classes_) < 3:
        return False
    if type(step).__name__ == "SGDClassifier":
        return step.loss == "log_loss"
    # Before scikit-learn 1.8.
    return getattr(step, "multi_class", None) == "ovr" or getattr(step, "solver", "") == "liblinear"


# Linear inside, but with a link function between the product and the prediction.
_LINKED = {"PoissonRegressor", "GammaRegressor", "TweedieRegressor"}


def _affine(x: Any, mean: Any, scale: Any, name: str) -> Any:
    """(x - mean) / scale, feature by feature."""
    import keras

    width = int(x.shape[-1])
    mean = np.broadcast_to(np.asarray(mean, "float64"), width)
    scale = np.broadcast_to(np.asarray(scale, "float64"), width)
    smallest = float(scale.min())
    if 0 < smallest < SMALLEST_SCALE:
        # By a power of two, which rounds nothing.
        factor = 2.0 ** math.ceil(math.log2(SMALLEST_SCALE / smallest))
        x = keras.layers.Rescaling(factor, name=f"{name}_rescaling")(x)
        mean, scale = mean * factor, scale * factor
    layer = keras.layers.Normalization(axis=-1, name=name)
    layer.build(x.shape)
    # As weights: in the layer's configuration, a hundred thousand numbers would be text.
    layer.set_weights([mean.astype("float32"), np.square(scale).astype("float32"), np.array(0)])
    layer.finalize_state()
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
    return _affine(x, -step.min_ / step.scale_, 1.0 / step.scale_, name)


def _max_abs_scaler(step: Any, x: Any, name: str) -> Any:
    return _affine(x, 0.0, step.scale_, name)


def _robust_scaler(step: Any, x: Any, name: str) -> Any:
    center = step.center_ if step.with_centering else 0.0
    return _affine(x, center, step.scale_ if step.with_scaling else 1.0, name)


def _normalizer(step: Any, x: Any, name: str) -> Any:
    import keras

    return keras.layers.UnitNormalization(axis=-1, name=name)(x)


def _pca(step: Any, x: Any, name: str) -> Any:
    kernel = step.components_.astype("float64").T
    if step.whiten:
        # As scikit-learn does, where components of no variance were kept.
        deviation = np.sqrt(step.explained_variance_)
        kernel = kernel / np.maximum(deviation, np.finfo(deviation.dtype).eps)
    return _dense(x, kernel, -step.mean_ @ kernel, name)


def _truncated_svd(step: Any, x: Any, name: str) -> Any:
    return _dense(x, step.components_.T, 0.0, name)


def _selection(step: Any, x: Any, name: str) -> Any:
    import keras

    # A product with zeros and ones would be as large as the features squared.
    x = keras.ops.take(x, step.get_support(indices=True).tolist(), axis=1)
    x._keras_history.operation.name = name
    return x


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
    activation = {"identity": None, "logistic": "sigmoid"}.get(step.activation, step.activation)
    layers = list(zip(step.coefs_, step.intercepts_, strict=True))
    for number, (kernel, bias) in enumerate(layers[:-1]):
        x = _dense(x, kernel, bias, f"{name}_hidden_{number}", activation)
    kernel, bias = layers[-1]
    if step.out_activation_ == "logistic":
        kernel, bias = _two_classes(kernel, bias)
    return _dense(x, kernel, bias, name)


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
