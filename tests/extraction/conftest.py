from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.store import FeatureStore


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """A real small network: two convolutions with BatchNorm, 16 px, weights that vary."""
    import keras

    keras.utils.set_random_seed(7)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="conv_a")(image)
    x = keras.layers.BatchNormalization(name="bn_a")(x)
    x = keras.layers.ReLU(name="relu_a")(x)
    x = keras.layers.MaxPooling2D(name="pool_a")(x)
    x = keras.layers.Conv2D(12, 3, padding="same", activation="relu", name="conv_b")(x)
    x = keras.layers.GlobalAveragePooling2D(name="gap")(x)
    return Backbone.from_model(keras.Model(image, x), name="tiny", scaling="tf")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 images of several sizes in three classes."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(45):
        height, width = generator.integers(10, 40, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        place = folder / "abc"[number % 3]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    return folder


@pytest.fixture
def dataset(photos: Path) -> Dataset:
    return Dataset.from_folder(photos, val=0.3)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")
