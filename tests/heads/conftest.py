"""A small store: samples, their manifest, and features that separate the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.digests import digest_bytes
from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.store import FeatureKey, FeatureStore

MakeFeatures = Callable[..., Features]


def samples(labels: Sequence[Any] | None, count: int, name: str, **options: Any) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return Dataset.from_arrays(images, labels, name=name, **options)


def refused(features: Features, estimator: Any, params: dict[str, Any] | None = None) -> str:
    with pytest.raises(HeadError) as caught:
        fit_head(features, estimator, params)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", create=True)


@pytest.fixture
def make_features(store: FeatureStore) -> MakeFeatures:
    """Store features of an invented layer; they follow the labels, with noise."""

    def make(
        labels: Sequence[Any] | None,
        shape: tuple[int, ...] = (12,),
        *,
        count: int | None = None,
        ref: str = "pool:avg",
        name: str = "toys",
        noise: float = 1.0,
        values: np.ndarray | None = None,
        model: str = "toynet",
        **options: Any,
    ) -> Features:
        dataset = samples(labels, count or len(labels or ()), name, **options)
        store.datasets.add(dataset)
        key = FeatureKey(model, ref, digest_bytes(f"{model}/{ref}".encode()), dataset.digest)
        rng = np.random.default_rng(1)
        targets = np.nan_to_num(dataset.targets.astype(np.float64))
        centres = rng.normal(size=(max(1, len(dataset.classes)), *shape))
        rows = rng.normal(size=(len(dataset), *shape)) * noise
        if dataset.task == "classification":
            rows += centres[dataset.targets]
        elif dataset.task == "regression":
            direction = rng.normal(size=shape)
            rows += np.multiply.outer(targets - targets.mean(), direction) / (targets.std() or 1)
        rows = rows if values is None else values
        group = store.features.create(
            key,
            shape=(len(dataset), *shape),
            dtype="float16",
            sample_ids=dataset.sample_ids,
            provenance={"backbone": {"source": "pixels"}, "prefix": {"input_size": [32, 32]}},
        )
        for block in group.missing():
            span = slice(block * group.block_rows, (block + 1) * group.block_rows)
            group.write_block(block, rows[span].astype(np.float16))
        return Features(store.features.get(key), dataset, store)

    return make


@pytest.fixture
def three(make_features: MakeFeatures) -> Features:
    """60 rows of three classes, split by digest."""
    return make_features(["ant", "bee", "cat"] * 20, val=0.25, test=0.2)


@pytest.fixture
def numbers(make_features: MakeFeatures) -> Features:
    """60 rows with float labels."""
    values = np.linspace(1000.0, 1060.0, 60)
    return make_features(values.tolist(), val=0.25, test=0.2)


@pytest.fixture
def maps(make_features: MakeFeatures) -> Features:
    """60 rows of spatial features of three classes."""
    return make_features(["ant", "bee", "cat"] * 20, (3, 3, 4), ref="block", val=0.25, test=0.2)


@pytest.fixture
def keras_seed() -> None:
    """Models that a test builds start from the same weights in every run."""
    import keras

    keras.utils.set_random_seed(0)
