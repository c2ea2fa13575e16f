"""The fields of pipeline and sweep files."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    ValidationInfo,
    field_validator,
)

from featurestore.backbone.engines import Engine, Precision
from featurestore.backbone.preprocessing import Interpolation, Resize, Scaling
from featurestore.dataset import ScanOptions, Split
from featurestore.dataset.splits import meaning
from featurestore.extraction.planning import BatchSize, Dtype
from featurestore.heads.folds import CrossValidation
from featurestore.heads.metrics import Metric
from featurestore.heads.notes import Line, Tags
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.settings import Settings

Count = Annotated[int, Field(gt=0)]


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("is empty; give its fields, or {} for the defaults, or leave it out")
    return value


class DataSpec(ScanOptions):
    """Where the samples are, how they are scanned, and how the training images are augmented.

    ``views`` is the number of views of each training image, and ``augmentation`` the Keras layers
    that make them, or their file: see `Dataset.augmented`.
    """

    path: str
    name: str | None = None
    views: Count | None = None
    augmentation: Annotated[Any, Field(validate_default=True)] = None

    @field_validator("augmentation")
    @classmethod
    def _with_views(cls, augmentation: Any, info: ValidationInfo) -> Any:
        if (augmentation is None) != (info.data.get("views") is None):
            raise ValueError("goes with `views`; give both, or neither")
        return augmentation


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


T = TypeVar("T")
# One value, or a list of them.
Several = Annotated[list[T], BeforeValidator(_several), Field(min_length=1)]
Layers = Annotated[list[str], Field(min_length=1)]


class VariantSpec(Settings):
    """Models and preprocessing: a pipeline builds them, a sweep picks stored features."""

    model: Several[str] | None = None
    weights: Several[str] | None = None
    input_size: Several[Count] | None = None
    scaling: Several[Scaling] | None = None
    resize: Several[Resize] | None = None
    interpolation: Several[Interpolation] | None = None


class BackboneSpec(VariantSpec):
    """Frozen models and their layers: one model for each combination of the values."""

    model: Several[str]
    layers: Layers | None = None
    precision: Several[Precision] | None = None


class ExtractSpec(Settings):
    """How features are computed and stored."""

    dtype: Dtype = "auto"
    batch_size: BatchSize = "auto"
    engine: Engine = "auto"
    replace: bool = False
    max_bytes: Annotated[ByteSize, Field(gt=0)] | None = None


class BaselineSpec(Settings):
    """The same heads on raw pixels, as a baseline; ``input_size`` is the side of the square."""

    input_size: Count = 32


class HeadSpec(Settings):
    """One head, or a grid of them: ``grid`` holds a list of values for each parameter."""

    head: str
    params: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    layers: Layers | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    name: Line | None = None
    tags: Tags = Field(default=[])
    note: str | None = None

    def takes(self, layer: str) -> bool:
        """Whether the head is fitted on a layer."""
        return self.layers is None or layer in self.layers


def _head(value: Any) -> Any:
    return {"head": value} if isinstance(value, str) else value


Heads = Annotated[list[Annotated[HeadSpec, BeforeValidator(_head)]], Field(min_length=1)]


def _split(value: Any) -> Any:
    return (meaning(value) if isinstance(value, str) else None) or value


class SelectSpec(Settings):
    """How the best head is chosen; by default by accuracy (or R²).

    ``split`` is by default ``folds``, the mean over the folds, if the heads are cross-validated,
    and else the validation split.
    """

    metric: Metric | None = None
    split: Annotated[Split | Literal["folds"] | None, BeforeValidator(_split)] = None


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .-]*(?<! )", name):
        raise ValueError(
            f"is {name!r}; it names a folder of runs: letters, digits, spaces and . _ -, and a "
            "letter or digit first"
        )
    return name


class ClusterSpec(Settings):
    """Where the work is done: processes of this machine, or of a Dask cluster."""

    workers: Count | None = None
    scheduler: str | None = None

    @field_validator("scheduler")
    @classmethod
    def _alone(cls, scheduler: str | None, info: ValidationInfo) -> str | None:
        if scheduler is not None and info.data.get("workers") is not None:
            raise ValueError(
                "is for a Dask cluster, and `workers` for this machine; give one of them"
            )
        return scheduler

    @property
    def cluster(self) -> int | str | None:
        """What `extract` takes as ``cluster``."""
        return self.workers or self.scheduler


class PipelineSpec(CrossValidation, ClusterSpec):
    """A pipeline: data, backbone, layers, heads, selection and promotion."""

    name: Annotated[str, AfterValidator(_folder_name)]
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
    def _for_each_backbone(cls, layers: list[str] | None, info: ValidationInfo) -> list[str] | None:
        own = [each.layers is not None for each in info.data.get("backbone", [])]
        if layers is None and not all(own):
            raise ValueError("is missing")
        if layers is not None and own and all(own):
            raise ValueError("is not used: every backbone has its own layers")
        return layers


class SweepSpec(VariantSpec, CrossValidation, ClusterSpec):
    """A sweep: many heads on features that are stored already."""

    dataset: str
    precision: Several[str] | None = None
    layers: Layers | None = None
    heads: Heads
