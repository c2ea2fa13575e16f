"""The proof holds for what is right, and stops what is wrong before anything is saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.backbone import Backbone
from featurestore.dataset import Dataset
from featurestore.errors import (
    FeatureStoreWarning,
    NotFoundError,
    ParityError,
    PromotionError,
)
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.promotion import Parity, Proved, promote
from featurestore.promotion.fuse import Fused, fuse
from featurestore.promotion.proof import PROOF_BYTES, PROOF_RUNS, RUN_ROWS, proof_rows, prove
from featurestore.store import FeatureStore
from tests.promotion.conftest import pictures
from tests.toys import drop_block, in_small_blocks

MakeFeatures = Callable[..., Features]
CLASSES = ["ant", "bee", "cat"]


def proven(
    head: Head, backbone: Backbone, features: Features, fused: Fused | None = None
) -> tuple[Parity, list[Proved]]:
    told: list[Proved] = []
    metadata = {"task": head.task, "classes": list(head.classes)}
    fused = fused or fuse(head, backbone)
    parity = prove(head, backbone, fused, features.dataset, metadata, told.append)
    return parity, [each for each in told if isinstance(each, Proved)]


def test_from_image_files_to_the_saved_file(maps: Features, backbone: Backbone) -> None:
    """Images of three sizes and three modes, decoded, resized and scaled by the model itself."""
    steps = (StandardScaler(), SelectKBest(k=30), PCA(8, whiten=True), LogisticRegression())
    head = fit_head(maps, make_pipeline(*steps), save=False)
    parity, told = proven(head, backbone, maps)
    assert parity.rows == 45
    assert parity.agreement == 1.0
    scores = head.decision_function(maps.group.read(np.arange(45), np.float32))
    assert 0 < parity.max_abs_diff < np.ptp(scores, axis=0).max() / 50
    assert told == [Proved(parity)]


@pytest.mark.reliability
def test_a_head_on_derived_features(
    flowers: Dataset, photos: Path, backbone: Backbone, tmp_path: Path
) -> None:
    """They are off by what storing their source rounds, or what was copied from them is."""
    store = FeatureStore(tmp_path / "store", create=True)
    extract(flowers, backbone, ["block2_relu"], store)
    features = extract(flowers, backbone, ["block3_relu"], store)["block3_relu"]
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    for image in sorted((folder / "ant").iterdir())[:5]:
        image.unlink()
    fewer = Dataset.open(folder, val=0.3)
    copied = extract(fewer, backbone, ["block3_relu"], store)
    assert copied.reports["block3_relu"].rows_copied == 40
    for derived in (features, copied["block3_relu"]):
        head = fit_head(derived, "logistic", save=False)
        parity = proven(head, backbone, derived)[0]
        assert parity.agreement == 1.0
        assert parity.max_abs_diff < 0.2


@pytest.mark.reliability
def test_a_keras_head_whose_softmax_is_nested(maps: Features, backbone: Backbone) -> None:
    layers = keras.layers
    inner = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(3, "softmax")])
    whole = keras.Sequential([layers.Flatten(), layers.Dropout(0.5), inner])
    whole.build((None, 4, 4, 12))
    # Large weights: probabilities down to the smallest that float32 holds.
    whole.set_weights([40 * array for array in whole.get_weights()])
    dense = fit_head(maps, "dense", {"epochs": 1})
    head = Head.of_fit(whole, dense.store, **dict(dense))
    assert head.decision_function(maps.group.read(np.arange(9), np.float32)).min() < -80
    assert proven(head, backbone, maps)[0].agreement >= 0.95


@pytest.mark.reliability
def test_two_classes_as_float32(make_features: MakeFeatures, backbone: Backbone) -> None:
    features = make_features([0, 1] * 20, dtype="float32", kinds=2)
    parity = proven(fit_head(features, "linear-svm", save=False), backbone, features)[0]
    assert parity.agreement == 1.0
    assert parity.max_abs_diff < 1e-2


@pytest.mark.reliability
def test_values(make_features: MakeFeatures, backbone: Backbone) -> None:
    features = make_features([2000 + number % 3 + number / 50 for number in range(40)])
    parity = proven(fit_head(features, Ridge(), save=False), backbone, features)[0]
    assert parity.agreement is None
    # Two classes of colour lie 1 apart: the proof sees far less.
    assert parity.max_abs_diff < 0.05


@pytest.fixture(scope="module")
def toys(make_features: MakeFeatures) -> Features:
    return make_features(CLASSES * 8)


@pytest.fixture(scope="module")
def head(toys: Features) -> Head:
    return fit_head(toys, "logistic")


def scaled(by: float, place: int = 0) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    return lambda weights: [
        array * by if number == place else array for number, array in enumerate(weights)
    ]


def swapped(weights: list[np.ndarray]) -> list[np.ndarray]:
    return [array[..., [1, 0, *range(2, array.shape[-1])]] for array in weights]


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        ("head_1_logisticregression", scaled(1.01)),
        ("block1_conv", scaled(1.005)),
        ("block2_bn", scaled(1.02, place=3)),
        ("block3_conv", swapped),
    ],
)
def test_a_wrong_weight_anywhere_stops(
    toys: Features, backbone: Backbone, head: Head, layer: str, change: Callable
) -> None:
    fused = fuse(head, backbone)
    wrong = fused.model.get_layer(layer)
    wrong.set_weights(change(wrong.get_weights()))
    told: list[Proved] = []
    with pytest.raises(ParityError, match=r"the fused model (disagrees|differs)") as caught:
        told += proven(head, backbone, toys, fused)[1]
    assert not told
    assert "\n" not in str(caught.value)


def test_wrong_probabilities_of_right_scores_stop(
    toys: Features, backbone: Backbone, head: Head
) -> None:
    fused = fuse(head, backbone)
    scores = next(each.output for each in fused.model.layers if each.name == fused.scores)
    doubled = keras.layers.Softmax(name="probabilities")(scores * 2.0)
    wrong = replace(fused, model=keras.Model(fused.model.inputs, doubled))
    with pytest.raises(ParityError, match="the probability by the fused model"):
        proven(head, backbone, toys, wrong)


def two_swapped(rows: np.ndarray) -> None:
    rows[[3, 4]] = rows[[4, 3]]


def one_noisy(rows: np.ndarray) -> None:
    rows[5] *= np.float16(1.1)


def test_stored_rows_that_are_not_the_images_stop(
    make_features: MakeFeatures, backbone: Backbone
) -> None:
    """Blocks that pass their checksum, but hold something else."""
    features = make_features(CLASSES * 8)
    head, rows = fit_head(features, "logistic"), features.group.read_block(0)
    for change in (two_swapped, one_noisy):
        changed = rows.copy()
        change(changed)
        features.group.write_block(0, changed)
        events: list[Any] = []
        with pytest.raises(ParityError, match="featurestore verify"):
            promote(head, backbone, data=features.dataset, epochs=1, on_event=events.append)
        assert not any(isinstance(each, Proved) for each in events)


@pytest.mark.reliability
def test_a_backbone_whose_weights_moved_under_it_stops(
    make_features: MakeFeatures, network: keras.Model
) -> None:
    """The digest was taken before; the proof does not rely on it."""
    backbone = Backbone.open(network, name="moving")
    features = make_features(CLASSES * 8, model=backbone)
    head = fit_head(features, "logistic")
    backbone.prefix_digest("block3_relu")
    number = backbone._graph.by_name["block2_conv"]
    kernel = backbone._graph.nodes[number].operation.kernel
    kernel.assign(kernel * 1.02)
    with pytest.raises(ParityError):
        promote(head, backbone, data=features.dataset)


@pytest.mark.reliability
def test_a_network_of_half_precision(make_features: MakeFeatures) -> None:
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu", dtype="mixed_float16")(image)
    x = keras.layers.Conv2D(8, 3, activation="relu", dtype="mixed_float16", name="last")(x)
    backbone = Backbone.open(keras.Model(image, x), name="half", scaling="unit")
    features = make_features(CLASSES * 10, "last", model=backbone)
    head = fit_head(features, "logistic", save=False)
    fused = fuse(head, backbone)
    assert fused.model.output.dtype == "float32"
    assert proven(head, backbone, features, fused)[0].agreement >= 0.95


def test_what_rounding_decides_is_measured_on_images(backbone: Backbone, tmp_path: Path) -> None:
    """Plain colours in 128 features: discriminant analysis tells them apart by their rounding."""
    random = np.random.default_rng(2)
    colours = random.uniform(0, 255, (200, 1, 1, 3)).astype(np.uint8)
    labels = random.choice(CLASSES, 200).tolist()
    images = np.broadcast_to(colours, (200, 16, 16, 3))
    data = Dataset.from_arrays(images, labels, name="plain", splits=["train"] * 140 + ["val"] * 60)
    features = extract(
        data, backbone, ["block2_relu"], FeatureStore(tmp_path / "store", create=True)
    )
    head = fit_head(features["block2_relu"], LinearDiscriminantAnalysis(), save=False)
    promotion = promote(head, backbone, data=data)
    assert promotion.parity.agreement is not None
    assert promotion.parity.agreement < 1
    assert promotion.notes == ["measured on images"]
    assert promotion.before["val"]["log_loss"] != head.metrics["val"]["log_loss"]


def attention() -> keras.Model:
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(32, 4, strides=4)(image)
    x = keras.layers.Reshape((16, 32))(x)
    for _ in range(2):
        y = keras.layers.LayerNormalization()(x)
        steep = keras.initializers.RandomNormal(stddev=0.4, seed=1)
        y = keras.layers.MultiHeadAttention(2, 16, kernel_initializer=steep)(y, y)
        x = keras.layers.Add()([x, y])
    return keras.Model(image, keras.layers.Activation("linear", name="tokens")(x))


@pytest.mark.reliability
def test_a_network_that_amplifies_rounding(make_features: MakeFeatures) -> None:
    backbone = Backbone.open(attention(), name="attention", scaling="tf")
    features = make_features(CLASSES * 16, "tokens", dtype="float32", model=backbone)
    assert proven(fit_head(features, "ridge", save=False), backbone, features)[0].agreement >= 0.95


def activated(activation: str) -> keras.Model:
    layers = keras.layers
    keras.utils.set_random_seed(1)
    image = keras.Input((64, 64, 3))
    x = layers.Rescaling(1 / 127.5, -1)(image)
    for number in range(4):
        x = layers.Conv2D(16, 3, padding="same", strides=1 if number else 2)(x)
        x = layers.Activation(activation)(layers.GroupNormalization(4)(x))
    x = layers.Conv2D(16, 1, name="both_signs")(x)
    return keras.Model(image, layers.GlobalAveragePooling2D(name="gap")(x))


@pytest.mark.reliability
@pytest.mark.parametrize("ref", ["both_signs:avg", "gap"])
def test_the_mean_of_activations_of_both_signs(ref: str, tmp_path: Path) -> None:
    """What they cancel is large, and so is its rounding."""
    backbone = Backbone.open(activated("gelu"), name="gelu")
    images = pictures(60, 3, [(64, 64)])
    data = Dataset.from_arrays(images, CLASSES * 20, name="toys", val=0.3)
    store = FeatureStore(tmp_path / "store", create=True)
    features = extract(data, backbone, [ref], store, dtype="float32")[ref]
    assert (
        proven(fit_head(features, "logistic", save=False), backbone, features)[0].agreement >= 0.95
    )


def test_another_dtype_policy_is_refused(backbone: Backbone, head: Head) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with pytest.raises(PromotionError, match="set_dtype_policy"):
            fuse(head, backbone)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.reliability
def test_grey_photos_as_float16(tmp_path: Path) -> None:
    """Channels that see equal pixels round alike, so that their errors add up in a score."""
    image = keras.Input((16, 16, 3))
    x = keras.layers.DepthwiseConv2D(5, depth_multiplier=4, activation="relu", name="same")(image)
    network = keras.Model(image, x)
    kernel, bias = network.layers[1].get_weights()
    network.layers[1].set_weights([np.repeat(kernel[:, :, :1], 3, axis=2), bias])
    backbone = Backbone.open(network, name="grey", scaling="tf")
    grey = [np.repeat(each[..., :1], 3, axis=2) for each in pictures(60, 3)]
    data = Dataset.from_arrays(grey, CLASSES * 20, name="grey", val=0.3)
    features = extract(data, backbone, ["same"], FeatureStore(tmp_path / "store", create=True))[
        "same"
    ]
    head = fit_head(features, "logistic", {"C": 100}, save=False)
    assert proven(head, backbone, features)[0].agreement >= 0.95


def test_features_that_are_gone(make_features: MakeFeatures, backbone: Backbone) -> None:
    features = make_features(CLASSES * 5)
    head = fit_head(features, "ridge")
    drop_block(features.group, 0)
    for remove in (lambda: None, lambda: features.store.features.remove(features.key)):
        remove()
        with pytest.raises(NotFoundError, match="extract them again with") as caught:
            promote(head, backbone, data=features.dataset)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "size"), [(12, 1024), (100_000, 20), (4_000_000, 1)])
def test_rows_are_taken_from_blocks_spread_over_all(values: int, size: int) -> None:
    for count in (1, 3, 129, 5000):
        # Every other block is missing.
        there = np.where(np.arange(count) // size % 2, -1, np.arange(count))
        rows = proof_rows(np.where(there < 0, -1, there // size), 4 * values)
        whole = np.arange(0, -(-count // size), 2)
        assert np.array_equal(rows, np.unique(rows))
        assert rows[-1] < count
        assert len(rows) <= PROOF_RUNS * RUN_ROWS
        assert len(rows) * values * 4 <= max(PROOF_BYTES, PROOF_RUNS * values * 4)
        blocks = np.unique(rows // size)
        assert set(blocks) <= set(whole)
        assert (blocks[0], blocks[-1]) == (whole[0], whole[-1])
        assert len(blocks) >= min(len(whole), PROOF_RUNS)


@pytest.mark.reliability
def test_a_head_on_the_rows_that_exist(
    make_features: MakeFeatures, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are missing: the head was fitted without them, and is proven without them."""
    in_small_blocks(monkeypatch, 16)
    features = make_features(CLASSES * 10, dtype="float32")
    drop_block(features.group, 1)
    head = fit_head(features.completed(), "ridge", save=False)
    with pytest.warns(FeatureStoreWarning, match="another state of toys: rows"):
        promotion = promote(head, backbone, data=features.dataset)
    assert promotion.parity.rows == 16


def grown(
    first: range, backbone: Backbone, store: FeatureStore, ref: str = "block3_relu:avg"
) -> tuple[Head, Dataset, Dataset]:
    """A head on some of 60 images, whose features go when all are extracted; both data sets."""
    images, labels = pictures(60, 3, [(16, 16)]), CLASSES * 20
    parts = [[images[at] for at in first], [labels[at] for at in first]]
    former = Dataset.from_arrays(*parts, name="toys", val=0.3)
    head = fit_head(extract(former, backbone, [ref], store)[ref], "logistic")
    present = Dataset.from_arrays(images[12:], labels[12:], name="toys", val=0.3)
    extract(present, backbone, [ref], store, replace=True)
    return head, former, present


@pytest.mark.reliability
def test_rows_of_the_same_samples_in_another_array(tmp_path: Path, backbone: Backbone) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    head, former, _ = grown(range(20, 50), backbone, store)
    assert not store.features.has(head.key)
    with pytest.warns(FeatureStoreWarning, match=r"stale: .*: samples \(18 added\)"):
        promotion = promote(head, backbone, data=former)
    assert promotion.parity.rows == 30
    assert promotion.parity.agreement == 1.0
    own = Head.load(head.id, store)
    assert own.metrics == head.metrics


def without_former(first: range, backbone: Backbone, store: FeatureStore) -> tuple[Head, Dataset]:
    """A head whose features had rows of their own, and were removed by their key."""
    head, former, _ = grown(first, backbone, store)
    assert store.features.has(head.key)
    store.remove(store.removal(str(head.key), keep_heads=True))
    return head, former


@pytest.mark.reliability
def test_enough_of_the_samples_in_another_array(tmp_path: Path, backbone: Backbone) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    head, former = without_former(range(30), backbone, store)
    with pytest.warns(FeatureStoreWarning, match="stale"):
        assert promote(head, backbone, data=former).parity.rows == 18


@pytest.mark.reliability
def test_samples_in_several_other_arrays(tmp_path: Path, backbone: Backbone) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    head, former = without_former(range(27), backbone, store)
    lost = Dataset.from_arrays(pictures(60, 3, [(16, 16)])[:12], CLASSES * 4, name="lost")
    extract(lost, backbone, [head.key.ref], store)
    with pytest.warns(FeatureStoreWarning, match="stale"):
        assert promote(head, backbone, data=former).parity.rows == 27


@pytest.mark.reliability
def test_too_few_of_the_samples_in_another_array(tmp_path: Path, backbone: Backbone) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    head, former = without_former(range(27), backbone, store)
    message = "15 of its 27 samples are stored, and the proof needs 16; extract them again"
    with pytest.warns(FeatureStoreWarning), pytest.raises(NotFoundError, match=message):
        promote(head, backbone, data=former)


@pytest.mark.reliability
def test_damage_in_the_other_array_is_found(tmp_path: Path, backbone: Backbone) -> None:
    """Swapped rows in the array that serves the proof are no proof."""
    store = FeatureStore(tmp_path / "store", create=True)
    head, former, _ = grown(range(20, 50), backbone, store)
    (group,) = store.features.values()
    group.write_block(0, np.roll(group.read_block(0), 1, axis=0))
    with pytest.warns(FeatureStoreWarning), pytest.raises(ParityError):
        promote(head, backbone, data=former)


@pytest.mark.reliability
def test_a_head_on_views_is_proven_on_the_images(tmp_path: Path, backbone: Backbone) -> None:
    """Views do not count among the rows that a proof needs."""
    store = FeatureStore(tmp_path / "store", create=True)
    images = Dataset.from_arrays(pictures(9, 3, [(16, 16)]), CLASSES * 3, name="nine", val=0.3)
    data = images.augmented("[RandomFlip]", views=3)
    assert len(data) > 16
    head = fit_head(extract(data, backbone, ["block3_relu:avg"], store)["block3_relu:avg"], "ridge")
    assert promote(head, backbone, data=data).parity.rows == 9
