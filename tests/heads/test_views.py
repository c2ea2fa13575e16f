"""Heads are fitted on the training rows and their views, and measured on the plain rows."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.errors import IncompleteFeaturesError, InputError, NotFoundError, StoreError
from featurestore.extraction import Extraction, extract
from featurestore.features import Features
from featurestore.heads import Head, describe_head, fit_head, leaderboard
from featurestore.heads import rows as rows_module
from featurestore.heads.rows import Rows
from featurestore.store import FeatureStore
from tests.heads import own_estimators
from tests.toys import drop_block, take_photos

FLIP = [{"RandomFlip": {"mode": "horizontal"}}, {"RandomRotation": {"factor": 0.1}}]


@pytest.fixture(scope="module")
def extraction(tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    folder = tmp_path_factory.mktemp("views")
    photos = take_photos(folder / "photos")
    # A class without training samples would shift the codes of the others.
    store = FeatureStore(folder / "store", create=True)
    options: dict[str, Any] = {"views": 3, "augmentation": FLIP}
    return extract(photos, Backbone.pixels(8), "pixels", store, **options)


@pytest.fixture
def features(extraction: Extraction) -> Features:
    return extraction["pixels"]


def test_training_rows_and_their_views_lie_together(features: Features) -> None:
    rows = Rows(features)
    X, (_, labels) = rows.fitted_values, rows.fitted_arrays()
    plain, y = features.arrays("train")
    assert np.array_equal(X[::4], plain)
    assert np.array_equal(labels, np.repeat(y, 4))
    for number, view in enumerate(features.views, 1):
        assert np.array_equal(X[number::4], view.arrays("train")[0])
    assert np.array_equal(rows.values("train"), plain)
    assert rows.count("train") == len(plain)


def test_a_head_is_fitted_on_views_and_measured_on_plain_rows(features: Features) -> None:
    head = fit_head(features, "logistic")
    rows = len(features.rows("train"))
    assert head.estimator[0].n_samples_seen_[()] == 4 * rows
    assert head.metrics["train"]["rows"] == rows
    plain = fit_head(Features(features.group, features.dataset, features.store), "logistic")
    fewer = fit_head(
        Features(features.group, features.dataset, features.store, features.views[:2]), "logistic"
    )
    assert len({head.id, plain.id, fewer.id}) == 3
    views = head.lineage["features"]["views"]
    assert views["prefix_digests"] == [each.key.prefix_digest for each in features.views]
    assert [*views["augmentation"][1]] == ["RandomRotation"]
    assert describe_head(head.id, features.store)["lineage"]["features"]["views"] == views
    board = {row["head"]: row["views"] for row in leaderboard(store=features.store)}
    assert (board[head.id], board[plain.id], board[fewer.id]) == (3, 0, 2)
    assert "views" in str(leaderboard(store=features.store))


def test_streamed_batches_are_those_of_memory(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Rows(features).fitted_batches(16, seed=5)
    monkeypatch.setattr(rows_module, "IN_MEMORY", 0)
    stored = Rows(features).fitted_batches(16, seed=5)
    assert memory.memory is not None
    assert stored.memory is None
    assert len(memory) == len(stored) == -(-4 * len(features.rows("train")) // 16)
    for index in range(len(memory)):
        pairs = zip(memory.epoch(1).batch(index), stored.epoch(1).batch(index), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)


@pytest.mark.reliability
def test_a_keras_head_on_views(features: Features) -> None:
    head = fit_head(features, "dense", {"epochs": 1, "units": 4}, save=False)
    assert head.metrics["train"]["rows"] == len(features.rows("train"))


def test_stored_views_are_opened_by_their_number(features: Features) -> None:
    store = features.store
    again = Features.open("photos", "pixels", store, views=2)
    assert [each.key for each in again.views] == [each.key for each in features.views[:2]]
    assert Features.open("photos", "pixels", store).views == ()
    with pytest.raises(NotFoundError, match=r"3 of 4 views .* `featurestore extract .* --views 4"):
        Features.open("photos", "pixels", store, views=4)
    with pytest.raises(NotFoundError, match=r"no views .* by this augmentation"):
        Features.open("photos", "pixels", store, views=1, augmentation="[RandomFlip]")
    with pytest.raises(InputError, match="views is 0"):
        Features.open("photos", "pixels", store, augmentation=FLIP)


@pytest.mark.reliability
def test_of_several_augmentations_one_is_named(features: Features, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    for augmentation in ("[{RandomFlip: {mode: vertical}}]", "[RandomFlip]"):
        made = extract(
            features.dataset, Backbone.pixels(8), "pixels", store, views=1,
            augmentation=augmentation,
        )  # fmt: skip
    with pytest.raises(NotFoundError, match=r"2 augmentations are stored; give one: ") as caught:
        Features.open("photos", "pixels", store, views=1)
    # Each can be given as the message has it.
    words = shlex.split(str(caught.value))
    named = [after for word, after in pairwise(words) if word == "--augmentation"]
    opened = [
        Features.open("photos", "pixels", store, views=1, augmentation=each) for each in named
    ]
    assert len({each.views[0].key for each in opened}) == 2
    assert made["pixels"].views[0].key in {each.views[0].key for each in opened}
    with pytest.raises(NotFoundError, match="1 of 2 views") as caught:
        Features.open("photos", "pixels", store, views=2, augmentation=named[0])
    assert f"--views 2 --augmentation {shlex.quote(named[0])}" in str(caught.value)


def test_views_of_other_samples_are_refused(features: Features) -> None:
    with pytest.raises(StoreError, match="of other samples than the training samples"):
        Features(features.group, features.dataset, features.store, [features])


@pytest.mark.reliability
def test_views_that_are_not_complete(features: Features, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    made = extract(
        features.dataset, Backbone.pixels(8), "pixels", store, views=1, augmentation=FLIP
    )
    drop_block(made["pixels"].views[0].group, 0)
    for head in ("logistic", "dense"):
        with pytest.raises(IncompleteFeaturesError, match="--views 1"):
            fit_head(made["pixels"], head)


def test_a_class_without_training_samples(tmp_path: Path) -> None:
    from featurestore.dataset import Dataset

    X = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    splits = ["val", "val", "train", "train"] * 3
    data = Dataset.from_arrays(X, ["a", "a", "b", "c"] * 3, name="abc", splits=splits)
    made = extract(data, Backbone.pixels(8), "pixels", tmp_path / "s", views=2, augmentation=FLIP)
    head = fit_head(made["pixels"], "knn", {"n_neighbors": 1}, save=False)
    assert set(head.classes) == {"b", "c"}
    assert head.metrics["train"]["accuracy"] == 1


def test_a_head_that_is_not_portable_is_fitted_again_on_views(features: Features) -> None:
    head = fit_head(features, own_estimators.Nearest())
    again = Head.load(head.id, features.store, estimator=own_estimators.Nearest())
    X, _ = features.arrays("val")
    assert np.array_equal(again.predict(X), head.predict(X))
