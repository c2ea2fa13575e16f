"""The mistakes in a pipeline file that reading it does not show, found before any work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import FeatureStoreError
from featurestore.pipeline.spec import PipelineSpec, SpecFile
from featurestore.pipeline.sweep import check_heads, check_layers

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset

File = SpecFile[PipelineSpec]


def check(file: File) -> Backbone:
    """Check all that needs no data, and return the backbone.

    Raises
    ------
    SpecError
        For the first mistake, with its line: no such data, model, weights, layer, head or
        parameter.
    """
    spec = file.spec
    check_heads(file)
    check_layers(file, spec.layers)
    data = spec.data.path
    if "://" not in data and not os.path.exists(file.resolve(data)):
        raise file.mistake(
            ["data", "path"], f"nothing at {str(file.resolve(data))!r}; {_fetch_hint(data)}"
        )
    backbone = _backbone(file)
    for number, layer in enumerate(spec.layers):
        _check_layer(file, backbone, number, layer)
    _check_unfreeze(file, backbone)
    return backbone


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


def _backbone(file: File) -> Backbone:
    from featurestore.backbone import Backbone

    options = file.spec.backbone.model_dump()
    model, weights = options.pop("model"), options.pop("weights")
    if Path(model).suffix:
        model = _existing(file, "model", model)
    if weights not in (None, "imagenet", "random"):
        weights = _existing(file, "weights", weights)
    try:
        return Backbone.open(model, weights=weights, **options)
    except FeatureStoreError as error:
        raise file.mistake(["backbone"], str(error)) from error


def _existing(file: File, field: str, path: str) -> str:
    found = file.resolve(path)
    if not os.path.isfile(found):
        raise file.mistake(["backbone", field], f"no file {str(found)!r}; {_fetch_hint(path)}")
    return str(found)


def _fetch_hint(path: str) -> str:
    parts = Path(path).parts
    if "data" in parts[:-1]:
        name = Path(parts[parts.index("data") + 1]).stem
        return f"`python data/fetch.py {name}` brings it, where it is one of the project's assets"
    return "paths are taken from the folder of the pipeline file"


def _check_layer(file: File, backbone: Backbone, number: int, layer: str) -> None:
    from featurestore.backbone import LayerRef

    try:
        backbone.shape(LayerRef.parse(layer))
    except FeatureStoreError as error:
        raise file.mistake(["layers", number], str(error)) from error


def _check_unfreeze(file: File, backbone: Backbone) -> None:
    """Find names that no cut leaves anything of; which layer is promoted shows later."""
    from featurestore.backbone import LayerRef, unfrozen

    promote = file.spec.promote
    if promote is None or promote.unfreeze is None:
        return
    names = backbone.layer_names
    last = max(names.index(LayerRef.parse(layer).layer) for layer in file.spec.layers)
    try:
        unfrozen(names[: last + 1], promote.unfreeze)
    except FeatureStoreError as error:
        raise file.mistake(["promote", "unfreeze"], str(error)) from error
