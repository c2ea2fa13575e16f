"""The mistakes in a pipeline file that reading it does not show, found before any work."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import FeatureStoreError
from featurestore.pipeline.spec import PipelineSpec, SpecFile
from featurestore.pipeline.sweep import check_heads, check_layers

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset

    Cut = tuple[Backbone, list[str]]

File = SpecFile[PipelineSpec]
_FROM = "paths are taken from the folder of the pipeline file"


def check(file: File) -> list[Cut]:
    """Check all that needs no data, and return the backbones, each with its layers.

    Raises
    ------
    SpecError
        For the first mistake, with its line: no such data, model, weights, layer, head or
        parameter.
    """
    spec = file.spec
    check_heads(file)
    check_layers(
        file, [layer for each in spec.backbone for layer in each.layers or spec.layers or []]
    )
    data = spec.data.path
    if "://" not in data and not os.path.exists(file.resolve(data)):
        raise file.mistake(["data", "path"], f"nothing at {str(file.resolve(data))!r}; {_FROM}")
    found = [_cut(file, *each) for each in _asked(file)]
    _check_unfreeze(file, found)
    return found


def check_data(file: File, dataset: Dataset) -> dict[str, str]:
    """Check that the data set gives what heads are learnt from and chosen by.

    Returns
    -------
    dict
        ``split`` and ``metric`` that decide which head is the best.

    Raises
    ------
    SpecError
        Where there are no labels, none in the split, labels that nothing can be learnt from, or
        labels of which there is no such metric or head.
    """
    from featurestore.heads import check_labels, metrics

    split, metric = file.spec.select.split, file.spec.select.metric
    if dataset.task is None:
        raise file.mistake(
            ["data", "path"],
            f"{dataset.source} has no labels, which heads learn from; expected a folder with a "
            "sub-folder for each class, or a table with a column of labels",
        )
    regression = dataset.task == "regression"
    known = metrics.REGRESSION if regression else metrics.CLASSIFICATION
    if metric is not None and metric not in known:
        raise file.mistake(
            ["select", "metric"],
            f"found {metric!r}, and the labels are {'numbers' if regression else 'classes'}; "
            f"expected one of {', '.join(known)}",
        )
    if not len(dataset.rows(split, labelled=True)):
        raise file.mistake(
            ["select", "split"],
            f"no labelled sample is in the {split} split, to choose heads by; give it a share in "
            "`data`, or choose by another split",
        )
    try:
        check_labels(dataset)
    except FeatureStoreError as error:
        raise file.mistake(["data", "path"], str(error)) from error
    check_heads(file, dataset.task)
    return {"split": split, "metric": metric or metrics.primary(dataset.task)}


def _asked(file: File) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the options of each backbone, with the number of the entry that it is asked for in."""
    for number, part in enumerate(file.spec.backbone):
        options = part.model_dump(exclude={"layers"}, exclude_none=True)
        for values in itertools.product(*options.values()):
            yield number, dict(zip(options, values, strict=True))


def _cut(file: File, number: int, options: dict[str, Any]) -> Cut:
    from featurestore.backbone import Backbone, LayerRef

    where: list[str | int] = ["backbone", number]
    options = dict(options)
    if Path(options["model"]).suffix:
        options["model"] = _existing(file, [*where, "model"], options["model"])
    if options.get("weights", "random") not in ("imagenet", "random"):
        options["weights"] = _existing(file, [*where, "weights"], options["weights"])
    try:
        backbone = Backbone.open(**options)
    except FeatureStoreError as error:
        raise file.mistake(where, str(error)) from error
    own = file.spec.backbone[number].layers
    layers = own or file.spec.layers or []
    for place, layer in enumerate(layers):
        try:
            backbone.shape(LayerRef.parse(layer))
        except FeatureStoreError as error:
            raise file.mistake([*(where if own else []), "layers", place], str(error)) from error
    return backbone, layers


def _existing(file: File, where: list[str | int], path: str) -> str:
    found = file.resolve(path)
    if not os.path.isfile(found):
        raise file.mistake(where, f"no file {str(found)!r}; {_FROM}")
    return str(found)


def _check_unfreeze(file: File, cuts: list[Cut]) -> None:
    """Find names that no cut leaves anything of; which layer is promoted shows later."""
    from featurestore.backbone import LayerRef, unfrozen

    promote = file.spec.promote
    if promote is None or promote.unfreeze is None:
        return
    for backbone, layers in cuts:
        names = backbone.layer_names
        last = max(names.index(LayerRef.parse(layer).layer) for layer in layers)
        try:
            unfrozen(names[: last + 1], promote.unfreeze)
        except FeatureStoreError as error:
            which = f"of {backbone.name}: " if len(cuts) > 1 else ""
            raise file.mistake(["promote", "unfreeze"], f"{which}{error}") from error
