"""Small Keras models that tests bring as heads."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

QUICK = {"epochs": 8, "learning_rate": 0.01}


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def functional(units: int = 8) -> keras.Model:
    inputs = keras.Input((3, 3, 4))
    x = layers.GlobalMaxPooling2D()(inputs)
    hidden = layers.Dense(units, "relu")(x)
    x = layers.Concatenate()([hidden, x])
    return keras.Model(inputs, keras.ops.softmax(layers.Dense(3)(x)), name="mine")


def sequential(*parts: Any) -> keras.Model:
    return keras.Sequential(list(parts))
