"""Sweeps: many heads on stored features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import HeadError, InputError, NotFoundError
from featurestore.extraction.cluster import Cluster, ClusterLike
from featurestore.features import Features, stored, without_boundaries
from featurestore.heads import Head, check_named
from featurestore.heads.calls import Call, Failed, add, fit_calls
from featurestore.heads.folds import CrossValidation
from featurestore.heads.registry import Task
from featurestore.pipeline.spec import HeadSpec, SweepSpec, VariantSpec
from featurestore.pipeline.spec_file import SpecFile, read_spec
from featurestore.store import FeatureStore, StoreLike


def sweep(
    path: str | Path,
    store: StoreLike = None,
    *,
    folds: int | None = None,
    seeds: int | None = None,
    cluster: ClusterLike = None,
    on_event: Any = None,
) -> list[Head]:
    """Fit every head of a sweep file on every layer that it names. Stored heads are reused.

    Parameters
    ----------
    path : path-like
        A sweep file: ``dataset``, ``heads``, and fields that pick features: ``model``,
        ``layers``, ``input_size``, ….
    folds, seeds : int, optional
        Cross-validate the heads as in `fit_heads`, whatever the file says.
    store : FeatureStore, path or URL, optional
        Holds the features, and receives the heads.
    cluster : int, str or distributed.Client, optional
        Where estimators that belong to no bank are fitted, whatever the file says: in this number
        of processes on this machine, or by the workers of a Dask cluster.
    on_event : callable, optional
        Receives the events of fitting.

    Returns
    -------
    list of Head
        Without those that cannot be fitted, of each of which a FeatureStoreWarning says why.

    Raises
    ------
    SpecError
        A line for each mistake in the file, such as features that are not in the store.
    HeadError
        If no head can be fitted.
    """
    heads, failed = fit_sweep(
        path, store, folds=folds, seeds=seeds, cluster=cluster, on_event=on_event
    )
    if failed and not heads:
        raise HeadError(failed[0]["error"])
    return heads


def fit_sweep(
    path: str | Path,
    store: StoreLike = None,
    *,
    folds: int | None = None,
    seeds: int | None = None,
    cluster: ClusterLike = None,
    on_event: Any = None,
) -> tuple[list[Head], list[Failed]]:
    """Fit the heads of a sweep file as `sweep`; return those that failed too."""
    file = read_spec(path, SweepSpec)
    where = cluster_of(file, cluster)
    check_heads(file)
    found = _features(file, FeatureStore.of(store))
    check_layers(file, list(dict.fromkeys(features.ref for features in found)))
    validation = CrossValidation.parse(
        file.spec.folds if folds is None else folds, file.spec.seeds if seeds is None else seeds
    )
    calls = [call for each in found for call in _calls(each, file.spec.heads, validation)]
    with where, where.heads(on_event):
        return fit_calls(calls, on_event)


def cluster_of(file: SpecFile[Any], given: ClusterLike) -> Cluster:
    """Return the cluster that a call names, or else the file.

    Raises
    ------
    SpecError
        If the file names none that can be meant.
    """
    if given is not None:
        return Cluster.of(given)
    try:
        return Cluster.of(file.spec.cluster)
    except InputError as error:
        raise file.mistake(["scheduler"], str(error)) from error


def _features(file: SpecFile[SweepSpec], store: FeatureStore) -> list[Features]:
    spec = file.spec
    dataset, place = spec.dataset, file.resolve(spec.dataset)
    if not store.datasets.has(dataset) and place.exists():
        dataset = str(place)
    where: list[str | int] = ["dataset"]
    try:
        found = stored(store, dataset)
        asked: dict[str, Any] = {}
        # One field after the other, so that a mistake has its line.
        fields = {*VariantSpec.model_fields, "precision"}
        for name, values in spec.model_dump(include=fields).items():
            if values is not None:
                where = [name]
                asked[name] = values
                found = stored(store, dataset, **asked)
        picked = without_boundaries(found) if spec.layers is None else []
        for number, layer in enumerate(spec.layers or []):
            where = ["layers", number]
            at_layer = {each.key for each in stored(store, dataset, layer=layer)}
            here = [each for each in found if each.key in at_layer]
            if not here:
                raise NotFoundError(f"no features at layer {layer!r} match the fields above")
            picked += here
        return picked
    except (InputError, NotFoundError) as error:
        raise file.mistake(where, str(error)) from error


def check_heads(file: SpecFile[Any], task: Task | None = None) -> None:
    """Raise SpecError for a head or parameter that does not exist or does not fit the task."""
    for number, head in enumerate(file.spec.heads):
        for params in combinations(head):
            try:
                check_named(head.head, params, task)
            except HeadError as error:
                raise file.mistake(["heads", number], str(error)) from None


def check_layers(file: SpecFile[Any], layers: Sequence[str]) -> None:
    """Raise SpecError if a head names another layer than these."""
    for number, head in enumerate(file.spec.heads):
        for place, layer in enumerate(head.layers or []):
            if layer not in layers:
                raise file.mistake(
                    ["heads", number, "layers", place],
                    f"found {layer!r}; expected one of the layers {', '.join(layers)}",
                )


def combinations(head: HeadSpec) -> list[dict[str, Any]]:
    """Return the parameters of each head in an entry of a file."""
    from sklearn.model_selection import ParameterGrid

    return [{**head.params, **each} for each in ParameterGrid(head.grid)]


def fit_all(
    features: Features, heads: Sequence[HeadSpec], validation: CrossValidation, on_event: Any
) -> tuple[list[Head], list[Failed]]:
    """Fit the heads that are meant for a layer; return those that failed too."""
    return fit_calls(_calls(features, heads, validation), on_event)


def _calls(
    features: Features, heads: Sequence[HeadSpec], validation: CrossValidation
) -> list[Call]:
    """Return the heads that are meant for a layer."""
    calls: list[Call] = []
    for head in heads:
        if not head.takes(features.ref):
            continue
        options = head.model_dump(include={"seed", "name", "tags", "note"})
        options |= {"folds": validation.folds, "seeds": validation.seeds}
        add(calls, features, options, [(head.head, params) for params in combinations(head)])
    return calls
