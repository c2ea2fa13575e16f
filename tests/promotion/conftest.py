"""A real small network with BatchNorm, images of several sizes, and the features of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.extraction import Extraction, extract
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion import Promotion, promote
from featurestore.store import FeatureStore

SIZE = 16
SIZES = [(16, 16), (20, 24), (31, 17)]
LAYERS = ["block1_pool", "block2_relu", "block2_relu:avg", "block3_relu", "block3_relu:avg"]


def small_network(size: int = SIZE) -> keras.Model:
    """Three blocks with BatchNorm, a branch and an operation: a bottleneck after each block."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    image = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, -1)(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="block1_conv")(x)
    x = layers.MaxPooling2D(name="block1_pool")(x)
    y = layers.Conv2D(8, 3, padding="same", use_bias=False, name="block2_conv")(x)
    y = layers.BatchNormalization(name="block2_bn")(y)
    x = layers.ReLU(name="block2_relu")((x + y) * 2.0)
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="block3_conv")(x)
    x = layers.BatchNormalization(name="block3_bn")(x)
    x = layers.ReLU(name="block3_relu")(x)
    model = keras.Model(image, x, name="small")
    random = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            width = layer.gamma.shape
            layer.set_weights(
                [
                    random.uniform(0.5, 2, width),
                    random.normal(0, 0.3, width),
                    random.normal(0, 0.3, width),
                    random.uniform(0.3, 2, width),
                ]
            )
    return model


def pictures(count: int, classes: int, sizes: Sequence[tuple[int, int]] = SIZES) -> list:
    """Noisy images, uint8 (height, width, 3), whose colour and pattern tell the class."""
    random = np.random.default_rng(3)
    found = []
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        kind = number % classes
        y, x = np.mgrid[0:height, 0:width]
        wave = np.sin((x if kind % 2 else y) * (0.4 + 0.3 * kind))[..., None]
        tint = np.array([60 + 40 * kind, 128, 200 - 30 * kind])
        noise = random.normal(0, 30, (height, width, 3))
        found.append(np.clip(tint + 50 * wave + noise, 0, 255).astype(np.uint8))
    return found


@pytest.fixture(scope="session")
def network() -> keras.Model:
    return small_network()


@pytest.fixture(scope="session")
def backbone(network: keras.Model) -> Backbone:
    return Backbone.open(network, name="small")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 45 PNG images of three classes, three sizes and three modes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, array in enumerate(pictures(45, 3)):
        file = folder / ["ant", "bee", "cat"][number % 3] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        image = Image.fromarray(array)
        image.convert(["RGB", "L", "RGBA"][number // 3 % 3]).save(file)
    return folder


@pytest.fixture(scope="session")
def flowers(photos: Path) -> Dataset:
    return Dataset.open(photos, name="flowers", val=0.3)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(tmp_path_factory.mktemp("stores") / "store", create=True)


@pytest.fixture(scope="session")
def extraction(flowers: Dataset, backbone: Backbone, store: FeatureStore) -> Extraction:
    return extract(flowers, backbone, LAYERS, store)


@pytest.fixture(scope="session")
def pooled(extraction: Extraction) -> Features:
    return extraction["block3_relu:avg"]


@pytest.fixture(scope="session")
def maps(extraction: Extraction) -> Features:
    return extraction["block3_relu"]


@pytest.fixture(scope="session")
def promotion(pooled: Features, flowers: Dataset, backbone: Backbone) -> Promotion:
    """A promoted logistic regression; tests must not change its model."""
    return promote(fit_head(pooled, "logistic"), backbone, data=flowers)


@pytest.fixture(scope="session")
def model(promotion: Promotion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of that promotion."""
    path = tmp_path_factory.mktemp("models") / "flowers.keras"
    promotion.save(path)
    return path


MakeFeatures = Callable[..., Features]


@pytest.fixture(scope="session")
def values_model(
    make_features: MakeFeatures, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The file of a promoted regressor."""
    features = make_features([number % 3 + 0.5 for number in range(30)])
    path = tmp_path_factory.mktemp("models") / "values.keras"
    promote(fit_head(features, "ridge"), backbone, data=features.dataset).save(path)
    return path


@pytest.fixture(scope="session")
def make_features(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> MakeFeatures:
    """Extract features of images in memory, into a store of their own."""

    def make(
        labels: Sequence[Any] | None,
        ref: str = "block3_relu:avg",
        *,
        dtype: str = "float16",
        kinds: int = 3,
        model: Backbone | None = None,
        count: int | None = None,
        **options: Any,
    ) -> Features:
        images = pictures(count or len(labels or ()), kinds, [(SIZE, SIZE)])
        options = {"val": 0.3, **options}
        dataset = Dataset.from_arrays(images, labels, name="toys", **options)
        own = FeatureStore(tmp_path_factory.mktemp("stores") / "store", create=True)
        return extract(dataset, model or backbone, [ref], own, dtype=dtype)[ref]

    return make
