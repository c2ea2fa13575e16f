"""Finding stored features by what people call them: data set, model, layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.digests import short
from featurestore.errors import DamagedError, NotFoundError, nearest
from featurestore.features.joined import Features
from featurestore.store import FeatureKey, FeatureStore
from featurestore.store.key import KeyPath

if TYPE_CHECKING:
    from featurestore.dataset import Dataset


def stored(
    store: FeatureStore, dataset: str, *, model: str | None = None, layer: str | None = None
) -> list[Features]:
    """Return the stored features of a data set, of one model and one layer where these are given.

    Parameters
    ----------
    store : FeatureStore
    dataset : str
        A name, or a path that was scanned.
    model : str, optional
        A backbone's name in any case, or the model file that it was made of.
    layer : str, optional
        A layer ref; with ``-`` and the first digits of its prefix digest, as ``featurestore ls``
        shows it, where several prefixes are stored.

    Returns
    -------
    list of Features
        At least one.

    Raises
    ------
    NotFoundError
        Where there are none; names what there is.
    """
    loaded = store.dataset(dataset)
    try:
        keys = _found(store, loaded, model, layer)
    except NotFoundError:
        _refuse_damaged(store, loaded, model, layer)
        # What could not be read a moment ago may be there now.
        keys = _found(store, loaded, model, layer)
    return [Features(store.group(key), loaded, store) for key in keys]


def _found(
    store: FeatureStore, loaded: Dataset, model: str | None, layer: str | None
) -> list[FeatureKey]:
    keys = [key for key in store.keys() if key.dataset_digest == loaded.digest]
    command = f"`featurestore extract {loaded.name} --model {model or 'M'} --layer {layer or 'L'}`"
    if not keys:
        raise NotFoundError(f"no features of {loaded.name!r} in {store.location}; run {command}")
    if model is not None:
        names = {key.model for key in keys}
        keys = [key for key in keys if key.model.casefold() in _model_names(model)]
        if not keys:
            raise NotFoundError(
                f"no features of {loaded.name!r} by model {model!r}; "
                f"{nearest(model, sorted(names))}, or run {command}"
            )
    if layer is not None:
        refs = {key.ref for key in keys}
        keys = [key for key in keys if _is_layer(key.short, layer)]
        if not keys:
            raise NotFoundError(
                f"no features of {loaded.name!r} at layer {layer!r}; "
                f"{nearest(layer, sorted(refs))}, or run {command}"
            )
    return keys


def _refuse_damaged(
    store: FeatureStore, loaded: Dataset, model: str | None, layer: str | None
) -> None:
    """Say what is wrong with the features that are asked for, where they are there unreadable."""
    for damaged in store.damaged():
        parts = KeyPath.parse(damaged.path.partition("/")[2])
        if (
            parts is not None
            and parts.dataset == short(loaded.digest)
            and (model is None or parts.model.casefold() in _model_names(model))
            and (layer is None or _is_layer(parts, layer))
        ):
            raise DamagedError(damaged.reason)


def one_stored(store: FeatureStore, dataset: str, *, model: str, layer: str) -> Features:
    """Return the one feature array of a data set, model and layer; as :func:`stored`.

    Raises
    ------
    NotFoundError
        Where there are none, or several: of other weights, input sizes or resize rules.
    """
    found = stored(store, dataset, model=model, layer=layer)
    if len(found) > 1:
        choices = ", ".join(f"{each.ref}-{short(each.key.prefix_digest)}" for each in found)
        raise NotFoundError(
            f"{len(found)} feature arrays of {dataset!r} are layer {layer!r} of {model}: give "
            f"--layer as one of {choices}; `featurestore show` tells how they differ"
        )
    return found[0]


def _model_names(model: str) -> set[str]:
    return {model.casefold(), Path(model).stem.casefold()}


def _is_layer(key: KeyPath, layer: str) -> bool:
    return key.ref == layer or (
        layer.startswith(f"{key.ref}-") and f"{key.ref}-{key.prefix}".startswith(layer)
    )
