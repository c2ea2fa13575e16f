"""Fine-tuning: what moves, how fast, and from where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.backbone import Backbone
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import Head, fit_head
from featurestore.promotion.convert import scores_tensor
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.promotion.fuse import Fused, fuse
from featurestore.promotion.run import _free_layers, _stored_refs
from featurestore.promotion.tune import (
    RatesAdam,
    boundary,
    fine_tune,
    freeze,
    labelled_images,
    rates,
)

MakeFeatures = Callable[..., Features]
RATE = 1e-3


def values(model: keras.Model) -> dict[str, list[np.ndarray]]:
    return {each.name: [array.copy() for array in each.get_weights()] for each in model.layers}


def moved(before: dict[str, list[np.ndarray]], model: keras.Model) -> dict[str, float]:
    """Return how far the weights of each layer moved at most."""
    return {
        name: max(float(np.abs(old - new).max()) for old, new in zip(arrays, now, strict=True))
        for name, arrays in before.items()
        if (now := model.get_layer(name).get_weights())
    }


def ignore(epoch: int, logs: dict[str, float]) -> None:
    pass


# ------------------------------------------------------------------ the two rates


def test_one_step_of_either_rate() -> None:
    """Adam's first step is the rate, in the direction of the gradient."""
    slow, fast = keras.Variable(np.ones(3)), keras.Variable(np.ones((2, 2)))
    optimizer = RatesAdam([slow], [0.1], learning_rate=0.01)
    for _ in range(2):
        slow.assign(np.ones(3))
        fast.assign(np.ones((2, 2)))
        gradients = [np.array([5.0, -0.2, 1e-3]), np.full((2, 2), -40.0)]
        optimizer.apply([keras.ops.convert_to_tensor(each) for each in gradients], [slow, fast])
        assert np.allclose(slow, 1 - 0.001 * np.sign(gradients[0]), rtol=1e-4)
        assert np.allclose(fast, 1 + 0.01, rtol=1e-4)


def test_both_rates_inside_fit() -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2, "softmax", name="b")(layers.Dense(5, name="a")(x)))
    before = values(model)
    data = np.random.default_rng(0).normal(size=(8, 4)), np.arange(8) % 2
    options = FineTuning(epochs=1, learning_rate=RATE)
    of_block = rates(model, ["a"], options)
    assert of_block == {"head": 10 * RATE, "a": RATE}
    fine_tune(model, ["a"], of_block, Batches([data]), None, options, steps={}, on_epoch=ignore)
    found = moved(before, model)
    assert found["a"] == pytest.approx(RATE, rel=1e-3)
    assert found["b"] == pytest.approx(10 * RATE, rel=1e-3)


def test_a_folded_scaler_and_selection_train_as_if_they_stood_before() -> None:
    """Features a thousand times as large learn no faster; what was not selected stays at 0."""
    random = np.random.default_rng(0)
    X = random.exponential([0.05, 1, 1000, 5, 7, 0.1], (64, 6)).astype("float32")
    y = random.integers(0, 2, 64)
    scaler = StandardScaler(with_mean=False)
    head = make_pipeline(scaler, SelectKBest(k=4), LogisticRegression()).fit(X, y)
    steps: dict[str, np.ndarray] = {}
    folded = keras.Model(x := keras.Input((6,)), scores_tensor(head, x, "head_", steps))
    chosen = head[1].get_support()
    unfolded = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="last")])
    unfolded.set_weights(
        [folded.get_weights()[0][chosen] * scaler.scale_[chosen, None], folded.get_weights()[1]]
    )
    options = FineTuning(epochs=5, learning_rate=RATE)
    for model, rows in ((folded, X), (unfolded, (X / scaler.scale_)[:, chosen])):
        whole = keras.Model(model.inputs[0], layers.Softmax()(model.outputs[0]))
        data = Batches([(rows, y)])
        fine_tune(whole, [], {"head": RATE}, data, None, options, steps=steps, on_epoch=ignore)
    kernel = folded.get_weights()[0]
    assert not kernel[~chosen].any()
    # But for the epsilon in Adam, which is not scaled.
    scaled = kernel[chosen] * scaler.scale_[chosen, None]
    assert np.allclose(scaled, unfolded.get_weights()[0], atol=RATE / 20)


class Batches(keras.utils.PyDataset):
    """Batches that were made before."""

    def __init__(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
        super().__init__()
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batches[index]


# ------------------------------------------------------------------ batches of images


def test_batches_of_images(flowers: Any, backbone: Backbone) -> None:
    rows = flowers.rows("train", labelled=True)
    plain = labelled_images(flowers, backbone, "train", 7)
    assert len(plain) == -(-len(rows) // 7)
    images = np.concatenate([plain[index][0] for index in range(len(plain))])
    targets = np.concatenate([plain[index][1] for index in range(len(plain))])
    assert images.dtype == np.uint8
    assert images.shape == (len(rows), 16, 16, 3)
    assert np.array_equal(targets, flowers.targets[rows])
    assert np.array_equal(images[3], backbone.resize(flowers.image(int(rows[3]))))
    shuffled = labelled_images(flowers, backbone, "train", 100, shuffle=True, seed=1)
    mixed, codes = shuffled[0]
    assert sorted(codes) == sorted(targets)
    assert codes.tolist() != targets.tolist()
    of_image = {image.tobytes(): code for image, code in zip(images, targets, strict=True)}
    assert [of_image[image.tobytes()] for image in mixed] == codes.tolist()


# ------------------------------------------------------------------ what is frozen, and until where


@pytest.fixture(scope="module")
def fused_of(backbone: Backbone) -> Callable[[Head], Fused]:
    return lambda head: fuse(head, backbone)


def frozen_until(
    head: Head, backbone: Backbone, unfreeze: str | int | None
) -> tuple[list[str], str | None]:
    """Return the layers that train, the head's apart, and the layer ref they train from."""
    fused = fuse(head, backbone)
    freeze(fused.model, fused.backbone_layers, _free_layers(fused, unfreeze))
    found = boundary(fused.model, fused.backbone_layers, _stored_refs(head, backbone))
    training = [each.name for each in fused.model.layers if each.trainable_variables]
    return [name for name in training if name in fused.backbone_layers], found and found[0]


BLOCK3, BLOCK2 = ["block3_conv"], ["block2_conv", "block3_conv"]


@pytest.mark.parametrize(
    ("unfreeze", "training", "ref"),
    [
        (None, [], "block3_relu:avg"),
        # The last layers are counted without the pooling of the layer ref, as in
        # ``base.layers[-N:]``; BatchNorm among them stays at rest.
        (1, [], "block3_relu:avg"),
        (2, [], "block3_relu:avg"),
        (3, BLOCK3, "block2_relu"),
        ("3", BLOCK3, "block2_relu"),
        ("block3", BLOCK3, "block2_relu"),
        ("block3_relu", [], "block3_relu:avg"),
        ("block2_relu", BLOCK3, "block2_relu"),
        ("block2", BLOCK2, "block1_pool"),
        ("block1", ["block1_conv", *BLOCK2], None),
        (9, ["block1_conv", *BLOCK2], None),
    ],
)
def test_what_trains_and_from_where(
    pooled: Features, backbone: Backbone, unfreeze: Any, training: list[str], ref: str | None
) -> None:
    head = fit_head(pooled, "ridge", save=False)
    assert frozen_until(head, backbone, unfreeze) == (training, ref)


def test_a_head_on_a_whole_layer_trains_from_that(maps: Features, backbone: Backbone) -> None:
    head = fit_head(maps, "ridge", save=False)
    assert frozen_until(head, backbone, None) == ([], "block3_relu")
    assert frozen_until(head, backbone, 3) == (BLOCK3, "block2_relu")


def test_scaling_is_no_work_to_store_but_features_that_are_there_are_used(
    make_features: MakeFeatures,
) -> None:
    """Caffe scaling begins with an operation, torch scaling with a layer that has weights."""
    for scaling in ("caffe", "torch", "tf"):
        image = keras.Input((16, 16, 3))
        x = layers.Conv2D(3, 3, strides=4, name="one")(image)
        x = layers.Conv2D(3, 3, name="two")(x)
        backbone = Backbone.from_model(keras.Model(image, x), name="two", scaling=scaling)
        features = make_features([0, 1] * 10, "two", kinds=2, model=backbone)
        head = fit_head(features, "ridge", save=False)
        assert frozen_until(head, backbone, "two") == (["two"], "one")
        assert frozen_until(head, backbone, "one") == (["one", "two"], None)
    pixels = Backbone.pixels(8)
    head = fit_head(make_features([0, 1] * 10, "pixels", kinds=2, model=pixels), "ridge")
    assert frozen_until(head, pixels, None) == ([], "pixels")


def test_a_layer_that_is_called_twice_is_no_place_to_train_from(
    make_features: MakeFeatures,
) -> None:
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="first")(image)
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = shared(layers.ReLU(name="relu")(shared(x)))
    x = layers.Conv2D(4, 3, name="last")(x)
    backbone = Backbone.from_model(keras.Model(image, x), name="twice", scaling="unit")
    features = make_features([0, 1] * 10, "last:avg", kinds=2, model=backbone)
    head = fit_head(features, "ridge", save=False)
    # "shared" stores what its first call gives, not what "last" takes.
    assert frozen_until(head, backbone, "last") == (["last"], "relu")


# ------------------------------------------------------------------ from the store, from images


def prepared(head: Head, backbone: Backbone, unfreeze: str) -> tuple[Fused, Any]:
    fused = fuse(head, backbone)
    freeze(fused.model, fused.backbone_layers, _free_layers(fused, unfreeze))
    found = boundary(fused.model, fused.backbone_layers, _stored_refs(head, backbone))
    assert found is not None
    return fused, found


@pytest.mark.parametrize("estimator", ["logistic", "dense"])
def test_training_from_the_store_is_training_from_images(
    flowers: Any, maps: Features, backbone: Backbone, estimator: str
) -> None:
    """Same rows, same order, three epochs: the same weights, whichever way the rows came."""
    head = fit_head(maps, estimator, save=False)
    rows = flowers.rows("train", labelled=True)
    options = FineTuning(epochs=3, learning_rate=RATE)
    of_block = {"head": 10 * RATE, "block3": RATE}

    from_images, _ = prepared(head, backbone, "block3")
    before = values(from_images.model)
    batches = labelled_images(flowers, backbone, "train", 8)
    names = from_images.backbone_layers
    fine_tune(from_images.model, names, of_block, batches, None, options, steps={}, on_epoch=ignore)

    from_store, (ref, tensor) = prepared(head, backbone, "block3")
    stored = extract(flowers, backbone, [ref], maps.store, dtype="float32")[ref]
    model = keras.Model(tensor, from_store.model.outputs)
    assert model.get_layer("block3_conv") is from_store.model.get_layer("block3_conv")
    batches = stored.py_dataset("train", batch_size=8)
    assert sum(len(batches[index][0]) for index in range(len(batches))) == len(rows)
    fine_tune(model, names, of_block, batches, None, options, steps={}, on_epoch=ignore)

    far = moved(before, from_images.model)
    apart = moved(values(from_store.model), from_images.model)
    assert far["block3_conv"] > 5 * RATE
    for name, distance in far.items():
        assert apart[name] <= 0.01 * distance + 1e-7, name
    still = [name for name, distance in far.items() if distance == 0]
    assert {"block1_conv", "block2_conv", "block2_bn", "block3_bn"} <= set(still)
