"""Check a pipeline file beyond its syntax, before any work."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import (
    BackboneError,
    FeatureStoreError,
    HeadError,
    InputError,
    NotFoundError,
)
from featurestore.extraction.cluster import Cluster, ClusterLike
from featurestore.features import Features, stored, without_boundaries
from featurestore.heads import check_named
from featurestore.heads.folds import FOLDS
from featurestore.heads.registry import Task
from featurestore.pipeline.spec import PipelineSpec
from featurestore.pipeline.spec_file import SpecFile
from featurestore.store import FeatureStore
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
    """Check everything that depends neither on the data set nor on the store.

    Returns
    -------
    list of Source
        The backbones, of which one at a time is open, then the pixels of the baseline, once for
        each way of resizing. Empty if heads are fitted on stored features.

    Raises
    ------
    SpecError
        For the first mistake, with its line: a path, model, weights file, layer, head or
        parameter that does not exist.
    """
    spec = file.spec
    check_heads(file)
    if spec.backbone is None:
        return []
    from sklearn.model_selection import ParameterGrid

    from featurestore.backbone import Backbone

    check_layers(
        file,
        [layer for backbone in spec.backbone for layer in backbone.layers or spec.layers or []],
    )
    augmentation_of(file)
    data = file.resolve(spec.data.path)
    if "://" not in spec.data.path and not data.exists():
        raise file.mistake(["data", "path"], f"nothing at {str(data)!r}; {_RELATIVE}")
    combinations = [
        (number, {**values, "engine": spec.extract.engine})
        for number, backbone in enumerate(spec.backbone)
        for values in ParameterGrid(backbone.model_dump(exclude={"layers"}, exclude_none=True))
    ]
    opener = _Opener([_with_files(file, number, values) for number, values in combinations])
    sources, variants = [], []
    for place, (number, _) in enumerate(combinations):
        source = _source(file, number, partial(opener, place))
        _check_unfreeze(file, source, several=len(combinations) > 1)
        sources.append(source)
        variants.append(_variant(source))
    names = _names(variants)
    sources = [replace(source, name=name) for source, name in zip(sources, names, strict=True)]
    if spec.baseline is not None:
        for resize in dict.fromkeys(source.spec["resize"] for source in sources):
            plain = Backbone.open("pixels", input_size=spec.baseline.input_size, resize=resize)
            sources.append(Source.of(partial(_same, plain), ["pixels"], is_pixels=True))
    return sources


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

    split: str = file.spec.select.split or (FOLDS if file.spec.folds else "val")
    metric = file.spec.select.metric
    try:
        check_labels(dataset)
    except HeadError as error:
        raise file.mistake(["data", "path"], str(error)) from error
    regression = dataset.task == "regression"
    metric_names = metrics.REGRESSION if regression else metrics.CLASSIFICATION
    if metric is not None and metric not in metric_names:
        raise file.mistake(
            ["select", "metric"],
            f"found {metric!r}, and the labels are {'numbers' if regression else 'classes'}; "
            f"expected one of {', '.join(metric_names)}",
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

    assert file.spec.backbone is not None
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
    resolved = file.resolve(path)
    if not os.path.isfile(resolved):
        raise file.mistake(where, f"no file {str(resolved)!r}; {_RELATIVE}")
    return str(resolved)


def _variant(source: Source) -> dict[str, Any]:
    """Return in what a backbone may differ from others of the same name."""
    backbone = source.open()
    prefix = backbone.prefix_fields(backbone.layer_names[0])
    variant = Variant.of({"backbone": backbone.spec, "prefix": prefix})
    return {"model": backbone.name, "layer": None, "prefix": "", **variant.to_dict()}


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """Return what backbones are called in messages: their names, and in what they differ."""
    rows, columns = tell_apart(rows)
    names = []
    for row in rows:
        differences = [f"{columns[name]} {row[name]}" for name in columns if row[name]]
        names.append(f"{row['model']} ({', '.join(differences)})" if differences else row["model"])
    return names


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


def check_heads(file: File, task: Task | None = None) -> None:
    """Raise SpecError for a head or parameter that does not exist or does not fit the task."""
    for number, head in enumerate(file.spec.heads):
        for params in head.combinations():
            try:
                check_named(head.head, params, task)
            except HeadError as error:
                raise file.mistake(["heads", number], str(error)) from None


def check_layers(file: File, layers: Sequence[str]) -> None:
    """Raise SpecError if a head names another layer than these."""
    for number, head in enumerate(file.spec.heads):
        for place, layer in enumerate(head.layers or []):
            if layer not in layers:
                raise file.mistake(
                    ["heads", number, "layers", place],
                    f"found {layer!r}; expected one of the layers {', '.join(layers)}",
                )


def stored_features(file: File, store: FeatureStore) -> list[Features]:
    """Return the stored features that a file without a backbone selects.

    Raises
    ------
    SpecError
        If there is no such data set, no such features, or an option for scanning images.
    """
    spec = file.spec
    for name in spec.data.model_fields_set - {"path"}:
        raise file.mistake(
            ["data", name], "the data set is stored already; leave this out, or add a `backbone`"
        )
    name, place = spec.data.path, file.resolve(spec.data.path)
    data = str(place) if not store.datasets.has(name) and place.exists() else name
    where: list[str | int] = ["data"]
    try:
        features = stored(store, data)
        selection: dict[str, Any] = {}
        # One field after the other, so that a mistake has its line.
        for field, values in spec.features.model_dump(exclude_none=True).items():
            where = ["features", field]
            selection[field] = values
            features = stored(store, data, **selection)
        if spec.layers is None:
            features = without_boundaries(features)
        else:
            selected = features
            features = []
            for number, layer in enumerate(spec.layers):
                where = ["layers", number]
                keys = {array.key for array in stored(store, data, layer=layer)}
                at_layer = [array for array in selected if array.key in keys]
                if not at_layer:
                    raise NotFoundError(f"no features at layer {layer!r} match `features`")
                features += at_layer
    except (InputError, NotFoundError) as error:
        raise file.mistake(where, str(error)) from error
    check_layers(file, list(dict.fromkeys(array.ref for array in features)))
    return features


def cluster_of(file: File, cluster: ClusterLike) -> Cluster:
    """Return the cluster that a call names, or else the file; SpecError for a wrong address."""
    if cluster is not None:
        return Cluster.of(cluster)
    try:
        return Cluster.of(file.spec.cluster)
    except InputError as error:
        raise file.mistake(["scheduler"], str(error)) from error
