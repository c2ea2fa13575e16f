"""Augmented data sets: random views of the training images as further samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.dataset.augmentation import canonical
from featurestore.errors import DatasetError, InputError
from featurestore.extraction import extract
from featurestore.heads import fit_head
from featurestore.store import FeatureStore
from tests.toys import featurestore, take_photos

FLIP = [{"RandomFlip": {"mode": "horizontal"}}, {"RandomRotation": {"factor": 0.1}}]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(take_photos(tmp_path_factory.mktemp("views") / "photos"), val=0.3, test=0.2)


@pytest.fixture(scope="module")
def augmented(plain: Dataset) -> Dataset:
    return plain.augmented(FLIP, views=3)


def views_by_image(data: Dataset) -> dict[int, list[int]]:
    views: dict[int, list[int]] = {}
    for row, image in enumerate(data.image_rows.tolist()):
        if row != image:
            views.setdefault(image, []).append(row)
    return views


def test_only_training_images_have_views_with_their_label_split_and_group(
    plain: Dataset, augmented: Dataset
) -> None:
    train = len(plain.rows("train"))
    assert augmented.name == f"{plain.name}-x3"
    assert len(augmented) == len(plain) + 3 * train
    assert augmented.summary()["views"] == 3 * train
    for split in ("val", "test"):
        assert len(augmented.rows(split)) == len(plain.rows(split))
    views = views_by_image(augmented)
    assert len(views) == train
    for image, rows in views.items():
        assert len(rows) == 3
        for row in rows:
            assert augmented.labels[row] == augmented.labels[image]
            assert augmented.splits[row] == "train"
            assert augmented.groups[row] == augmented.groups[image]


def test_a_view_is_the_same_beside_any_number_of_others_and_differs_from_its_image(
    plain: Dataset, augmented: Dataset
) -> None:
    resize = Backbone.pixels(8).resize
    fewer = plain.augmented(FLIP, views=1)
    first = {
        fewer.samples.digest(row): row for rows in views_by_image(fewer).values() for row in rows
    }
    shared = [row for row in range(len(augmented)) if augmented.samples.digest(row) in first]
    assert len(shared) == len(first)
    for row in shared[:5]:
        view = augmented.image(row, resize)
        assert view.dtype == np.uint8
        assert np.array_equal(view, fewer.image(first[augmented.samples.digest(row)], resize))
    images = [
        [augmented.image(row, resize) for row in (image, *rows)]
        for image, rows in list(views_by_image(augmented).items())[:5]
    ]
    assert any(not np.array_equal(image, view) for image, *views in images for view in views)


def test_features_of_the_images_are_copied_and_heads_measured_without_views(
    plain: Dataset, augmented: Dataset, tmp_path: Path
) -> None:
    store, pixels = FeatureStore(tmp_path / "store", create=True), Backbone.pixels(8)
    extract(plain, pixels, "pixels", store)
    found = extract(augmented, pixels, "pixels", store)
    report = found.reports["pixels"]
    assert (report.rows_copied, report.rows_computed) == (len(plain), len(augmented) - len(plain))
    more = extract(plain.augmented(FLIP, views=4), pixels, "pixels", store).reports["pixels"]
    assert more.rows_copied == len(augmented)

    again = store.datasets.load(augmented.name)
    assert (again.digest, again.manifest_digest) == (augmented.digest, augmented.manifest_digest)
    assert np.array_equal(again.image(0, pixels.resize), augmented.image(0, pixels.resize))
    head = fit_head(found["pixels"], "logistic")
    assert head.estimator[0].n_samples_seen_[()] == len(augmented.rows("train"))
    assert head.metrics["val"]["rows"] == len(plain.rows("val"))


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ([], "has no layers"),
        ("[RandomFlop]", r"called 'RandomFlop'; did you mean 'RandomFlip'"),
        ([{"Rescaling": {"scale": 2}}], "no random image layer of Keras"),
        (
            [{"RandomCrop": {"height": 4, "width": 4}}],
            "makes 4×4 pixels of 32×32; expected the same",
        ),
        ([{"RandomBrightness": {"factor": 0.1, "value_range": (0, 1)}}], "set value_range"),
        ([{"RandomRotation": {"factor": 0.0}}], "has no effect"),
        ([{"RandomRotation": {"faktor": 0.1}}], "missing 1 required"),
        ("no.yaml", "cannot read the augmentation"),
        (3, "an augmentation layer is 3"),
    ],
)
def test_layers_that_make_no_views_are_refused(augmentation: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        canonical(augmentation)


def test_layers_are_given_in_any_form(tmp_path: Path) -> None:
    import keras

    (tmp_path / "flips.yaml").write_text("- RandomFlip: {mode: horizontal}\n")
    layer = keras.layers.RandomFlip("horizontal", seed=3)
    forms = [layer, [layer], keras.Sequential([layer]), tmp_path / "flips.yaml"]
    forms += ["[{RandomFlip: {mode: horizontal}}]", {"RandomFlip": {"mode": "horizontal"}}]
    assert len({canonical(form) for form in forms}) == 1
    assert "seed" not in canonical(layer)


def test_what_cannot_be_augmented_is_refused(augmented: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is augmented; augment the plain data set again"):
        augmented.augmented(FLIP, views=1)
    X = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
    tests = Dataset.from_arrays(X, list("abab"), name="tests", splits=["test"] * 4)
    with pytest.raises(DatasetError, match="no training samples"):
        tests.augmented(FLIP, views=1)
    with pytest.raises(InputError, match="views is 0 "):
        tests.augmented(FLIP, views=0)


def test_the_command_line_augments_extracts_and_trains(tmp_path: Path) -> None:
    take_photos(tmp_path / "photos")
    store = ["--store", str(tmp_path / "store")]
    assert featurestore("scan", tmp_path / "photos", "--val", "0.3", *store).status == 0
    words = ["--augmentation", json.dumps(FLIP), "--views", "2", *store]
    done = featurestore("augment", "photos", *words)
    assert done.status == 0, done.err
    assert "photos-x2: " in done.out
    assert "views" in done.out
    pixels = ["--model", "pixels", "--input-size", "8", "--layer", "pixels"]
    assert featurestore("extract", "photos-x2", *pixels, *store).status == 0
    trained = featurestore("train", "photos-x2", "--head", "logistic", *store)
    assert trained.status == 0, trained.err
    wrong = featurestore(
        "augment", "photos", "--augmentation", "[RandomFlop]", "--views", "2", *store
    )
    assert (wrong.status, wrong.err.count("\n")) == (1, 1)
