"""Pipelines on augmented data sets."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import featurestore as fs
from featurestore.errors import SpecError
from tests.pipeline.conftest import PIPELINE, Pipeline

AUGMENTATION = [{"RandomFlip": {"mode": "horizontal"}}, {"RandomRotation": {"factor": 0.05}}]
LITTLE: dict[str, Any] = {
    "layers": ["conv_b:avg"],
    "heads": ["logistic"],
    "baseline": None,
    "promote": {},
}


def data(**more: Any) -> dict[str, Any]:
    return {**PIPELINE["data"], **more}


@pytest.mark.reliability
def test_a_pipeline_fits_on_views_and_is_proven_on_images(pipeline: Pipeline) -> None:
    asked = data(views=2, augmentation=AUGMENTATION)
    manifest = pipeline.run(**LITTLE, data=asked)
    name = manifest["inputs"]["dataset"]["name"]
    assert name == "photos-x2"
    assert manifest["promotion"]["parity"]["agreement"] == 1
    (head,) = manifest["heads"]
    model = fs.Head.load(head["head"], pipeline.store)
    assert model.metrics["train"]["rows"] == model.fitted[0].n_samples_seen_[()]
    # A model is evaluated on images, and has seen images.
    measured = fs.evaluate(
        pipeline.folder / manifest["folder"] / "model.keras", name, pipeline.store
    )
    images = fs.Dataset.open(pipeline.folder / "photos", val=0.25, test=0.2)
    rows = {split: len(images.rows(split)) for split in ("train", "val", "test")}
    assert {split: metrics["rows"] for split, metrics in measured.items()} == rows

    again = pipeline.run(**LITTLE, data=asked)
    assert again["folder"] == manifest["folder"]
    assert [each["status"] for each in again["stages"].values()] == ["up to date"] * 4

    # The same layers from a file are the same run; without views it is another one.
    (pipeline.folder / "flips.yaml").write_text(yaml.safe_dump(AUGMENTATION))
    same = pipeline.run(**LITTLE, data=data(views=2, augmentation="flips.yaml"))
    assert same["folder"] == manifest["folder"]
    assert pipeline.run(**LITTLE)["heads"][0]["head"] != head["head"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"views": 2}, "data.augmentation: goes with `views`"),
        ({"augmentation": AUGMENTATION}, "data.augmentation: goes with `views`"),
        ({"views": 2, "augmentation": ["RandomFlop"]}, "data.augmentation: 'RandomFlop' is no"),
        ({"views": 2, "augmentation": "no.yaml"}, "data.augmentation: cannot read"),
    ],
)
def test_mistakes_have_their_line(pipeline: Pipeline, more: Any, message: str) -> None:
    with pytest.raises(SpecError, match=rf"pipeline.yaml:\d+: {message}"):
        pipeline.run(**LITTLE, data=data(**more))
