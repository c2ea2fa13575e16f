"""What calibration and thresholds add to a classifier: Keras layers that are not trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


def calibrated(folds: Sequence[Any], scores: Sequence[Any], name: str, softmax: str) -> Any:
    """Apply what a ``CalibratedClassifierCV`` learned to the scores of its classifiers.

    Parameters
    ----------
    folds : sequence of object
        Its ``calibrated_classifiers_``: sigmoids, or a temperature.
    scores : sequence of KerasTensor (row, class)
        Logits of the classifier of each fold; those of two classes are (0, z) for a decision z.
    name, softmax : str
        Beginning of the layers' names, and the name of the last layer.

    Returns
    -------
    KerasTensor (row, class)
        The mean of the calibrated probabilities of the folds.
    """
    outputs = []
    for number, (fold, logits) in enumerate(zip(folds, scores, strict=True)):
        own, two = f"{name}_{number}", len(fold.classes) == 2
        if fold.method == "temperature":
            # Of two classes, scikit-learn takes (-z, z).
            factor = fold.calibrators[0].beta_ * (2 if two else 1)
            logits = scaled(logits, factor, 0.0, f"{own}_temperature")
        else:
            first = [0.0] if two else []
            slope = [*first, *(-sigmoid.a_ for sigmoid in fold.calibrators)]
            offset = [*first, *(-sigmoid.b_ for sigmoid in fold.calibrators)]
            logits = scaled(logits, slope, offset, f"{own}_sigmoid")
            if not two:
                # Each sigmoid's share of their sum is the softmax of their logarithms.
                logits = keras.layers.Activation("log_sigmoid", name=f"{own}_log_sigmoid")(logits)
        last = softmax if len(folds) == 1 else f"{own}_calibrated"
        outputs.append(keras.layers.Softmax(name=last)(logits))
    return outputs[0] if len(outputs) == 1 else keras.layers.Average(name=softmax)(outputs)


def scaled(x: Any, factor: Any, offset: Any, name: str) -> Any:
    """Apply ``x * factor + offset`` as a layer that is not trained."""
    width = int(x.shape[-1])
    layer = keras.layers.EinsumDense("rf,f->rf", width, bias_axes="f", name=name, trainable=False)
    output = layer(x)
    weights = (np.broadcast_to(values, width).astype("float32") for values in (factor, offset))
    layer.set_weights(list(weights))
    return output
