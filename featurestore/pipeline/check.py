"""Check a pipeline file beyond its syntax, before any image is read or feature computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import BackboneError, FeatureStoreError, HeadError
from featurestore.heads import check_labels, check_named, metrics
from featurestore.heads.folds import FOLDS
from featurestore.heads.registry import Task
from featurestore.pipeline.spec import BackboneSpec, PipelineSpec
from featurestore.pipeline.spec_file import SpecFile

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.backbone.engines import Engine
    from featurestore.dataset import Dataset

File = SpecFile[PipelineSpec]


@dataclass(frozen=True)
class Source:
    """A backbone that was checked; it is opened again to compute, so that one is in memory.

    Attributes
    ----------
    spec : dict
        Its :attr:`Backbone.spec`.
    engine : str
        Library that computes the forward pass.
    digests : dict of str to str
        The layers to extract, and the prefix digest of each.
    unfreezes : list of str
        Those up to which `promote` has something to unfreeze.
    """

    spec: dict[str, Any]
    engine: Engine
    digests: dict[str, str]
    unfreezes: list[str]

    def open(self) -> Backbone:
        """Open the backbone."""
        from featurestore.backbone import Backbone

        return Backbone.from_spec(self.spec).using(engine=self.engine)


def check_backbones(file: File) -> list[Source]:
    """Open the backbones of a file one by one: one for each combination of an entry's values.

    Raises
    ------
    SpecError
        For the first model, weights file, input size, layer, or layer to unfreeze that does not
        exist, with its line.
    """
    from sklearn.model_selection import ParameterGrid

    return [
        _check(file, number, entry, values)
        for number, entry in enumerate(file.spec.backbone or [])
        for values in ParameterGrid(entry.model_dump(exclude={"layers"}, exclude_none=True))
    ]


def _check(file: File, number: int, entry: BackboneSpec, values: dict[str, Any]) -> Source:
    from featurestore.backbone import Backbone, LayerRef

    where: list[str | int] = ["backbone", number]
    for name in {"model", "weights"}.intersection(values):
        if Path(values[name]).suffix:
            values[name] = str(file.resolve(values[name]))
    engine, tuning = file.spec.extract.engine, file.spec.promote
    try:
        backbone = Backbone.open(**values, engine=engine)
        source = Source(backbone.spec, engine, {}, [])
        beyond: BackboneError | None = None
        for place, ref in enumerate(entry.layers or file.spec.layers or []):
            where = ["backbone", number, "layers", place] if entry.layers else ["layers", place]
            backbone.shape(ref)
            layer, names = LayerRef.parse(ref).layer, backbone.layer_names
            source.digests[ref] = backbone.prefix_digest(layer)
            try:
                if tuning and tuning.unfrozen(names[: names.index(layer) + 1]):
                    source.unfreezes.append(ref)
            except BackboneError as error:
                beyond = error
        where = ["promote", "unfreeze"]
        if beyond and not source.unfreezes:
            raise beyond
    except FeatureStoreError as error:
        raise file.mistake(where, str(error)) from error
    return source


def check_heads(file: File, task: Task | None = None) -> None:
    """Raise SpecError for a head or parameter that does not exist or does not fit the task."""
    for number, head in enumerate(file.spec.heads):
        for params in head.combinations():
            try:
                check_named(head.head, params, task)
            except HeadError as error:
                raise file.mistake(["heads", number], str(error)) from None


def check_data(file: File, dataset: Dataset) -> tuple[str, str]:
    """Check that heads can be fitted on the data set, and that the best one can be chosen.

    Returns the split and the metric that heads are chosen by.

    Raises
    ------
    SpecError
        If there are no labels, or none in the split; if heads cannot be fitted on them; or if
        the metric or a head does not fit their kind.
    """
    spec = file.spec
    split = spec.select.split or (FOLDS if spec.folds else "val")
    metric = spec.select.metric or metrics.primary(str(dataset.task))
    regression = dataset.task == "regression"
    names = metrics.REGRESSION if regression else metrics.CLASSIFICATION
    try:
        check_labels(dataset)
    except HeadError as error:
        raise file.mistake(["data", "path"], str(error)) from error
    if metric not in names:
        raise file.mistake(
            ["select", "metric"],
            f"found {metric!r}, and the labels are {'numbers' if regression else 'classes'}; "
            f"expected one of {', '.join(names)}",
        )
    if split != FOLDS and not len(dataset.rows(split, labelled=True)):
        raise file.mistake(
            ["select", "split"],
            f"the {split} split has no labelled sample to choose heads by; give it a share in "
            "`data`, or choose by another split",
        )
    check_heads(file, dataset.task)
    return split, metric
