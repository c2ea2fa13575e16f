"""A pipeline file as a typed value; a mistake in one is reported with its line."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from featurestore.backbone.preprocessing import Interpolation, Resize, Scaling
from featurestore.dataset import Splits
from featurestore.errors import SpecError, nearest
from featurestore.images import MAX_SIDE
from featurestore.pipeline.document import Document, read_document
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.settings import Settings

# More lines than this help nobody.
MOST_MISTAKES = 20
# Lists that are multiplied soon stand for more heads than memory holds.
MOST_HEADS = 10_000
LONGEST_VALUE = 60

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "r2", "rmse"]
Split = Literal["train", "val", "test"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Side = Annotated[int, Field(gt=0, le=MAX_SIDE)]


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("is empty; give its fields, or {} for the defaults, or leave it out")
    return value


class DataSpec(Settings):
    """Where the samples are and how they are split."""

    path: str
    name: str | None = None
    val: Fraction = Splits.val
    test: Fraction = Splits.test
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = Splits.seed
    stratify: bool | None = Splits.stratify
    group_by: str | None = None


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


T = TypeVar("T")
# One value, or a list of them.
Several = Annotated[list[T], BeforeValidator(_several), Field(min_length=1)]
Layers = Annotated[list[str], Field(min_length=1)]


class VariantSpec(Settings):
    """Which models, and what they are fed: in a pipeline what is made, in a sweep what is used."""

    model: Several[str] | None = None
    weights: Several[str] | None = None
    input_size: Several[Side] | None = None
    scaling: Several[Scaling] | None = None
    resize: Several[Resize] | None = None
    interpolation: Several[Interpolation] | None = None


class BackboneSpec(VariantSpec):
    """Frozen models with their layers: one for each combination of the values."""

    model: Several[str]
    layers: Layers | None = None


class ExtractSpec(Settings):
    """How features are computed and stored."""

    dtype: Literal["float16", "float32"] = "float16"
    batch_size: Count = 32


class BaselineSpec(Settings):
    """The same heads on raw pixels, resized to a square of this many pixels a side."""

    input_size: Side = 32


class HeadSpec(Settings):
    """One head, or a grid of them: ``grid`` holds a list of values for each parameter."""

    head: str
    params: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    layers: Layers | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("grid")
    @classmethod
    def _few(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        count = math.prod(map(len, grid.values()))
        if count > MOST_HEADS:
            raise ValueError(f"stands for {count:,} heads; expected at most {MOST_HEADS:,}")
        return grid


def _head(value: Any) -> Any:
    return {"head": value} if isinstance(value, str) else value


Heads = Annotated[list[Annotated[HeadSpec, BeforeValidator(_head)]], Field(min_length=1)]


class SelectSpec(Settings):
    """What makes a head the best; by default accuracy (or R²) on the validation split."""

    metric: Metric | None = None
    split: Split = "val"


class PipelineSpec(Settings):
    """A pipeline: data, backbone, layers, heads, selection and promotion."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
    data: DataSpec
    backbone: Several[BackboneSpec]
    layers: Annotated[Layers | None, Field(validate_default=True)] = None
    extract: ExtractSpec = ExtractSpec()
    baseline: Annotated[BaselineSpec | None, BeforeValidator(_given)] = None
    heads: Heads
    select: SelectSpec = SelectSpec()
    promote: Annotated[FineTuning | None, BeforeValidator(_given)] = None

    @field_validator("layers")
    @classmethod
    def _of_each(cls, layers: list[str] | None, info: ValidationInfo) -> list[str] | None:
        own = [each.layers is not None for each in info.data.get("backbone", [])]
        if layers is None and not all(own):
            raise ValueError("is missing")
        if layers is not None and own and all(own):
            raise ValueError("is not used, for every backbone has layers of its own")
        return layers


class SweepSpec(VariantSpec):
    """A sweep: many heads on features that are stored already."""

    dataset: str
    precision: Several[str] | None = None
    layers: Layers | None = None
    heads: Heads


AnySpec = TypeVar("AnySpec", bound=Settings)


@dataclass(frozen=True)
class SpecFile(Generic[AnySpec]):
    """A spec with the file it came from.

    Attributes
    ----------
    path : Path
        The YAML file.
    spec : PipelineSpec or SweepSpec
        What it says.
    text : str
        The file's own words.
    """

    path: Path
    spec: AnySpec
    text: str
    _root: yaml.Node

    def mistake(self, where: Sequence[str | int], message: str) -> SpecError:
        """Return the error for a field whose value turns out to be wrong, with its line."""
        line, field = _place(self._root, where)
        return SpecError(f"{self.path}:{line}: {field}: {message}")

    def resolve(self, path: str) -> Path:
        """Return a path in the file, taken from the file's folder where it is relative."""
        return Path(os.path.normpath(self.path.parent.absolute() / os.path.expanduser(path)))


def read_spec(path: str | Path, kind: type[AnySpec]) -> SpecFile[AnySpec]:
    """Read a YAML file into a spec.

    Parameters
    ----------
    path : path-like
        The file.
    kind : type
        :class:`PipelineSpec` or :class:`SweepSpec`.

    Returns
    -------
    SpecFile

    Raises
    ------
    SpecError
        A line for each mistake: file, line, field, what was found, what is allowed.
    """
    document = read_document(path)
    if not isinstance(document.value, dict):
        fields = ", ".join(kind.model_fields)
        found = "nothing" if document.value is None else f"a {type(document.value).__name__}"
        raise SpecError(
            f"{document.path}:1: found {found}, expected a mapping with the fields {fields}"
        )
    try:
        spec = kind.model_validate(document.value)
    except ValidationError as error:
        raise _mistakes(document, kind, error) from None
    return SpecFile(document.path, spec, document.text, document.root)


def _mistakes(document: Document, kind: type[Settings], error: ValidationError) -> SpecError:
    found: dict[tuple[int, str], str] = {}
    # A file may have thousands, each of which costs a search for what was meant.
    most = 10 * MOST_MISTAKES
    for each in error.errors(include_url=False)[:most]:
        where = _where(each)
        line, field = _place(document.root, where)
        # Of the branches of a union the first speaks for all.
        found.setdefault((line, field), f"{document.path}:{line}: {field}: {_said(kind, each)}")
    lines = [found[at] for at in sorted(found)]
    count = error.error_count()
    more = (count if count > most else len(lines)) - MOST_MISTAKES
    return SpecError(
        "\n".join(lines[:MOST_MISTAKES] + ([f"and {more} more mistakes"] if more > 0 else []))
    )


def _said(kind: type[Settings], error: Any) -> str:
    where = _where(error)
    if error["type"] == "extra_forbidden":
        return f"unknown field; {nearest(str(where[-1]), _fields(kind, where[:-1]))}"
    if error["type"] == "missing":
        return "is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if error["type"] in ("model_type", "dict_type"):
        fields = ", ".join(_fields(kind, where))
        message = f"expected a mapping with the fields {fields}" if fields else "expected a mapping"
    found = repr(error["input"])
    if len(found) > LONGEST_VALUE:
        found = f"{found[:LONGEST_VALUE]}…"
    return f"found {found}; {message[0].lower()}{message[1:]}"


def _where(error: Any) -> list[str | int]:
    """Return the way to a field; an unknown field is named in the file, whatever it looks like."""
    named = len(error["loc"]) - 1 if error["type"] == "extra_forbidden" else None
    steps = enumerate(error["loc"])
    return [step for place, step in steps if place == named or not _is_branch(step)]


def _is_branch(step: Any) -> bool:
    # pydantic names the branch of a union it tried ("function-before[…]", "int"): no YAML key.
    return isinstance(step, str) and (step in ("int", "str", "float") or "[" in step)


def _fields(kind: type[Settings], where: Sequence[Any]) -> list[str]:
    """Return the fields that a part of the file may have; none where it is no part."""
    part: Any = kind
    for step in where:
        if isinstance(step, str) and part is not None:
            field = part.model_fields.get(step)
            part = field and _part_of(field.annotation)
    return list(part.model_fields) if part else []


def _part_of(annotation: Any) -> type[Settings] | None:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    found = (_part_of(inner) for inner in getattr(annotation, "__args__", ()))
    return next((part for part in found if part is not None), None)


def _place(node: yaml.Node | None, where: Sequence[str | int]) -> tuple[int, str]:
    """Return the line of the deepest node on the way to a field, from 1, and the field's name.

    A number is left out where the file gives one value in the place of a list.
    """
    line = node.start_mark.line if node else 0
    names = []
    for step in where:
        pairs = {}
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
        single = isinstance(node, yaml.MappingNode | yaml.ScalarNode)
        if isinstance(step, int) and single and str(step) not in pairs:
            continue
        names.append(str(step)[:LONGEST_VALUE])
        if str(step) in pairs:
            key, node = pairs[str(step)]
            line = key.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line if node else line
        else:
            node = None
    return line + 1, ".".join(names) or "the file"
