import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.extraction import Extraction, RowsComputed, extract
from featurestore.store import FeatureStore

LAYERS = ["pool_a", "pool_a:avg", "conv_b:max", "gap"]


class Killed(Exception):  # noqa: N818
    """Ends an extraction as a kill does: nothing more is kept."""


def stop_after(
    rows: int, error: type[BaseException] = KeyboardInterrupt, event: type = RowsComputed
) -> Callable[[Any], None]:
    """Return what stops an extraction as ``on_event``, once so many rows are done."""

    def stop(found: Any) -> None:
        if isinstance(found, event) and found.done >= rows:
            raise error

    return stop


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """A real small network: two convolutions with BatchNorm, 16 px, weights that vary."""
    keras.utils.set_random_seed(7)
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="conv_a")(image)
    x = keras.layers.BatchNormalization(name="bn_a")(x)
    x = keras.layers.ReLU(name="relu_a")(x)
    x = keras.layers.MaxPooling2D(name="pool_a")(x)
    x = keras.layers.Conv2D(12, 3, padding="same", activation="relu", name="conv_b")(x)
    x = keras.layers.GlobalAveragePooling2D(name="gap")(x)
    return Backbone.open(keras.Model(image, x), name="tiny", scaling="tf")


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


@pytest.fixture(scope="session")
def dataset(photos: Path) -> Dataset:
    return Dataset.open(photos, val=0.3)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", create=True)


@dataclass(frozen=True)
class Extracted:
    """An extraction of LAYERS in batches of 8, its events, and copies of its store."""

    extraction: Extraction
    events: list[Any]
    store: FeatureStore
    tmp_path: Path

    def copy(self) -> FeatureStore:
        shutil.copytree(self.store.location, self.tmp_path / "copy")
        return FeatureStore(self.tmp_path / "copy", create=True)

    @property
    def empty(self) -> FeatureStore:
        return FeatureStore(self.tmp_path / "empty", create=True)


@pytest.fixture(scope="session")
def _extracted(
    dataset: Dataset, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Extraction, list[Any], FeatureStore]:
    store = FeatureStore(tmp_path_factory.mktemp("extracted") / "store", create=True)
    events: list[Any] = []
    extraction = extract(dataset, backbone, LAYERS, store, batch_size=8, on_event=events.append)
    return extraction, events, store


@pytest.fixture
def extracted(_extracted: Any, tmp_path: Path) -> Extracted:
    return Extracted(*_extracted, tmp_path)
