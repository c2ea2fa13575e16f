"""Check a pipeline file beyond its syntax, before any work."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import BackboneError, FeatureStoreError, HeadError, InputError
from featurestore.heads.folds import FOLDS
from featurestore.pipeline.spec import PipelineSpec
from featurestore.pipeline.spec_file import SpecFile
from featurestore.pipeline.sweep import check_heads, check_layers
from featurestore.store.variants import Variant, tell_apart

if TYPE_CHECKING:
    from featurestore.backbone import Backbone
    from featurestore.dataset import Dataset
    from featurestore.promotion import FineTuning

File = SpecFile[PipelineSpec]


@dataclass(frozen=True)
class Source:
    """Where features come from: a backbone and its layers.

    Attributes
    ----------
    open : callable
        Returns the backbone. Of several, only the last one stays in memory.
    layers : list of str
    names : list of str
        Names of all layers of the backbone.
    spec : dict
        That of the backbone.
    digests : list of str
        Prefix digest of each of the layers.
    name : str
        What messages call it.
    """

    open: Callable[[], Backbone]
    layers: list[str]
    names: list[str]
    spec: dict[str, Any]
    digests: list[str]
    name: str
    is_pixels: bool = False

    @classmethod
    def of(cls, open: Callable[[], Backbone], layers: list[str], **more: Any) -> Source:
        """Describe a backbone by what stays known of it once it is out of memory."""
        from featurestore.backbone import LayerRef

        backbone = open()
        digests = [backbone.prefix_digest(LayerRef.parse(layer).layer) for layer in layers]
        names, spec = list(backbone.layer_names), backbone.spec
        return cls(open, layers, names, spec, digests, **{"name": backbone.name, **more})

    def unfrozen(self, layers: list[str], options: FineTuning) -> list[str]:
        """Return the layers unfrozen up to the last of some cuts; raises BackboneError."""
        from featurestore.backbone import LayerRef

        last = max(self.names.index(LayerRef.parse(layer).layer) for layer in layers)
        return options.unfrozen(self.names[: last + 1])

    def reaches(self, layer: str, options: FineTuning) -> bool:
        """Whether there is anything to unfreeze up to a layer."""
        try:
            return bool(self.unfrozen([layer], options))
        except BackboneError:
            return False


class _Opener:
    """Opens the backbones of a file. A network may take gigabytes: only the last one is kept."""

    def __init__(self, options: list[dict[str, Any]]) -> None:
        self._options = options
        self._last: tuple[int, Backbone] | None = None

    def __call__(self, number: int) -> Backbone:
        from featurestore.backbone import Backbone

        if self._last is None or self._last[0] != number:
            self._last = None
            gc.collect()  # A network is part of cycles.
            self._last = number, Backbone.open(**self._options[number])
        return self._last[1]


_RELATIVE = "paths are relative to the folder of the pipeline file"


def check(file: File) -> list[Source]:
    """Check everything that does not depend on the data set.

    Returns
    -------
    list of Source
        The backbones, of which one at a time is open, then the pixels of the baseline, once for
        each way of resizing.

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
    augmentation_of(file)
    data = file.resolve(spec.data.path)
    if "://" not in spec.data.path and not data.exists():
        raise file.mistake(["data", "path"], f"nothing at {str(data)!r}; {_RELATIVE}")
    grids = [
        (number, {**options, "engine": spec.extract.engine})
        for number, part in enumerate(spec.backbone)
        for options in ParameterGrid(part.model_dump(exclude={"layers"}, exclude_none=True))
    ]
    opener = _Opener([_with_files(file, *each) for each in grids])
    found, rows = [], []
    for place, (number, _) in enumerate(grids):
        source = _source(file, number, partial(opener, place))
        _check_unfreeze(file, source, several=len(grids) > 1)
        found.append(source)
        rows.append(_variant(source))
    found = [replace(source, name=name) for source, name in zip(found, _names(rows), strict=True)]
    if spec.baseline is not None:
        for resize in dict.fromkeys(source.spec["resize"] for source in found):
            plain = Backbone.open("pixels", input_size=spec.baseline.input_size, resize=resize)
            found.append(Source.of(partial(_same, plain), ["pixels"], is_pixels=True))
    return found


def _same(backbone: Backbone) -> Backbone:
    return backbone


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


def _with_files(file: File, number: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a backbone with the full paths of its files."""
    where: list[str | int] = ["backbone", number]
    if Path(options["model"]).suffix:
        options["model"] = _existing(file, [*where, "model"], options["model"])
    if options.get("weights", "random") not in ("imagenet", "random"):
        options["weights"] = _existing(file, [*where, "weights"], options["weights"])
    return options


def _source(file: File, number: int, open: Callable[[], Backbone]) -> Source:
    """Open one backbone of an entry, and check its layers."""
    from featurestore.backbone import LayerRef

    where: list[str | int] = ["backbone", number]
    own = file.spec.backbone[number].layers
    layers = own or file.spec.layers or []
    try:
        backbone = open()
        for place, layer in enumerate(layers):
            where = ["backbone", number, "layers", place] if own else ["layers", place]
            backbone.shape(LayerRef.parse(layer))
        return Source.of(open, layers)
    except FeatureStoreError as error:
        raise file.mistake(where, str(error)) from error


def _existing(file: File, where: list[str | int], path: str) -> str:
    found = file.resolve(path)
    if not os.path.isfile(found):
        raise file.mistake(where, f"no file {str(found)!r}; {_RELATIVE}")
    return str(found)


def _variant(source: Source) -> dict[str, Any]:
    """Return in what a backbone may differ from others of the same name."""
    backbone = source.open()
    prefix = backbone.prefix_fields(backbone.layer_names[0])
    variant = Variant.of({"backbone": backbone.spec, "prefix": prefix})
    return {"model": backbone.name, "layer": None, "prefix": "", **variant.to_dict()}


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """Return what backbones are called in messages: their names, and in what they differ."""
    rows, columns = tell_apart(rows)
    words = [[f"{columns[name]} {cell}" for name in columns if (cell := row[name])] for row in rows]
    return [
        f"{row['model']} ({', '.join(said)})" if said else row["model"]
        for row, said in zip(rows, words, strict=True)
    ]


def augmentation_of(file: File) -> str | None:
    """Return the augmentation layers of a file in canonical form; None if it has none.

    SpecError if these are not layers.
    """
    layers = file.spec.data.augmentation
    if layers is None:
        return None
    from featurestore.dataset.augmentation import canonical

    try:
        inline = not isinstance(layers, str)
        return canonical(layers if inline else file.resolve(layers))
    except InputError as error:
        raise file.mistake(["data", "augmentation"], str(error)) from error


def _check_unfreeze(file: File, source: Source, *, several: bool) -> None:
    """Check that a backbone has the layers to unfreeze; which one is promoted shows later."""
    if file.spec.promote is None:
        return
    try:
        source.unfrozen(source.layers, file.spec.promote)
    except FeatureStoreError as error:
        which = f"of {source.name}: " if several else ""
        raise file.mistake(["promote", "unfreeze"], f"{which}{error}") from error
