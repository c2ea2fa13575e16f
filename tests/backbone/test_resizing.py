"""The fast resize gives the pixels of the Keras layer, bit for bit."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.backbone import Backbone, Preprocessing
from featurestore.backbone.preprocessing import Interpolation, Resize
from featurestore.backbone.resizing import compiled_resize
from featurestore.errors import BackboneError

SIDES = st.one_of(st.integers(1, 12), st.integers(1, 400))
TARGETS = st.one_of(st.integers(1, 12), st.integers(1, 96))
RESIZES, INTERPOLATIONS = get_args(Resize), get_args(Interpolation)


def noise(height: int, width: int, seed: int = 0, kind: str = "any") -> np.ndarray:
    """Draw an image: of any values, or of values that give ties and overshoot."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (image // 128 * 255).astype(np.uint8) if kind == "black and white" else image


def by_keras(layer: Any, image: np.ndarray) -> np.ndarray:
    return np.asarray(layer(image[None]))[0]


def check(layer: Any, image: np.ndarray) -> None:
    resized = compiled_resize(layer)(image)
    assert (resized.dtype, resized.shape) == (np.uint8, (layer.height, layer.width, 3))
    np.testing.assert_array_equal(resized, by_keras(layer, image))


@settings(max_examples=40, deadline=None)
@given(
    image=st.builds(
        noise, SIDES, SIDES, st.integers(0, 99), st.sampled_from(["any", "black and white"])
    ),
    size=st.tuples(TARGETS, TARGETS),
    resize=st.sampled_from(RESIZES),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_images_of_any_size(image, size, resize, interpolation):
    check(
        Preprocessing(input_size=size, resize=resize, interpolation=interpolation).resizing(), image
    )


@pytest.mark.reliability
@settings(max_examples=300, deadline=None)
@given(
    image=st.builds(
        noise,
        st.integers(1, 900),
        st.integers(1, 900),
        st.integers(0, 99),
        st.sampled_from(["any", "black and white"]),
    ),
    size=st.one_of(st.just((224, 224)), st.tuples(st.integers(1, 400), st.integers(1, 400))),
    resize=st.sampled_from(RESIZES),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_images_of_any_size_at_length(image, size, resize, interpolation):
    check(
        Preprocessing(input_size=size, resize=resize, interpolation=interpolation).resizing(), image
    )


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("height", "width"), [(1500, 900), (7, 4000), (20_000, 2)])
def test_large_and_long_images(height, width, interpolation):
    """More than is resized at a time; and sides that the layer itself has to resize."""
    layer = Preprocessing(input_size=(32, 24), interpolation=interpolation).resizing()
    check(layer, noise(height, width))


@pytest.mark.parametrize("resize", RESIZES)
def test_an_image_of_the_size_is_not_copied(resize):
    image = noise(24, 20)
    for interpolation in INTERPOLATIONS:
        options = {"resize": resize, "interpolation": interpolation}
        layer = Preprocessing(input_size=(24, 20), **options).resizing()
        np.testing.assert_array_equal(by_keras(layer, image), image)
        assert np.shares_memory(compiled_resize(layer)(image), image)


@pytest.mark.parametrize(
    "options",
    [
        {"antialias": False},
        {"antialias": False, "interpolation": "bicubic"},
        {"pad_to_aspect_ratio": True, "fill_value": 7},
        {"dtype": "int32"},
    ],
)
def test_layers_of_other_kinds_compute_by_themselves(options):
    layer = keras.layers.Resizing(24, 20, **{"antialias": True, "dtype": "uint8", **options})
    for image in (noise(40, 90), noise(24, 20), noise(5, 3)):
        np.testing.assert_array_equal(compiled_resize(layer)(image), by_keras(layer, image))


def test_many_threads_that_resize_many_sizes():
    layer = Preprocessing(input_size=24, interpolation="bicubic").resizing()
    images = [noise(height, width) for height, width in itertools.product(range(9, 15), repeat=2)]
    fast = compiled_resize(layer)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(fast, images * 4))
    for image, resized in zip(images * 4, found, strict=True):
        np.testing.assert_array_equal(resized, by_keras(layer, image))


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 5, 3), np.float32), np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8)],
)
def test_what_is_no_image(image):
    with pytest.raises(BackboneError, match=r"expected uint8 \(height, width, 3\)"):
        Backbone.open("pixels", input_size=8).resize(image)
