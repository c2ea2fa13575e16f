"""Augmented views: more rows of the training samples, each of which can be made again alone."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, InputError
from featurestore.extraction import extract, plan
from featurestore.extraction.repair import repair
from featurestore.features import Features, stored
from featurestore.features.listing import ls
from featurestore.heads import fit_head
from featurestore.store import FeatureStore
from tests.toys import drop_block, take_photos

AUGMENTATION = [{"RandomFlip": {"mode": "horizontal"}}, {"RandomRotation": {"factor": 0.1}}]
REF = "gap"


def values(features: Features) -> np.ndarray:
    return features.group.read()


def test_views_are_further_rows_of_the_training_samples(
    dataset: Dataset, backbone: Backbone, store: FeatureStore
) -> None:
    made = extract(dataset, backbone, [REF], store, views=3, augmentation=AUGMENTATION)
    plain = made[REF]
    training = dataset.rows("train")
    assert len(plain) == 45
    assert [len(each) for each in plain.views] == [len(training)] * 3
    for view in plain.views:
        assert np.array_equal(view.group.samples, dataset.sample_ids[training])
        assert np.array_equal(view.labels, np.asarray(plain.labels)[training])
    different = {values(each).tobytes() for each in (*plain.views,)}
    assert len(different) == 3
    assert plain.views[0].key.prefix_digest != plain.key.prefix_digest
    # The plain image is not among them, and has the features that it has without views.
    alone = extract(dataset, backbone, [REF], "memory://alone")
    assert np.array_equal(values(alone[REF]), values(plain))


@pytest.mark.reliability
def test_a_view_alone_is_the_view_among_others(
    dataset: Dataset, backbone: Backbone, store: FeatureStore
) -> None:
    several = extract(dataset, backbone, [REF], store, views=3, augmentation=AUGMENTATION)
    (third,) = backbone.views([2], AUGMENTATION)
    alone = extract(dataset.training(), third, [REF], FeatureStore("memory://one", create=True))
    assert alone[REF].key == several[REF].views[2].key
    assert np.array_equal(values(alone[REF]), values(several[REF].views[2]))
    # What a store records of a part is the whole data set.
    assert alone[REF].store.datasets.get(dataset.name).rows == 45


@pytest.mark.reliability
def test_more_views_compute_only_these(
    dataset: Dataset, backbone: Backbone, store: FeatureStore
) -> None:
    first = extract(dataset, backbone, [REF], store, views=2, augmentation=AUGMENTATION)
    again = extract(dataset, backbone, [REF], store, views=4, augmentation=AUGMENTATION)
    computed = [each.reports[REF].rows_computed for each in again.views]
    rows = len(dataset.rows("train"))
    assert computed == [0, 0, rows, rows]
    assert [each.key for each in again[REF].views[:2]] == [each.key for each in first[REF].views]
    decided = plan(dataset, backbone, [REF], store, views=5, augmentation=AUGMENTATION)
    assert [each.rows_to_compute for each in decided.views] == [0, 0, 0, 0, rows]
    assert "gap, 5 views" in [row["layer"] for row in decided.grid().rows]
    assert len(again.to_dict()["views"]) == 4


def test_pixels_and_number_alone_decide_a_view(backbone: Backbone) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    views = backbone.views(8, AUGMENTATION)
    expected = [view.resize(image) for view in views]
    assert len({each.tobytes() for each in expected}) > 4
    with ThreadPoolExecutor(8) as pool:  # in any order, by any thread
        for _ in range(3):
            found = list(pool.map(lambda view: view.resize(image), reversed(views)))
            assert all(map(np.array_equal, reversed(found), expected))
    again = Backbone.pixels(16).views(
        [5], [keras.layers.RandomFlip("horizontal", seed=3), keras.layers.RandomRotation(0.1)]
    )
    assert np.array_equal(again[0].resize(image), expected[5])


@pytest.mark.reliability
def test_views_are_the_same_in_another_process() -> None:
    script = (
        "import numpy, random; random.seed(2); from featurestore.backbone import Backbone;"
        "x = numpy.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype='uint8');"
        "v = Backbone.pixels(16).views(2, '[RandAugment, RandomErasing]');"
        "print(v[1].prefix_digest('pixels'), [int(each.resize(x).sum()) for each in v])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    views = Backbone.pixels(16).views(2, "[RandAugment, RandomErasing]")
    sums = [int(each.resize(image).sum()) for each in views]
    assert ran.stdout == f"{views[1].prefix_digest('pixels')} {sums}\n"


@pytest.mark.reliability
def test_repair_makes_a_view_again(photos: Path, store: FeatureStore) -> None:
    made = extract(photos, Backbone.pixels(16), "pixels", store, views=2, augmentation=AUGMENTATION)
    group = made["pixels"].views[1].group
    before = group.read()
    place = Path(store.location, group.features.file(0))
    place.write_bytes(place.read_bytes()[:-9])
    assert [each.needs for each in repair(store)] == [None]
    assert np.array_equal(group.read(), before)
    assert store.garbage() == []


@pytest.mark.reliability
def test_repair_by_the_plain_backbone(
    dataset: Dataset, backbone: Backbone, store: FeatureStore
) -> None:
    made = extract(dataset, backbone, [REF], store, views=2, augmentation=AUGMENTATION)
    group = made[REF].views[1].group
    before = group.read()
    place = Path(store.location, group.features.file(0))
    place.write_bytes(place.read_bytes()[:-9])
    assert [each.needs for each in repair(store, backbone=backbone)] == [None]
    assert np.array_equal(group.read(), before)


@pytest.mark.reliability
def test_growth_copies_views_and_gc_frees_the_former_ones(
    tmp_path: Path, backbone: Backbone, store: FeatureStore
) -> None:
    photos = take_photos(tmp_path / "photos", 6)
    options: dict[str, Any] = {"views": 2, "augmentation": AUGMENTATION}
    first = extract(photos, backbone, [REF], store, **options)
    trained = len(first[REF].dataset.rows("train"))
    Image.fromarray(np.full((9, 9, 3), 7, np.uint8)).save(photos / "red" / "new.png")
    Image.fromarray(np.full((9, 9, 3), 8, np.uint8)).save(photos / "blue" / "new.png")
    grown = extract(photos, backbone, [REF], store, **options)
    added = len(grown[REF].dataset.rows("train")) - trained
    for view in grown.views:
        report = view.reports[REF]
        assert (report.rows_copied, report.rows_computed) == (trained, added)
    fresh = extract(photos, backbone, [REF], "memory://fresh", **options)
    for mine, other in zip(grown[REF].views, fresh[REF].views, strict=True):
        assert mine.key == other.key
        assert np.array_equal(values(mine), values(other))
    garbage = [each for each in store.garbage() if each.kind == "features"]
    former = {str(each[REF].key) for each in (first, *first.views)}
    assert {each.name for each in garbage} == former
    assert all("superseded by" in each.reason for each in garbage)
    store.gc(store.garbage())
    assert len(store.features.keys()) == 3


@pytest.mark.reliability
def test_another_split_copies_the_views_that_there_are(
    photos: Path, backbone: Backbone, store: FeatureStore
) -> None:
    options: dict[str, Any] = {"views": 1, "augmentation": AUGMENTATION}
    first = Dataset.open(photos, val=0.3)
    extract(first, backbone, [REF], store, **options)
    second = Dataset.open(photos, val=0.3, seed=1)
    report = extract(second, backbone, [REF], store, **options).views[0].reports[REF]
    known = set(first.training().sample_digests)
    now = second.training().sample_digests
    assert report.rows_copied == sum(each in known for each in now)
    assert report.rows_computed == sum(each not in known for each in now)


@pytest.mark.reliability
def test_rm_and_ls_take_views_with_their_layer(
    dataset: Dataset, backbone: Backbone, store: FeatureStore
) -> None:
    options: dict[str, Any] = {"views": 2, "augmentation": AUGMENTATION}
    made = extract(dataset, backbone, [REF, "conv_b:max"], store, **options)
    table = ls(store)
    assert len(table) == 6
    assert {row["view"] for row in table} == {None, 0, 1}
    assert all(row["datasets"] == [dataset.name] for row in table)
    assert str(table).count("2 by RandomFlip+RandomRotation") == 2
    assert store.items("gap")[0].name == str(made["gap"].key)
    head = fit_head(made[REF], "knn")
    unused = {each.name for each in store.garbage(unused=True)}
    assert unused == {str(each.key) for each in (made["conv_b:max"], *made["conv_b:max"].views)}
    view = store.removal(str(made[REF].views[0].key))
    assert [each.name for each in view.items] == [f"heads/{head.id}", str(made[REF].views[0].key)]
    removal = store.removal("tiny/gap")
    assert len(removal.items) == 4
    store.remove(removal)
    assert {key.ref for key in store.features.keys()} == {"conv_b:max"}
    everything = store.removal(dataset.name)
    store.remove(everything)
    assert store.features.keys() == []


def test_all_samples_may_be_training_samples(
    photos: Path, backbone: Backbone, store: FeatureStore
) -> None:
    whole = Dataset.open(photos, val=0)
    assert whole.digest == whole.train_digest == whole.training().digest
    made = extract(whole, backbone, [REF], store, views=1, augmentation=AUGMENTATION)
    store.datasets.add(whole)
    assert [each.key for each in stored(store, whole)] == [made[REF].key]
    assert Features.open(whole, REF, store, views=1).views[0].key == made[REF].views[0].key


@pytest.mark.reliability
def test_a_view_resumes(dataset: Dataset, backbone: Backbone, store: FeatureStore) -> None:
    made = extract(dataset, backbone, ["pool_a"], store, views=1, augmentation=AUGMENTATION)
    group = made["pool_a"].views[0].group
    before = group.read()
    drop_block(group, 0)
    again = extract(dataset, backbone, ["pool_a"], store, views=1, augmentation=AUGMENTATION)
    assert again.views[0].reports["pool_a"].rows_computed == len(before)
    assert np.array_equal(group.read(), before)


def test_views_need_training_samples_and_an_augmentation(
    photos: Path, backbone: Backbone, store: FeatureStore
) -> None:
    dataset = Dataset.open(photos, val=0.3)
    for options in ({"views": 2}, {"augmentation": AUGMENTATION}):
        with pytest.raises(InputError, match="give both"):
            extract(dataset, backbone, REF, store, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="views is -1"):
        extract(dataset, backbone, REF, store, views=-1, augmentation=AUGMENTATION)
    X = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
    held_out = Dataset.from_arrays(X, list("abab"), name="held", splits=["test"] * 4)
    with pytest.raises(DatasetError, match="no training samples"):
        extract(held_out, backbone, REF, store, views=2, augmentation=AUGMENTATION)
    assert store.features.keys() == []
