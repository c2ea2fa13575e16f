"""docs/pipelines.md says what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic.fields import FieldInfo

from featurestore.pipeline import PipelineSpec
from featurestore.pipeline.spec import HeadSpec
from featurestore.pipeline.spec_file import part_of
from featurestore.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> dict[str, str]:
    """First column and second of a table whose first column is code."""
    found = re.findall(r"^\| `([^`]+)` \|([^|]*)\|", text, re.M)
    return {name: value.strip() for name, value in found}


def shown(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    default: Any = field.get_default(call_default_factory=True)
    if default is None or isinstance(default, Settings):
        return ""
    return f"`{default}`"


def fields(kind: type[Settings], under: str = "") -> dict[str, str]:
    found = {}
    for name, field in kind.model_fields.items():
        part = part_of(field.annotation)
        if part is HeadSpec:
            found |= {f"{under}{name}": shown(field), **fields(part, f"{under}{name}[].")}
        elif part is not None:
            found |= fields(part, f"{under}{name}.")
        else:
            found[f"{under}{name}"] = shown(field)
    return found


def test_every_field_of_a_pipeline_is_listed_with_its_default() -> None:
    assert table(section("Its fields")) == fields(PipelineSpec)


def test_allowed_values_are_listed() -> None:
    for name, field in fields_of(PipelineSpec).items():
        allowed = [each for each in literals(field.annotation) if isinstance(each, str)]
        lines = section("Its fields").splitlines()
        (line,) = (each for each in lines if each.startswith(f"| `{name}` |"))
        assert all(f"`{value}`" in line for value in allowed), name


def fields_of(kind: type[Settings], under: str = "") -> dict[str, FieldInfo]:
    found = {}
    for name, field in kind.model_fields.items():
        part = part_of(field.annotation)
        if part is not None and part is not HeadSpec:
            found |= fields_of(part, f"{under}{name}.")
        else:
            found[f"{under}{name}"] = field
    return found


def literals(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [each for arg in inner for each in literals(arg)] if inner else [annotation]


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
