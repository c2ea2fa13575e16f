"""The backbone and the data set behind a stored head, also if their files were moved since."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.backbone import Backbone, LayerRef
from featurestore.dataset import Dataset
from featurestore.errors import PromotionError, StoreError, UnknownLayerError
from featurestore.heads import Head

if TYPE_CHECKING:
    from featurestore.store import FeatureStore


def load_origin(
    store: FeatureStore,
    head: str,
    *,
    model: str | Path | None = None,
    weights: str | Path | None = None,
) -> tuple[Head, Backbone, Dataset]:
    """Load a head, and the backbone and data set that its provenance records: what to promote.

    ``model`` and ``weights`` are the files of the backbone, if they are not where they were.

    Raises
    ------
    NotFoundError
        If there is no such head, or its data set was removed.
    PromotionError
        If the head does not record its backbone, a file of it is gone, or a given one is of
        another backbone.
    """
    fitted = Head.load(head, store)
    return fitted, load_backbone(fitted, model, weights), load_data(store, fitted)


def load_backbone(
    head: Head, model: str | Path | None = None, weights: str | Path | None = None
) -> Backbone:
    """Build the backbone that a head records, or the same one from other files."""
    spec = head.provenance["backbone"]
    if spec is None:
        raise PromotionError(f"{head.id} does not record its backbone; use promote() in Python")
    spec = dict(spec)
    if model is not None:
        spec = {**spec, "source": "file", "path": _absolute(model), "weights": None}
        spec.setdefault("name", head.key.model)
    if weights is not None:
        spec["weights"] = _absolute(weights)
    _check_files(head, spec)
    backbone = Backbone.from_spec(spec)
    if model is not None or weights is not None:
        given = " and ".join(str(each) for each in (model, weights) if each is not None)
        _check_same(head, backbone, given)
    return backbone


def load_data(store: FeatureStore, head: Head) -> Dataset:
    """Load the data set as a head was fitted on it, with its images where they are now.

    Labels and splits are those of then. An image that was moved since, to the folder of another
    class or with the whole data set, is found by its digest if it was scanned there.
    """
    recorded = head.provenance["dataset"]
    data = store.datasets.load(recorded["name"], recorded["manifest_digest"])
    source, options = data.source, data.options
    places = dict(zip(data.sample_digests, data.paths, strict=True))
    entries = sorted(store.datasets.values(), key=lambda each: each.added)
    for entry in entries:
        if entry.manifest_digest == data.manifest_digest and entry.source == data.source:
            continue
        names = (data.name, data.options.get("plain"))  # An augmented one has the same images.
        if entry.name not in names and entry.digest != data.digest:
            continue
        with suppress(StoreError):
            now = store.datasets.load(entry.name)
            scanned = zip(now.sample_digests, now.paths, strict=True)
            places |= {digest: path for digest, path in scanned if digest in places and path}
            if entry.name == data.name:
                source, options = now.source, now.options
    paths = [places[digest] for digest in data.sample_digests]
    return Dataset(data.name, source, options, data.samples.moved(paths))


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())


def _check_files(head: Head, spec: Mapping[str, Any]) -> None:
    """Raise PromotionError if a file of the backbone is gone."""
    again = f"featurestore promote {head.id} -o MODEL.keras"
    if spec["source"] == "model":
        raise PromotionError(
            f"the backbone of {head.id} was a Keras model in memory; save it to a file, then: "
            f"`{again} --model FILE`"
        )
    if "path" in spec and not Path(spec["path"]).is_file():
        raise PromotionError(
            f"the backbone of {head.id} was {spec['path']!r}, and there is no such file; if it was "
            f"moved or renamed: `{again} --model FILE`"
        )
    weights = spec.get("weights")
    if weights not in (None, "imagenet", "random") and not Path(weights).is_file():
        raise PromotionError(
            f"the weights of the backbone of {head.id} were {weights!r}, and there is no such "
            f"file; if it was moved or renamed: `{again} --weights FILE`"
        )


def _check_same(head: Head, backbone: Backbone, given: str) -> None:
    """Raise PromotionError if a backbone is not the one of a head's features."""
    layer = LayerRef.parse(head.key.ref).layer
    try:
        fields = backbone.prefix_fields(layer)
    except UnknownLayerError as error:
        raise PromotionError(f"{given} is not the backbone of {head.id}: {error}") from None
    if backbone.prefix_digest(layer) == head.key.prefix_digest:
        return
    recorded = head.provenance.get("prefix") or {}
    differ = [name for name, value in fields.items() if recorded.get(name) != value]
    raise PromotionError(
        f"{given} is not the backbone of {head.id}: up to {layer} it differs in "
        f"{', '.join(differ) or 'its digest'}; give the file that the features were extracted with"
    )
