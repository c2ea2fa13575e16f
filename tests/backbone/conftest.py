"""Tiny networks and images that all tests of the backbone share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from featurestore.backbone import Backbone

SIZE = 16


def tiny_network(
    *, size: int | None = SIZE, seed: int = 0, name: str = "tiny", operation: bool = True
) -> Any:
    """A branching functional network, most of its layers without names of their own."""
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(seed)
    image = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    left = layers.Conv2D(4, 3, padding="same", name="left")(x)
    left = layers.BatchNormalization()(left)
    x = layers.Add()([x, left])
    x = layers.MaxPooling2D(name="pool")(x)
    x = x * 2.0 if operation else x
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(5, name="logits")(x), name=name)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(np.linspace(-1, 1, 4))
            layer.moving_variance.assign(np.linspace(0.5, 2, 4))
    return model


@pytest.fixture
def tiny() -> Callable[..., Any]:
    return tiny_network


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """The tiny network as a backbone; tests that change it make their own."""
    return Backbone.open(tiny_network(), name="tiny")


@pytest.fixture(scope="session")
def mobilenet() -> Backbone:
    """A real network; tests that change it make their own."""
    return Backbone.open("mobilenetv2", "random", 64)


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A smooth uint8 image, (height=45, width=60, channel=3), unlike in every direction."""
    y, x = np.mgrid[0:45, 0:60]
    channels = [x * 4, y * 5, (x * y) % 256]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def batch() -> np.ndarray:
    """Uint8 noise, (batch=3, height=16, width=16, channel=3)."""
    return np.random.default_rng(7).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
