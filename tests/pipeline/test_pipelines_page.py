"""docs/pipelines.md says what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from featurestore.pipeline import PipelineSpec

PAGE = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_examples_are_pipelines() -> None:
    pipeline, several, stored = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)

    assert PipelineSpec.model_validate(yaml.safe_load(pipeline)).name == "animals"
    assert len(PipelineSpec.model_validate(yaml.safe_load(several)).backbone or []) == 2
    assert PipelineSpec.model_validate(yaml.safe_load(stored)).data.path == "photos"


@pytest.mark.slow
def test_the_layers_of_other_networks_exist() -> None:
    from featurestore.backbone import Backbone, LayerRef
    from featurestore.promotion import FineTuning

    rows = re.findall(r"^\| `(\w+)` \| `(\w+:avg)` \| `(\w+)` \|$", section("The recipes"), re.M)
    assert len(rows) == 5
    for model, pooled, middle in rows:
        backbone = Backbone.open(model, "random")
        assert len(backbone.shape(LayerRef.parse(pooled))) == 1
        assert backbone.shape(LayerRef.parse(middle))[:2] == (14, 14)
        if model == "resnet50":
            last = FineTuning(unfreeze=3).unfrozen(backbone.layer_names)
            assert ", ".join(f"`{name}`" for name in last[:2]) in PAGE.replace("\n", " ")
