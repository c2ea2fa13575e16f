"""The fields of pipeline files."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from featurestore.backbone.engines import Engine, Precision
from featurestore.backbone.preprocessing import Interpolation, NamedScaling, Resize
from featurestore.dataset import ScanOptions, Split
from featurestore.dataset.splits import meaning
from featurestore.extraction.planning import BatchSize, Dtype, bytes_of
from featurestore.heads.folds import FOLDS, CrossValidation
from featurestore.heads.metrics import Metric
from featurestore.heads.notes import Line, Tags
from featurestore.promotion.fine_tuning import FineTuning
from featurestore.settings import Settings

Count = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


def _not_empty(value: Any) -> Any:
    if value is None:
        raise ValueError("is empty; give its fields, or {} for the defaults, or leave it out")
    return value


class DataSpec(ScanOptions):
    """Where the samples are, and how they are scanned."""

    path: str
    """Folder or table; or the name of a stored data set, without options of a scan."""
    name: str | None = None
    """Name of the data set; by default the folder's or file's."""


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


T = TypeVar("T")
# One value, or a list of them.
Several = Annotated[list[T], BeforeValidator(_several), Field(min_length=1)]
Layers = Annotated[list[str], Field(min_length=1)]


class FeaturesSpec(Settings):
    """Which stored features of the data set heads are fitted on; by default all."""

    model: Several[str] | None = None
    """Name of the backbone."""
    weights: Several[str] | None = None
    """imagenet, random, or a weights file."""
    input_size: Several[Count] | None = None
    """Side of the square that images are resized to, in pixels."""
    scaling: Several[NamedScaling] | None = None
    """Pixel scaling that a model file needs; applications have their own."""
    resize: Several[Resize] | None = None
    """How images that are not square become square."""
    interpolation: Several[Interpolation] | None = None
    """Filter of the resize."""
    precision: Several[Precision] | None = None
    """Number type of the forward pass; bfloat16 is faster on recent hardware."""


class BackboneSpec(FeaturesSpec):
    """Frozen models and their layers: one model for each combination of the values."""

    model: Several[str]
    """A keras.applications network, hub:PRESET of KerasHub, or a .keras, .h5 or .onnx file."""
    special_tokens: Several[NonNegative] | None = None
    """Class and register tokens at the start of a transformer's sequence; a preset states them."""
    layers: Layers | None = None
    """Layers of this backbone; by default those of the pipeline."""


class ExtractSpec(Settings):
    """How features are computed and stored."""

    dtype: Dtype = "auto"
    """Stored type; auto: float16, and float32 for layers that float16 cannot hold."""
    batch_size: BatchSize = "auto"
    """Images in a forward batch; auto: as a short measurement and the free memory suggest."""
    engine: Engine = "auto"
    """Library that computes the forward pass; auto: the fastest that is correct."""
    max_bytes: Annotated[int, BeforeValidator(bytes_of), Field(gt=0)] | None = None
    """Stop before the first image if more is to be written, before compression, such as 20GB."""


class BaselineSpec(Settings):
    """The same heads on raw pixels, as a baseline."""

    input_size: Count = 32
    """Side of the square that images are resized to, in pixels."""


class HeadSpec(Settings):
    """One head, or a grid of them."""

    head: str
    """Name such as ``logistic``, or an import path."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of every head of this entry."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Values of each parameter; a head for each combination."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random in the head."""
    label: Line | None = None
    """A name of your own."""
    tags: Tags = Field(default=[])
    """Tags to write on the heads."""
    note: str | None = None
    """A note for later, in any words."""

    @field_validator("grid")
    @classmethod
    def _other_parameters(cls, grid: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if both := sorted(grid.keys() & info.data.get("params", {}).keys()):
            raise ValueError(f"{both[0]!r} is in params too; give its values in one of them")
        return grid

    def combinations(self) -> list[dict[str, Any]]:
        """Return the parameters of each head of this entry."""
        from sklearn.model_selection import ParameterGrid

        return [{**self.params, **values} for values in ParameterGrid(self.grid)]


def _head(value: Any) -> Any:
    return {"head": value} if isinstance(value, str) else value


Heads = Annotated[list[Annotated[HeadSpec, BeforeValidator(_head)]], Field(min_length=1)]


def _split(value: Any) -> Any:
    return (meaning(value) if isinstance(value, str) else None) or value


class SelectSpec(Settings):
    """How the best head is chosen."""

    metric: Metric | None = None
    """By default accuracy, or R² in regression."""
    split: Annotated[Split | Literal["folds"] | None, BeforeValidator(_split)] = None
    """By default ``folds`` (the mean over the folds) with cross-validation, else ``val``."""


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .-]*(?<! )", name):
        raise ValueError(
            f"is {name!r}; it names a folder of runs: letters, digits, spaces and . _ -, and a "
            "letter or digit first"
        )
    return name


def _data(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class PipelineSpec(CrossValidation):
    """A pipeline: data, backbone or stored features, heads, selection and promotion."""

    name: Annotated[str, AfterValidator(_folder_name)]
    """Folder of its runs."""
    data: Annotated[DataSpec, BeforeValidator(_data)]
    """The images. Without a backbone: a data set in the store."""
    backbone: Annotated[Several[BackboneSpec] | None, BeforeValidator(_not_empty)] = None
    """The frozen models; without any, heads are fitted on stored features."""
    features: FeaturesSpec = FeaturesSpec()
    """Which stored features, without a backbone."""
    layers: Annotated[Layers | None, Field(validate_default=True)] = None
    """Layers to extract, or stored layers; of these by default all."""
    extract: ExtractSpec = ExtractSpec()
    """How features are computed and stored."""
    baseline: Annotated[BaselineSpec | None, BeforeValidator(_not_empty)] = None
    """The same heads on raw pixels."""
    heads: Heads
    """The heads to fit."""
    select: SelectSpec = SelectSpec()
    """How the best head is chosen."""
    promote: Annotated[FineTuning | None, BeforeValidator(_not_empty)] = None
    """Promote the best head, and fine-tune it."""

    @field_validator("layers")
    @classmethod
    def _for_each_backbone(cls, layers: list[str] | None, info: ValidationInfo) -> list[str] | None:
        own = [backbone.layers is not None for backbone in info.data.get("backbone") or []]
        if layers is None and not all(own):
            raise ValueError("is missing")
        if layers is not None and own and all(own):
            raise ValueError("is not used: every backbone has its own layers")
        return layers

    @field_validator("features", "extract", "baseline", "promote")
    @classmethod
    def _fits_backbone(cls, value: Any, info: ValidationInfo) -> Any:
        stored = info.data.get("backbone", ()) is None
        if stored and info.field_name != "features":
            raise ValueError("needs a `backbone`; without one, heads are fitted on stored features")
        if info.data.get("backbone") and info.field_name == "features":
            raise ValueError("selects stored features, and `backbone` computes them; give one")
        return value

    @field_validator("select")
    @classmethod
    def _has_folds(cls, select: SelectSpec, info: ValidationInfo) -> SelectSpec:
        if select.split == FOLDS and info.data.get("folds", FOLDS) is None:
            raise ValueError("is by the folds, and the file has no `folds: N`; give both")
        return select
