"""Classifiers around a classifier as stock Keras layers: calibration and thresholds.

``CalibratedClassifierCV`` (sigmoid, isotonic, temperature), ``FixedThresholdClassifier`` and
``TunedThresholdClassifierCV``. What they have learned becomes weights that are not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore.heads.decision import Threshold

# All classes of no probability are equally likely: each gets this before they are divided by their
# sum.
NOTHING = 1e-30
# What scikit-learn adds to probabilities before it takes their logarithm.
EPSILON = 1e-12

_THRESHOLDS = ("FixedThresholdClassifier", "TunedThresholdClassifierCV")


def inside(step: Any) -> list[Any]:
    """Return the fitted classifiers inside a calibration or threshold; else none."""
    if type(step).__name__ == "CalibratedClassifierCV":
        return [each.estimator for each in step.calibrated_classifiers_]
    return [step.estimator_] if type(step).__name__ in _THRESHOLDS else []


def refusal(step: Any) -> str | None:
    """Return why a calibration or threshold does not convert although its class does, or None."""
    if any(Threshold.of(each) for each in inside(step)):
        return "it is around a threshold; put the threshold around it"
    threshold = Threshold.of(step)
    if threshold is None:
        # For temperatures, the classes of the folds are numbers.
        if all(len(each.classes_) == len(step.classes_) for each in inside(step)):
            return None
        return "some of its folds lack a class; calibrate with ensemble=False"
    if threshold.response == "predict_proba" and not 0 < threshold.value < 1:
        return (
            f"its threshold is {threshold.value:.3g}, so that it predicts one class for all; "
            "expected one between 0 and 1"
        )
    return None


def as_layers(step: Any, flow: Any, name: str, softmax: str) -> tuple[Any, Any]:
    """Apply a fitted calibration or threshold; as :func:`featurestore.promotion.convert.as_layers`.

    ``name`` begins the names of its layers.
    """
    import keras

    threshold = Threshold.of(step)
    if threshold is None:
        parts = [
            _calibrated(part, flow, f"{name}_{number}")
            for number, part in enumerate(step.calibrated_classifiers_)
        ]
        output = keras.layers.Average(name=name)(parts) if len(parts) > 1 else parts[0]
    else:
        scores, output = _classifier(step.estimator_, flow, name)
        if threshold.response == "decision_function":
            scores = scaled(scores, [1.0, 1.0], [0.0, threshold.shift], f"{name}_scaled")
            return scores, keras.layers.Softmax(name=softmax)(scores)
        output = _share(scaled(output, threshold.weights, 0.0, f"{name}_scaled"), name)
    output = keras.layers.Activation("linear", name=softmax)(output)
    return output, output


def _classifier(estimator: Any, flow: Any, name: str) -> tuple[Any, Any]:
    from featurestore.promotion.convert import from_flow

    return from_flow(estimator, flow, f"{name}_", f"{name}_probabilities")


def _calibrated(part: Any, flow: Any, name: str) -> Any:
    """Apply one classifier and what calibrates it; probabilities (row, class)."""
    import keras

    values, likely = _classifier(part.estimator, flow, name)
    decides = hasattr(part.estimator, "decision_function")
    values = values if decides else likely
    calibrators, two = part.calibrators, len(part.classes) == 2
    if part.method == "isotonic":
        return _isotonic(calibrators, values, two, name)
    if part.method == "temperature":
        factor = calibrators[0].beta_
        if decides and two:  # scikit-learn takes -z and z, and we have 0 and z.
            factor = 2 * factor
        elif not decides:
            values = _named(keras.ops.log(values + EPSILON), f"{name}_log")
        logits = scaled(values, factor, 0.0, f"{name}_temperature")
    else:
        slope, offset = (
            np.array([-getattr(each, at) for each in calibrators]) for at in ("a_", "b_")
        )
        if two:
            slope, offset = np.append(0.0, slope), np.append(0.0, offset)
        logits = scaled(values, slope, offset, f"{name}_sigmoid")
        if not two:
            # Each sigmoid's share of their sum is the softmax of their logarithms.
            logits = keras.layers.Activation("log_sigmoid", name=f"{name}_log_sigmoid")(logits)
    return keras.layers.Softmax(name=f"{name}_calibrated")(logits)


def _isotonic(calibrators: Sequence[Any], values: Any, two: bool, name: str) -> Any:
    """Apply piecewise linear functions, one for each class; probabilities (row, class).

    A function is its first value plus, for each segment that rises, the rise times how far along
    the segment a value is, from 0 to 1.
    """
    import keras

    if two:
        column = keras.layers.Dense(1, name=f"{name}_second", trainable=False)
        values = _fixed(column, values, [[0.0], [1.0]], [0.0])
    segments = [_segments(each) for each in calibrators]
    classes, longest = len(segments), max(len(start) for start, *_ in segments)
    slopes, offsets, rises = np.zeros((3, classes, longest))
    for number, (start, end, rise) in enumerate(segments):
        count = len(start)
        # Use the slopes as float32 rounds them, so that the segments begin where they should.
        slopes[number, :count] = (1 / (end - start)).astype("float32")
        offsets[number, :count] = -start * slopes[number, :count]
        rises[number, :count] = rise
    first = [float(each.y_thresholds_[0]) for each in calibrators]
    along = keras.layers.EinsumDense(
        "rc,cs->rcs", (classes, longest), bias_axes="cs", name=f"{name}_along", trainable=False
    )
    rising = keras.layers.EinsumDense(
        "rcs,cs->rc", classes, bias_axes="c", name=f"{name}_isotonic", trainable=False
    )
    part = keras.layers.ReLU(max_value=1.0, name=f"{name}_clip")(
        _fixed(along, values, slopes, offsets)
    )
    if two:
        both = keras.layers.Dense(2, name=f"{name}_both", trainable=False)
        return _fixed(both, _fixed(rising, part, rises, first), [[-1.0, 1.0]], [1.0, 0.0])
    return _share(_fixed(rising, part, rises, np.add(first, NOTHING)), name)


def _segments(calibrator: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return start, end and rise of the segments that rise, (segment,) each; at least one."""
    x = np.asarray(calibrator.X_thresholds_, "float64")
    y = np.asarray(calibrator.y_thresholds_, "float64")
    rises = np.diff(y) > 0
    if not rises.any():
        return np.zeros(1), np.ones(1), np.zeros(1)
    return x[:-1][rises], x[1:][rises], np.diff(y)[rises]


def scaled(x: Any, factor: Any, offset: Any, name: str) -> Any:
    """Apply ``x * factor + offset``, a layer that is not trained."""
    import keras

    width = int(x.shape[-1])
    layer = keras.layers.EinsumDense("rf,f->rf", width, bias_axes="f", name=name, trainable=False)
    return _fixed(layer, x, np.broadcast_to(factor, width), np.broadcast_to(offset, width))


def _fixed(layer: Any, x: Any, *weights: Any) -> Any:
    found = layer(x)
    layer.set_weights([np.asarray(each, "float32") for each in weights])
    return found


def _share(x: Any, name: str) -> Any:
    """Divide by the sum over the classes."""
    import keras

    total = _named(keras.ops.sum(x, axis=-1, keepdims=True), f"{name}_sum")
    return _named(keras.ops.divide(x, total), f"{name}_share")


def _named(tensor: Any, name: str) -> Any:
    """Name the operation that made a tensor: Keras' own names may be those of the backbone."""
    tensor._keras_history.operation.name = name
    return tensor
