"""A pipeline file as a typed value; a mistake in one is reported with its line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from featurestore.errors import SpecError, nearest

MAX_BYTES = 1_000_000
Metric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "r2", "rmse"]
Split = Literal["train", "val", "test"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Scalar = str | int | float | bool | None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-5`` as a string, which nobody who writes a learning rate means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


class Part(BaseModel):
    """A part of a file: unknown fields are mistakes, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(Part):
    """Where the samples are and how they are split."""

    path: str
    name: str | None = None
    val: Fraction = 0.2
    test: Fraction = 0.0
    seed: int = 0
    group_by: str | None = None


class BackboneSpec(Part):
    """Which frozen model, and what it is fed."""

    model: str
    weights: str | None = None
    input_size: Annotated[int, Field(gt=0)] | None = None
    scaling: Literal["none", "unit", "tf", "torch", "caffe"] | None = None
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    interpolation: Literal["bilinear", "bicubic", "lanczos3", "lanczos5", "nearest"] = "bilinear"


class ExtractSpec(Part):
    """How features are computed and stored."""

    dtype: Literal["float16", "float32"] = "float16"
    batch_size: Annotated[int, Field(gt=0)] = 32


class BaselineSpec(Part):
    """The same heads on raw pixels, resized to a square of this many pixels a side."""

    input_size: Annotated[int, Field(gt=0)] = 32


class HeadSpec(Part):
    """One head, or a grid of them: ``grid`` holds a list of values for each parameter."""

    head: str
    params: dict[str, Any] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    layers: list[str] | None = None
    seed: int = 0


def _head(value: Any) -> Any:
    return {"head": value} if isinstance(value, str) else value


Heads = Annotated[list[Annotated[HeadSpec, BeforeValidator(_head)]], Field(min_length=1)]
Layers = Annotated[list[str], Field(min_length=1)]


class SelectSpec(Part):
    """What makes a head the best; by default accuracy (or R²) on the validation split."""

    metric: Metric | None = None
    split: Split = "val"


class PromoteSpec(Part):
    """How the best head becomes a model: 0 epochs fuse it without fine-tuning."""

    unfreeze: int | str | None = None
    epochs: Annotated[int, Field(ge=0)] = 0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(gt=0)] = 32


class PipelineSpec(Part):
    """A pipeline: data, backbone, layers, heads, selection and promotion."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")]
    data: DataSpec
    backbone: BackboneSpec
    layers: Layers
    extract: ExtractSpec = ExtractSpec()
    baseline: BaselineSpec | None = None
    heads: Heads
    select: SelectSpec = SelectSpec()
    promote: PromoteSpec | None = None


class SweepSpec(Part):
    """A sweep: many heads on features that are stored already."""

    dataset: str
    model: str | None = None
    layers: Layers | None = None
    heads: Heads


AnySpec = TypeVar("AnySpec", bound=Part)


@dataclass(frozen=True)
class SpecFile(Generic[AnySpec]):
    """A spec with the file it came from.

    Attributes
    ----------
    path : Path
        The YAML file.
    spec : PipelineSpec or SweepSpec
        What it says.
    """

    path: Path
    spec: AnySpec
    _root: yaml.Node

    def mistake(self, where: Sequence[str | int], message: str) -> SpecError:
        """Return the error for a field whose value turns out to be wrong, with its line."""
        field = ".".join(str(step) for step in where)
        return SpecError(f"{self.path}:{_line(self._root, where)}: {field}: {message}")

    def resolve(self, path: str) -> Path:
        """Return a path in the file, taken from the file's folder where it is relative."""
        return Path(os.path.normpath(self.path.parent.absolute() / Path(path).expanduser()))


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
    path = Path(path)
    text = _read(path)
    try:
        root = yaml.compose(text, Loader=_Loader)
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if root is None or not isinstance(value, dict):
        fields = ", ".join(kind.model_fields)
        raise SpecError(f"{path}:1: expected a mapping with the fields {fields}")
    try:
        return SpecFile(path, kind.model_validate(value), root)
    except ValidationError as error:
        mistakes = [_mistake(path, kind, root, each) for each in error.errors()]
        raise SpecError("\n".join(dict.fromkeys(mistakes))) from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path} has over {MAX_BYTES:,} bytes; expected a pipeline file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = [str(each) for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise SpecError(f"no file {path}; {nearest(str(path), known)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}") from None


def _mistake(path: Path, kind: type[Part], root: yaml.Node | None, error: Any) -> str:
    where = [step for step in error["loc"] if not _is_branch(step)]
    field = ".".join(str(step) for step in where)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown field; {nearest(str(where[-1]), _siblings(kind, where[:-1]))}"
    elif error["type"] == "missing":
        message = "is missing"
    else:
        message = f"found {error['input']!r}; {message[0].lower()}{message[1:]}"
    return f"{path}:{_line(root, where)}: {field}: {message}"


def _is_branch(step: Any) -> bool:
    # pydantic names the branch of a union it tried ("function-before[…]", "int"): no YAML key.
    return isinstance(step, str) and (step in ("int", "str", "float") or "[" in step)


def _siblings(kind: type[Part], where: list[Any]) -> list[str]:
    fields: Any = kind
    for step in where:
        if isinstance(step, int):
            continue
        fields = _part_of(fields.model_fields[step].annotation) if _is_part(fields) else fields
    return list(fields.model_fields) if _is_part(fields) else []


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Part)


def _part_of(annotation: Any) -> Any:
    if _is_part(annotation):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _part_of(inner)
        if found is not None:
            return found
    return None


def _line(node: yaml.Node | None, where: Sequence[str | int]) -> int:
    """Line of the deepest node on the way to a field, counted from 1."""
    line = node.start_mark.line if node else 0
    for step in where:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
            if step not in pairs:
                break
            key, node = pairs[step]
            line = key.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            assert node is not None
            line = node.start_mark.line
        else:
            break
    return line + 1
