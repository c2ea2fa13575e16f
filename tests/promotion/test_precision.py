"""Heads on features that a network computed in fewer bits than float32."""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.backbone import Backbone, engines, openvino
from featurestore.errors import ParityError, PromotionError
from featurestore.extraction import extract
from featurestore.features import Features
from featurestore.heads import fit_head
from featurestore.promotion import promote
from tests.promotion.conftest import MakeFeatures

pytestmark = pytest.mark.filterwarnings("ignore:.*is slower than float32 here")


@pytest.fixture(scope="module")
def low(backbone: Backbone) -> Backbone:
    return backbone.using(precision="bfloat16", engine="tensorflow")


@pytest.fixture(scope="module")
def coarse(make_features: MakeFeatures, low: Backbone) -> Features:
    return make_features(["a", "b", "c"] * 15, model=low)


def test_the_model_computes_in_float32_and_the_report_says_so(
    coarse: Features, low: Backbone, backbone: Backbone
) -> None:
    head = fit_head(coarse, "logistic")
    promotion = promote(head, low, data=coarse.dataset)
    assert promotion.parity.agreement == 1.0
    measured, note = promotion.notes
    assert measured == "measured on images"
    assert note.startswith(
        "the head was fitted on bfloat16 features; the model computes in float32"
    )

    image = coarse.dataset.image(0, backbone.resize)[None]
    (exactly,) = backbone.forward([coarse.ref])(image)
    found = promotion.model.predict(image, verbose=0)
    np.testing.assert_allclose(found, head.predict_proba(exactly), atol=1e-5)


def test_features_of_both_precisions_lie_side_by_side(coarse: Features, backbone: Backbone) -> None:
    plain = extract(coarse.dataset, backbone, [coarse.ref], coarse.store)[coarse.ref]
    assert plain.key != coarse.key
    assert plain.group.provenance["prefix"]["precision"] == "float32"
    assert coarse.group.provenance["prefix"]["precision"] == "bfloat16"
    a, b = plain.arrays()[0], coarse.arrays()[0]
    assert 1e-4 < np.abs(a - b).max() / np.abs(a).max() < 0.1


@pytest.mark.reliability
def test_the_engine_of_the_features_is_not_needed(
    make_features: MakeFeatures, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head on what OpenVINO computed is promoted on a machine with a GPU, too."""
    monkeypatch.setattr(openvino, "precisions", lambda: ("float32", "bfloat16"))
    low = backbone.using(precision="bfloat16", engine="openvino")
    features = make_features(["a", "b", "c"] * 15, model=low)
    head = fit_head(features, "logistic")
    reason = "computes on CPUs, and there is a GPU"
    monkeypatch.setattr(engines, "why_not_openvino", lambda precision="float32": reason)
    assert promote(head, low, data=features.dataset).parity.agreement == 1.0


def test_another_precision_is_another_model(coarse: Features, backbone: Backbone) -> None:
    head = fit_head(coarse, "logistic")
    with pytest.raises(PromotionError, match="differ in precision; build the backbone as it was"):
        promote(head, backbone, data=coarse.dataset)


def test_rows_of_other_images_stop(make_features: MakeFeatures, low: Backbone) -> None:
    features = make_features(["a", "b", "c"] * 15, model=low)
    head = fit_head(features, "logistic")
    (block,) = range(features.group.blocks)
    rows = features.group.features.read(block)
    features.group.features.write(block, np.roll(rows, 1, axis=0))
    with pytest.raises(ParityError, match="its features differ from the stored rows"):
        promote(head, low, data=features.dataset)


@pytest.mark.reliability
def test_fine_tuning_computes_in_float32(coarse: Features, low: Backbone) -> None:
    head = fit_head(coarse, "logistic")
    promotion = promote(head, low, data=coarse.dataset, unfreeze="block3", epochs=1)
    assert promotion.fine_tuning["verdict"]
    (boundary,) = (
        group for group in coarse.store.features.values() if group.key.ref == "block2_relu"
    )
    assert boundary.provenance["prefix"]["precision"] == "float32"
