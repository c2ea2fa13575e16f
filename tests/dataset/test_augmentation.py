"""Augmented data sets: views of the training images are samples that can be computed alone."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from featurestore.dataset import Dataset
from featurestore.dataset.augmentation import canonical, compiled
from featurestore.errors import DatasetError, InputError, SourceChangedError
from featurestore.store import FeatureStore
from tests.dataset.conftest import example, folder, put, table

FLIP = {"RandomFlip": {"mode": "horizontal"}}
TWO = [FLIP, {"RandomRotation": {"factor": 0.1}}]
IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
#: Settings of random layers that need some.
NEEDED: dict[str, Any] = {
    "RandomPosterization": {"factor": [2, 6]},
    "RandomColorJitter": {"brightness_factor": 0.3},
    "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
    "RandomZoom": {"height_factor": 0.2},
    **{f"Random{name}": {} for name in ("Erasing", "Flip", "GaussianBlur", "Grayscale")},
    **{f"Random{name}": {} for name in ("ElasticTransform", "Invert", "Perspective")},
    "RandAugment": {},
}
#: RandomCrop changes the size; Keras cannot build RandomShear from its own configuration.
LAYERS = {name for name in dir(keras.layers) if name.startswith("Rand")}
LAYERS -= {"RandomCrop", "RandomShear"}


def images(count: int = 12, **options: Any) -> Dataset:
    X = np.random.default_rng(1).integers(0, 256, (count, 9, 8, 3), dtype=np.uint8)
    return Dataset.from_arrays(X, ["a", "b"] * (count // 2), name="pets", val=0.3, **options)


def test_views_are_samples_of_the_training_images(tmp_path: Path) -> None:
    pets = example(tmp_path)
    more = pets.augmented(FLIP, views=3)
    trained = pets.rows("train", labelled=False)
    assert (more.name, len(more)) == ("pets-x3", len(pets) + 3 * len(trained))
    assert set(pets.sample_digests) < set(more.sample_digests)
    of = more.image_rows
    for column in ("labels", "splits", "groups", "paths"):
        values = np.asarray(getattr(more, column))
        assert (values == values[of]).all()
    views = np.setdiff1d(np.arange(len(more)), more.rows(labelled=False, views=False))
    assert set(more.splits[views]) == {"train"}
    plain = [pets.sample_digests.index(more.sample_digests[row]) for row in of]
    assert np.array_equal(pets.splits[plain], more.splits)
    # The images stay in the order in which they were listed, before their views.
    frame = more.to_frame()
    assert frame["sample"].tolist()[: len(pets.input_order)] == pets.to_frame()["sample"].tolist()
    assert sorted(frame["view"].dropna()) == sorted([1, 2, 3] * len(trained))
    assert more.summary()["views"] == len(views)


def test_without_a_group_the_image_is_the_group() -> None:
    plain = images()
    assert plain.groups is None
    more = plain.augmented(FLIP, views=1)
    assert more.groups is not None
    digests = np.array(more.sample_digests)
    assert np.array_equal(more.groups, digests[more.image_rows])


@pytest.mark.parametrize("grouped", [False, True])
def test_a_manifest_keeps_views(tmp_path: Path, grouped: bool) -> None:
    options: dict[str, Any] = {"ids": [*range(12)]}
    options |= {"groups": ["x", None, "y"] * 4} if grouped else {}
    for plain in (example(tmp_path), images(**options)):
        more = plain.augmented(TWO, views=2)
        again = Dataset.from_parquet(more.to_parquet())
        assert again.manifest_digest == more.manifest_digest
        assert again.options == more.options
        assert again.to_frame().equals(more.to_frame())
        assert np.array_equal(again.image_rows, more.image_rows)
    store = FeatureStore(tmp_path / "store", create=True)
    pets = example(tmp_path / "again").augmented(TWO, views=2)
    store.datasets.add(pets)
    loaded = store.datasets.load("pets-x2")
    row = int(np.flatnonzero(loaded.image_rows != np.arange(len(loaded)))[0])
    assert np.array_equal(loaded.image(row), pets.image(row))
    assert np.array_equal(pickle.loads(pickle.dumps(loaded)).image(row), pets.image(row))


def test_a_view_is_the_same_beside_any_others_in_any_thread() -> None:
    plain = images()
    few, many = plain.augmented(TWO, views=2), plain.augmented(TWO, views=4)
    rows = np.flatnonzero(np.isin(many.sample_digests, few.sample_digests))
    assert len(rows) == len(few)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(many.image, reversed(rows.tolist())))[::-1]
    pixels = [few.image(row) for row in range(len(few))]
    assert all(map(np.array_equal, found, pixels))
    assert len({image.tobytes() for image in pixels}) > len(plain) * 2
    # The resize of a backbone comes first.
    view = int(np.flatnonzero(few.image_rows != np.arange(len(few)))[0])
    assert few.image(view, lambda image: image[:4, :4]).shape == (4, 4, 3)


@pytest.mark.reliability
def test_views_are_the_same_in_another_process() -> None:
    script = (
        "import numpy, random; random.seed(2); from featurestore.dataset.augmentation import *;"
        "x = numpy.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype='uint8');"
        "v = compiled(canonical('[RandAugment, RandomErasing]'), (20, 30));"
        "print([int(v(x, f'blake2b:{n:064x}').sum()) for n in (1 << 200, 7 << 200)])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    view = compiled(canonical("[RandAugment, RandomErasing]"), (20, 30))
    sums = [int(view(IMAGE, f"blake2b:{number:064x}").sum()) for number in (1 << 200, 7 << 200)]
    assert sums[0] != sums[1]
    assert ran.stdout == f"{sums}\n", ran.stderr


@pytest.mark.reliability
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_random_layer_repeats_its_views(name: str) -> None:
    settings = NEEDED.get(name, {"factor": 0.2})
    layers = canonical([{name: settings}])
    digests = [f"blake2b:{number << 200:064x}" for number in range(1, 30)]
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    first = compiled(layers, (32, 32))
    made = [first(noise, digest) for digest in digests]
    compiled.cache_clear()
    again = compiled(layers, (32, 32))
    assert all(map(np.array_equal, made, (again(noise, digest) for digest in digests)))
    assert len({view.tobytes() for view in made}) > 1


def test_the_same_augmentation_in_many_forms(tmp_path: Path) -> None:
    (tmp_path / "flip.yaml").write_text("- RandomFlip: {mode: horizontal}\n")
    (tmp_path / "flip.json").write_text('[{"RandomFlip": {"mode": "horizontal"}}]')
    layer = keras.layers.RandomFlip("horizontal", seed=4, name="mine")
    before = np.asarray(layer.generator.state.value)
    forms = [
        [FLIP],
        FLIP,
        layer,
        keras.Sequential([keras.Input((8, 8, 3)), layer]),
        "[{RandomFlip: {mode: horizontal}}]",
        tmp_path / "flip.yaml",
        str(tmp_path / "flip.json"),
        canonical([layer]),
    ]
    assert len({canonical(form) for form in forms}) == 1
    assert np.array_equal(before, np.asarray(layer.generator.state.value))
    plain = images()
    digests = {plain.augmented(form, views=1).digest for form in (*forms, "[RandomFlip]")}
    assert len(digests) == 2


class Mine(keras.layers.Layer):
    """A layer of the user's."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no layers"),
        (3, r"is 3 \(int\); expected a Keras layer"),
        ("[RandomFlop]", "'RandomFlop' is not an augmentation layer; .*; did you mean"),
        ("[RandomTranslation]", "needs height_factor and width_factor; give its settings"),
        ("[Cut]", "known: RandAugment, (?!.*RandomCrop)"),
        ("nowhere.yaml", "cannot read the augmentation 'nowhere.yaml'"),
        ("[{RandomFlip: {mode: up}}]", "'RandomFlip' has no effect"),
        (
            "[{RandomRotation: {factors: 1}}]",
            "'RandomRotation' needs factor; .* {RandomRotation: {factor: 0.2}}",
        ),
        ("[{RandomRotation: {factor: 0}}]", "'RandomRotation' has no effect"),
        ("[{RandomShear: {x_factor: 0.3}}]", "'RandomShear': .*factor"),
        ("[{Rescaling: {scale: 0.5}}]", "'Rescaling' is not an augmentation layer"),
        ("[{TFSMLayer: {filepath: model}}]", "'TFSMLayer' is not an augmentation layer"),
        ([keras.layers.Lambda(lambda x: x)], "settings that are numbers, text or lists"),
        ([Mine()], r"\.Mine; expected a Keras layer"),
        ("[[RandomFlip]]", r"is \['RandomFlip'\] \(list\); expected a Keras layer"),
        (
            [FLIP, {"RandomCrop": {"height": 4, "width": 6}}],
            "keeps the size of the image; to crop, use RandomZoom",
        ),
        ("[{RandomBrightness: {factor: 0.2, value_range: [0, 1]}}]", "set value_range"),
    ],
)
def test_what_is_no_augmentation(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        canonical(given)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_augmented(tmp_path: Path) -> None:
    plain = images()
    for views in (0, -1, "2"):
        with pytest.raises(InputError, match="expected a number of views"):
            plain.augmented(FLIP, views=views)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="the name of 'pets'"):
        plain.augmented(FLIP, views=1, name="pets")
    with pytest.raises(DatasetError, match="augment the plain one"):
        plain.augmented(FLIP, views=1).augmented(FLIP, views=1)
    with pytest.raises(DatasetError, match="no training samples"):
        images(splits=["val"] * 12).augmented(FLIP, views=1)
    rows = [{"path": str(put(tmp_path / f"{n}.png", n)), "view": "left"} for n in range(3)]
    with pytest.raises(DatasetError, match="has a column 'view'"):
        Dataset.open(table(tmp_path / "t.csv", rows), val=0).augmented(FLIP, views=1)


def test_an_augmented_data_set_is_augmented_again_not_scanned(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    pets = Dataset.open(folder(tmp_path / "pets", cat=3, dog=3), val=0)
    more = pets.augmented(FLIP, views=2, name="mine")
    for data in (pets, more):
        store.datasets.add(data)
    for options in ({"val": 0.5}, {"rescan": True}):
        with pytest.raises(DatasetError, match="scan 'pets', then run `featurestore augment mine`"):
            store.datasets.open("mine", **options)  # type: ignore[arg-type]
    put(tmp_path / "pets" / "cat" / "0.png", 77)
    row = more.paths.index(str(tmp_path / "pets" / "cat" / "0.png"))
    with pytest.raises(SourceChangedError, match="run `featurestore scan pets`, then"):
        more.image(row)
    shutil.rmtree(tmp_path / "pets")
    with pytest.raises(DatasetError, match="run `featurestore scan pets`, then"):
        more.image(row)
