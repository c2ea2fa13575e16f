"""The views of an augmented data set are rows like any others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, FeatureStoreWarning
from featurestore.extraction import extract, plan
from featurestore.extraction.events import ExtractionStarted
from featurestore.extraction.repair import repair
from featurestore.store import FeatureStore
from tests.toys import take_photos

AUGMENTATION = [{"RandomFlip": {"mode": "horizontal"}}, {"RandomRotation": {"factor": 0.1}}]
REF = "gap"


def test_rows_of_images_and_earlier_views_are_copied(
    dataset: Dataset, backbone: Backbone, store: FeatureStore
) -> None:
    plain = extract(dataset, backbone, [REF], store)[REF]
    two, four = (dataset.augmented(AUGMENTATION, views=views) for views in (2, 4))
    trained = len(dataset.rows("train"))
    for more, copied in ((two, 45), (four, 45 + 2 * trained)):
        done = extract(more, backbone, [REF], store)
        report = done.reports[REF]
        assert (report.rows_copied, report.rows_computed) == (copied, 2 * trained)
    assert plan(four, backbone, [REF], store).rows_to_compute == 0
    X = done[REF].group.read()
    assert np.array_equal(X[four.rows(views=False)], plain.group.read())
    view = int(np.setdiff1d(np.arange(len(four)), four.rows(views=False))[0])
    pixels = four.image(view, backbone.resize)
    (expected,) = backbone.forward([REF])(pixels[None])
    np.testing.assert_allclose(X[view], expected[0].astype(np.float16), rtol=2e-3, atol=1e-4)


@pytest.mark.reliability
def test_growth_copies_views(tmp_path: Path, backbone: Backbone, store: FeatureStore) -> None:
    photos = take_photos(tmp_path / "photos", 6)

    def augmented() -> Dataset:
        return Dataset.open(photos).augmented(AUGMENTATION, views=2, name="more")

    first = augmented()
    extract(first, backbone, [REF], store)
    Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(photos / "red" / "new.png")
    Image.fromarray(np.full((9, 9, 3), 8, np.uint8)).save(photos / "blue" / "new.png")
    grown = augmented()
    report = extract(grown, backbone, [REF], store).reports[REF]
    assert report.rows_copied == len(first)
    assert report.rows_computed == len(grown) - len(first) >= 2
    (former,) = [garbage for garbage in store.garbage() if garbage.kind == "features"]
    assert "superseded by" in former.reason


@pytest.mark.reliability
def test_another_split_copies_the_views_that_are_stored(
    photos: Path, backbone: Backbone, store: FeatureStore
) -> None:
    first, second = (
        Dataset.open(photos, val=0.3, seed=seed).augmented(AUGMENTATION, views=1) for seed in (0, 1)
    )
    extract(first, backbone, [REF], store)
    report = extract(second, backbone, [REF], store).reports[REF]
    assert report.rows_copied == len({*first.sample_digests} & {*second.sample_digests})
    assert report.rows_copied + report.rows_computed == len(second)


@pytest.fixture
def recorded(tmp_path: Path, store: FeatureStore) -> tuple[Dataset, Dataset]:
    """Return a plain data set and the one augmented from it, both in the store."""
    plain = Dataset.open(take_photos(tmp_path / "photos", 6))
    more = plain.augmented(AUGMENTATION, views=1)
    for data in (plain, more):
        store.datasets.add(data)
    return plain, more


def test_a_removed_image_is_refused_before_the_pass(
    recorded: tuple[Dataset, Dataset], backbone: Backbone, store: FeatureStore
) -> None:
    plain, more = recorded
    Path(str(plain.paths[3])).unlink()
    store.datasets.add(Dataset.open(str(plain.source)))
    events: list[object] = []
    with (
        pytest.warns(FeatureStoreWarning, match="from an earlier state of 'photos'"),
        pytest.raises(DatasetError, match="no such file; put it back, or run `featurestore scan "),
    ):
        extract(more.name, backbone, [REF], store, on_event=events.append)
    assert not any(isinstance(event, ExtractionStarted) for event in events)


def test_an_earlier_state_is_extracted_while_its_images_exist(
    recorded: tuple[Dataset, Dataset], backbone: Backbone, store: FeatureStore
) -> None:
    plain, more = recorded
    store.datasets.add(Dataset.open(str(plain.source), val=0.5))
    with pytest.warns(FeatureStoreWarning, match="run `featurestore augment photos-x1`"):
        done = extract("photos-x1", backbone, [REF], store)
    assert done.dataset.manifest_digest == more.manifest_digest


@pytest.mark.reliability
def test_repair_computes_views_again(photos: Path, store: FeatureStore) -> None:
    more = Dataset.open(photos).augmented(AUGMENTATION, views=2)
    group = extract(more, Backbone.open("pixels", input_size=16), "pixels", store)["pixels"].group
    before = group.read()
    place = Path(store.location, group.features.file(0))
    place.write_bytes(place.read_bytes()[:-9])
    assert [each.needs for each in repair(store)] == [None]
    assert np.array_equal(group.read(), before)
    assert store.garbage() == []


@pytest.mark.reliability
def test_rm_of_one_data_set_leaves_the_other(
    dataset: Dataset, backbone: Backbone, store: FeatureStore
) -> None:
    more = dataset.augmented(AUGMENTATION, views=1)
    keys = [extract(data, backbone, [REF], store)[REF].key for data in (dataset, more)]
    store.remove(store.removal(dataset.name))
    assert store.features.keys() == [keys[1]]
    assert len(store.datasets.load(more.name).sample_digests) == len(more)
