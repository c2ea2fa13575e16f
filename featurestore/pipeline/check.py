"""Check a pipeline file beyond its syntax, before any work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import FeatureStoreError, HeadError, InputError
from featurestore.heads.folds import FOLDS
from featurestore.pipeline.spec import PipelineSpec
from featurestore.pipeline.spec_file import SpecFile
from featurestore.pipeline.sweep import augmentation_of, check_heads, check_layers
from featurestore.store.variants import Variant, tell_apart

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.promotion import FineTuning

File = SpecFile[PipelineSpec]


@dataclass(frozen=True)
class Source:
    """Where features come from: a backbone with its layers, and its name in messages."""

    backbone: Backbone
    layers: list[str]
    name: str
    is_pixels: bool = False


_RELATIVE = "paths are relative to the folder of the pipeline file"


def check(file: File) -> list[Source]:
    """Check everything that does not depend on the data set.

    Returns
    -------
    list of Source
        The backbones, then the pixels of the baseline, once for each way of resizing.

    Raises
    ------
    SpecError
        For the first mistake, with its line: a path, model, weights file, layer, head or
        parameter that does not exist.
    """
    from sklearn.model_selection import ParameterGrid

    from featurestore.backbone import Backbone

    spec = file.spec
    check_heads(file)
    check_layers(
        file, [layer for each in spec.backbone for layer in each.layers or spec.layers or []]
    )
    data = file.resolve(spec.data.path)
    if "://" not in spec.data.path and not data.exists():
        raise file.mistake(["data", "path"], f"nothing at {str(data)!r}; {_RELATIVE}")
    opened = [
        _open(file, number, {**options, "engine": spec.extract.engine})
        for number, part in enumerate(spec.backbone)
        for options in ParameterGrid(part.model_dump(exclude={"layers"}, exclude_none=True))
    ]
    names = _names([backbone for backbone, _ in opened])
    found = [Source(*each, name) for each, name in zip(opened, names, strict=True)]
    _check_unfreeze(file, found)
    _check_views(file, found)
    if spec.baseline is not None:
        for resize in dict.fromkeys(backbone.spec["resize"] for backbone, _ in opened):
            plain = Backbone.pixels(spec.baseline.input_size, resize=resize)
            found.append(Source(plain, ["pixels"], "pixels", is_pixels=True))
    return found


def check_data(file: File, dataset: Dataset) -> dict[str, str]:
    """Check that heads can be fitted on the data set, and that the best one can be chosen.

    Returns the ``split`` and ``metric`` that heads are chosen by.

    Raises
    ------
    SpecError
        If there are no labels, or none in the split; if heads cannot be fitted on them; or if
        the metric or a head does not fit their kind.
    """
    from featurestore.heads import check_labels, metrics

    asked, metric = file.spec.select.split, file.spec.select.metric
    split: str = asked or (FOLDS if file.spec.folds else "val")
    try:
        check_labels(dataset)
    except HeadError as error:
        raise file.mistake(["data", "path"], str(error)) from error
    regression = dataset.task == "regression"
    known = metrics.REGRESSION if regression else metrics.CLASSIFICATION
    if metric is not None and metric not in known:
        raise file.mistake(
            ["select", "metric"],
            f"found {metric!r}, and the labels are {'numbers' if regression else 'classes'}; "
            f"expected one of {', '.join(known)}",
        )
    if split == FOLDS and file.spec.folds is None:
        raise file.mistake(
            ["select", "split"], "found 'folds', and the file has no `folds: N`; expected both"
        )
    if split != FOLDS and not len(dataset.rows(split, labelled=True)):
        raise file.mistake(
            ["select", "split"],
            f"the {split} split has no labelled sample to choose heads by; give it a share in "
            "`data`, or choose by another split",
        )
    check_heads(file, dataset.task)
    return {"split": split, "metric": metric or metrics.primary(str(dataset.task))}


def _open(file: File, number: int, options: dict[str, Any]) -> tuple[Backbone, list[str]]:
    """Open one backbone of an entry, and check its layers."""
    from featurestore.backbone import Backbone, LayerRef

    where: list[str | int] = ["backbone", number]
    if Path(options["model"]).suffix:
        options["model"] = _existing(file, [*where, "model"], options["model"])
    if options.get("weights", "random") not in ("imagenet", "random"):
        options["weights"] = _existing(file, [*where, "weights"], options["weights"])
    own = file.spec.backbone[number].layers
    layers = own or file.spec.layers or []
    try:
        backbone = Backbone.open(**options)
        for place, layer in enumerate(layers):
            where = ["backbone", number, "layers", place] if own else ["layers", place]
            backbone.shape(LayerRef.parse(layer))
    except FeatureStoreError as error:
        raise file.mistake(where, str(error)) from error
    return backbone, layers


def _existing(file: File, where: list[str | int], path: str) -> str:
    found = file.resolve(path)
    if not os.path.isfile(found):
        raise file.mistake(where, f"no file {str(found)!r}; {_RELATIVE}")
    return str(found)


def _names(backbones: list[Backbone]) -> list[str]:
    """Return what backbones are called in messages: their names, and in what they differ."""
    rows = []
    for each in backbones:
        prefix = each.prefix_fields(each.layer_names[0])
        variant = Variant.of({"backbone": each.spec, "prefix": prefix})
        rows.append({"model": each.name, "layer": None, "prefix": "", **variant.to_dict()})
    rows, columns = tell_apart(rows)
    words = [[f"{columns[name]} {cell}" for name in columns if (cell := row[name])] for row in rows]
    return [
        f"{each.name} ({', '.join(said)})" if said else each.name
        for each, said in zip(backbones, words, strict=True)
    ]


def _check_views(file: File, sources: list[Source]) -> None:
    """Check that the augmentation makes views of images of each input size."""
    asked = file.spec.extract
    layers = augmentation_of(file, asked, ["extract", "augmentation"])
    if bool(asked.views) != (layers is not None):
        raise file.mistake(["extract"], "views are made by an augmentation: give both, or neither")
    try:
        for source in sources if layers else ():
            source.backbone.views(0, layers)
    except InputError as error:
        raise file.mistake(["extract", "augmentation"], str(error)) from error


def _check_unfreeze(file: File, sources: list[Source]) -> None:
    """Check that each backbone has the layers to unfreeze; which one is promoted shows later."""
    promote = file.spec.promote
    if promote is None:
        return
    for source in sources:
        try:
            unfrozen_up_to(source.backbone, source.layers, promote)
        except FeatureStoreError as error:
            which = f"of {source.name}: " if len(sources) > 1 else ""
            raise file.mistake(["promote", "unfreeze"], f"{which}{error}") from error


def unfrozen_up_to(backbone: Backbone, layers: list[str], options: FineTuning) -> list[str]:
    """Return the layers that are unfrozen up to the last of some cuts; raises BackboneError."""
    from featurestore.backbone import LayerRef

    names = backbone.layer_names
    last = max(names.index(LayerRef.parse(layer).layer) for layer in layers)
    return options.unfrozen(names[: last + 1])
