"""Pipelines and sweeps on augmented views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import featurestore as fs
from featurestore.errors import SpecError
from featurestore.features import Features
from tests.pipeline.conftest import Pipeline

AUGMENTATION = [{"RandomFlip": {"mode": "horizontal"}}, {"RandomRotation": {"factor": 0.05}}]
FEW: dict[str, Any] = {
    "layers": ["conv_b:avg"],
    "heads": ["logistic"],
    "baseline": None,
    "promote": {},
}


@pytest.mark.reliability
def test_a_pipeline_fits_on_views_and_promotes_the_plain_backbone(pipeline: Pipeline) -> None:
    asked = {"views": 2, "augmentation": AUGMENTATION}
    manifest = pipeline.run(**FEW, extract=asked)

    (head,) = manifest["heads"]
    assert head["views"] == 2
    assert manifest["promotion"]["parity"]["agreement"] == 1
    assert [each.view for each in pipeline.told("ExtractionStarted")] == [None, 0, 1]
    model = fs.Head.load(head["head"], pipeline.store)
    assert model.metrics["train"]["rows"] < model.estimator[0].n_samples_seen_[()]

    again = pipeline.run(**FEW, extract=asked)
    assert again["folder"] == manifest["folder"]
    assert [each["status"] for each in again["stages"].values()] == ["up to date"] * 4

    # The same layers from a file are the same run; without views it is another one.
    (pipeline.folder / "flips.yaml").write_text(yaml.safe_dump(AUGMENTATION))
    same = pipeline.run(**FEW, extract={"views": 2, "augmentation": "flips.yaml"})
    assert same["folder"] == manifest["folder"]
    assert pipeline.run(**FEW)["heads"][0]["head"] != head["head"]

    sweep = pipeline.folder / "sweep.yaml"
    sweep.write_text("dataset: photos\nviews: 2\nheads: [logistic]\n")
    assert [each.id for each in fs.sweep(sweep, pipeline.store)] == [head["head"]]
    sweep.write_text("dataset: photos\nviews: 3\nheads: [logistic]\n")
    with pytest.raises(SpecError, match=r"sweep.yaml:2: views: 2 of 3 views"):
        fs.sweep(sweep, pipeline.store)
    assert len(Features.open("photos", "conv_b:avg", pipeline.store, views=1).views) == 1


@pytest.mark.parametrize(
    ("extract", "message"),
    [
        ({"views": 2}, "extract: views are made by an augmentation"),
        ({"augmentation": AUGMENTATION}, "extract: views are made by an augmentation"),
        ({"views": 2, "augmentation": ["RandomFlop"]}, "extract.augmentation: no Keras layer"),
        ({"views": 2, "augmentation": "no.yaml"}, "extract.augmentation: cannot read"),
        (
            {"views": 2, "augmentation": [{"Rescaling": {"scale": 2}}]},
            "extract.augmentation: augmentation layer 'Rescaling' is not random",
        ),
    ],
)
def test_mistakes_have_their_line(pipeline: Pipeline, extract: Any, message: str) -> None:
    with pytest.raises(SpecError, match=rf"pipeline.yaml:\d+: {message}"):
        pipeline.run(**FEW, extract=extract)
    assert (
        not Path(pipeline.store.location, "features").exists() or not pipeline.store.features.keys()
    )
