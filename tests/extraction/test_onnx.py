"""Extraction with an ONNX file: growth, derivation and rank, as with Keras."""

import numpy as np
import onnx
import pytest

import featurestore as fs
from featurestore.backbone import Backbone
from tests.backbone.test_onnx import SIDE, network


@pytest.fixture
def backbone(tmp_path):
    onnx.save(network(), str(tmp_path / "net.onnx"))
    return Backbone.open(tmp_path / "net.onnx", scaling="unit")


def dataset(count, name="noise"):
    images = np.random.default_rng(0).integers(0, 256, (60, SIDE, SIDE, 3), dtype=np.uint8)
    labels = ["even" if image[0, 0, 0] % 2 == 0 else "odd" for image in images]
    return fs.Dataset.from_arrays(images[:count], labels[:count], name=name)


def test_more_images_copy_the_stored_rows_and_reductions_are_derived(backbone, tmp_path):
    store = fs.FeatureStore(tmp_path / "store", create=True)
    fs.extract(dataset(40), backbone, ["blocks.0"], store)
    more = fs.extract(dataset(60, "more"), backbone, ["blocks.0"], store)
    report = more.reports["blocks.0"]
    assert (report.rows_copied, report.rows_computed) == (40, 20)
    derived = fs.extract(dataset(60, "more"), backbone, ["blocks.0:patchavg"], store)
    assert derived.reports["blocks.0:patchavg"].rows_derived == 60
    alone = fs.extract(dataset(60), backbone, ["blocks.0:patchavg"], tmp_path / "alone")
    ours, theirs = (extraction["blocks.0:patchavg"].arrays()[0] for extraction in (derived, alone))
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())


def test_another_process_makes_the_same_backbone(backbone):
    again = Backbone.unpacked(backbone.packed())
    assert again.prefix_fields("blocks.0") == backbone.prefix_fields("blocks.0")


def test_layers_are_ranked(backbone, tmp_path):
    store = fs.FeatureStore(tmp_path / "store", create=True)
    fs.extract(dataset(60), backbone, ["patch.act:avg", "blocks.0:patchavg"], store)
    assert {row["layer"] for row in fs.rank("noise", store)} == {
        "patch.act:avg",
        "blocks.0:patchavg",
    }
