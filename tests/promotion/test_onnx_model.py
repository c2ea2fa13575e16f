"""Heads on an ONNX file become one ONNX file, from images of any size."""

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import featurestore as fs
from featurestore.backbone import Backbone
from featurestore.errors import ParityError, PromotionError
from featurestore.promotion import load_model, onnx_model, promote
from tests.backbone.test_onnx import SIDE, network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for label, base in (("bright", 150), ("dark", 60)):
        (place / label).mkdir()
        for number in range(20):
            height, width = random.integers(20, 90, 2)
            small = random.normal(base, 40, (5, 5, 3)).clip(0, 255).astype("uint8")
            image = Image.fromarray(small).resize(
                (int(width), int(height)), Image.Resampling.BICUBIC
            )
            image.save(place / label / f"{number}.png")
    return place


def head_of(folder, tmp_path, ref="blocks.0:patchavg", estimator="logistic", opset=18, **options):
    onnx.save(network(opset=opset), str(tmp_path / "net.onnx"))
    backbone = Backbone.open(tmp_path / "net.onnx", scaling="unit", **options)
    store = fs.FeatureStore(tmp_path / "store", create=True)
    data = fs.Dataset.open(folder)
    features = fs.extract(data, backbone, [ref], store)[ref]
    return fs.fit_head(features, estimator), data, features


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resize": "crop"},
        {"interpolation": "bicubic", "resize": "crop"},
        {"interpolation": "nearest"},
        {"opset": 17},
        {"ref": "patch.act"},
        {"estimator": "MLPClassifier"},
        {"estimator": "dense"},
    ],
    ids=str,
)
def test_the_file_predicts_what_the_cached_head_does(folder, tmp_path, options):
    head, data, features = head_of(folder, tmp_path, **options)
    promotion = promote(head)
    assert promotion.parity.agreement == 1
    promotion.save(tmp_path / "promoted.onnx")
    alone = onnxruntime.InferenceSession(str(tmp_path / "promoted.onnx"))
    (only,) = alone.get_outputs()
    assert only.name == "output"
    stored = head.decision_function(features.arrays()[0])
    predicted = [
        alone.run(None, {"image": data.image(row)[None]})[0][0] for row in range(len(data))
    ]
    agree = np.argmax(predicted, 1) == stored.argmax(1)
    assert agree.mean() >= 0.95
    table = fs.predict(tmp_path / "promoted.onnx", folder)
    assert {prediction.label for prediction in table} == {"bright", "dark"}
    measured = fs.evaluate(tmp_path / "promoted.onnx", data)
    assert measured["train"]["images_were"] == "trained on"
    assert load_model(tmp_path / "promoted.onnx").classes == ("bright", "dark")


def test_what_cannot_be_promoted(folder, tmp_path):
    head, _, _ = head_of(folder, tmp_path)
    with pytest.raises(PromotionError, match="ONNX file, which Keras cannot train"):
        promote(head, unfreeze="all", epochs=1)
    other = tmp_path / "other"
    other.mkdir()
    head, _, _ = head_of(folder, other, interpolation="lanczos3")
    with pytest.raises(PromotionError, match="has no form in ONNX"):
        promote(head)


def test_other_images_are_noticed(folder, tmp_path, monkeypatch):
    head, data, _ = head_of(folder, tmp_path)
    image = type(data).image
    monkeypatch.setattr(type(data), "image", lambda self, row, *rest: 255 - image(self, row, *rest))
    with pytest.raises(ParityError, match="disagrees with the cached head"):
        promote(head)


def test_a_resize_to_other_pixels_is_noticed(folder, tmp_path, monkeypatch):
    head, _, _ = head_of(folder, tmp_path)
    monkeypatch.setitem(onnx_model._MODES, "bilinear", "cubic")
    with pytest.raises(ParityError, match="grey levels"):
        promote(head)


def test_images_keep_their_pixels(folder, tmp_path):
    """The resize in the file gives what the Keras layer gives, but between two grey levels."""
    for options in ({}, {"resize": "crop", "interpolation": "bicubic"}):
        place = tmp_path / str(len(options))
        place.mkdir()
        head, data, _ = head_of(folder, place, **options)
        model = promote(head).model.with_internals()
        layer = Backbone.open(place / "net.onnx", scaling="unit", **options).resize
        images = [data.image(row) for row in range(len(data))]
        mine = np.concatenate([model(image[None])[3] for image in images])
        assert mine.shape == (len(data), SIDE, SIDE, 3)
        apart = np.abs(mine.astype(int) - np.stack([layer(image) for image in images]))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 2e-3
