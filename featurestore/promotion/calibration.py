"""Calibrated classifiers and decision thresholds as stock Keras layers.

``CalibratedClassifierCV`` with sigmoids or a temperature, ``FixedThresholdClassifier`` and
``TunedThresholdClassifierCV``. What they have learned becomes weights that are not trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from featurestore.heads.decision import Threshold

# scikit-learn adds this to probabilities before it takes their logarithm.
EPSILON = 1e-12

_THRESHOLDS = ("FixedThresholdClassifier", "TunedThresholdClassifierCV")


def inner_classifiers(step: Any) -> list[Any]:
    """Return the fitted classifiers inside a calibration or threshold; else none."""
    if type(step).__name__ == "CalibratedClassifierCV":
        return [fold.estimator for fold in step.calibrated_classifiers_]
    return [step.estimator_] if type(step).__name__ in _THRESHOLDS else []


def refusal(step: Any) -> str | None:
    """Return why a calibration or threshold has no Keras form, or None if it has one."""
    inner = inner_classifiers(step)
    if any(map(Threshold.of, inner)):
        return "it calibrates a classifier with a threshold; put the threshold around it"
    threshold = Threshold.of(step)
    if threshold is not None:
        if threshold.response == "decision_function" or 0 < threshold.value < 1:
            return None
        return (
            f"its threshold is {threshold.value:.3g}, so that it predicts one class for all rows; "
            "expected one between 0 and 1"
        )
    if step.method == "isotonic":
        return (
            "isotonic calibration jumps between training samples, so that rounding decides its "
            "probabilities; calibrate with method='sigmoid' or 'temperature'"
        )
    # For temperatures, the classes of the folds are numbers.
    if all(len(classifier.classes_) == len(step.classes_) for classifier in inner):
        return None
    return "some of its folds lack a class; calibrate with ensemble=False"


def calibrated(fold: Any, scores: Any, probabilities: Any, name: str) -> Any:
    """Apply what one fold of a ``CalibratedClassifierCV`` learned to its classifier's outputs.

    Parameters
    ----------
    fold : object
        An item of ``calibrated_classifiers_``.
    scores, probabilities : KerasTensor (row, class)
        Of its classifier, as :func:`featurestore.promotion.convert.as_layers` returns them.
    name : str
        Beginning of the layers' names.

    Returns
    -------
    KerasTensor (row, class)
        Calibrated probabilities.
    """
    import keras

    has_decision = hasattr(fold.estimator, "decision_function")
    values = scores if has_decision else probabilities
    two = len(fold.classes) == 2
    if fold.method == "temperature":
        factor = fold.calibrators[0].beta_
        if has_decision and two:  # scikit-learn takes -z and z, the layers give 0 and z.
            factor = 2 * factor
        elif not has_decision:
            values = log(values, f"{name}_log")
        logits = scaled(values, factor, 0.0, f"{name}_temperature")
    else:
        slope = [-sigmoid.a_ for sigmoid in fold.calibrators]
        offset = [-sigmoid.b_ for sigmoid in fold.calibrators]
        if two:
            slope, offset = [0.0, *slope], [0.0, *offset]
        logits = scaled(values, slope, offset, f"{name}_sigmoid")
        if not two:
            # Each sigmoid's share of their sum is the softmax of their logarithms.
            logits = keras.layers.Activation("log_sigmoid", name=f"{name}_log_sigmoid")(logits)
    return keras.layers.Softmax(name=f"{name}_calibrated")(logits)


def scaled(x: Any, factor: Any, offset: Any, name: str) -> Any:
    """Apply ``x * factor + offset`` as a layer that is not trained."""
    import keras

    width = int(x.shape[-1])
    layer = keras.layers.EinsumDense("rf,f->rf", width, bias_axes="f", name=name, trainable=False)
    output = layer(x)
    weights = (np.broadcast_to(values, width).astype("float32") for values in (factor, offset))
    layer.set_weights(list(weights))
    return output


def log(probabilities: Any, name: str) -> Any:
    """Return the logarithm of probabilities."""
    import keras

    tensor = keras.ops.log(probabilities + EPSILON)
    # A name that Keras generates may be one of the backbone's.
    tensor._keras_history.operation.name = name
    return tensor
