"""Pipelines on augmented data sets."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

import featurestore as fs
from featurestore.errors import SpecError
from tests.pipeline.conftest import PIPELINE, Pipeline

AUGMENTATION = [{"RandomFlip": {"mode": "horizontal"}}, {"RandomRotation": {"factor": 0.05}}]
FEW: dict[str, Any] = {
    "layers": ["conv_b:avg"],
    "heads": ["logistic"],
    "baseline": None,
    "promote": {},
}


@pytest.mark.reliability
def test_a_pipeline_fits_on_views_and_promotes(pipeline: Pipeline) -> None:
    views = {"views": 2, "augmentation": AUGMENTATION}
    manifest = pipeline.run(**FEW, data={**PIPELINE["data"], **views})

    (row,) = manifest["heads"]
    assert manifest["promotion"]["parity"]["agreement"] == 1
    head = fs.Head.load(row["head"], pipeline.store)
    plain = pipeline.run(**FEW)["heads"][0]
    assert plain["head"] != head.id
    other = fs.Head.load(plain["head"], pipeline.store)
    assert head.metrics["val"]["rows"] == other.metrics["val"]["rows"]
    assert head.metrics["train"]["rows"] == 3 * other.metrics["train"]["rows"]

    again = pipeline.run(**FEW, data={**PIPELINE["data"], **views})
    assert again["folder"] == manifest["folder"]
    # The same layers from a file are the same run.
    (pipeline.folder / "flips.yaml").write_text(yaml.safe_dump(AUGMENTATION))
    same = pipeline.run(**FEW, data={**PIPELINE["data"], "views": 2, "augmentation": "flips.yaml"})
    assert same["folder"] == manifest["folder"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"views": 2}, "data.augmentation: goes with `views`"),
        ({"augmentation": AUGMENTATION}, "data.augmentation: goes with `views`"),
        ({"views": 2, "augmentation": ["RandomFlop"]}, "data.augmentation: no random image layer"),
        ({"views": 2, "augmentation": "no.yaml"}, "data.augmentation: cannot read"),
    ],
)
def test_mistakes_have_their_line(pipeline: Pipeline, data: Any, message: str) -> None:
    with pytest.raises(SpecError, match=rf"pipeline.yaml:\d+: {message}"):
        pipeline.run(**FEW, data={**PIPELINE["data"], **data})
