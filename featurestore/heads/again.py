"""Stale heads fitted again, with the settings that each of them records."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from featurestore.errors import HeadError, NotFoundError, StoreError
from featurestore.heads.candidate import candidate
from featurestore.heads.compare import leaderboard
from featurestore.heads.fit import try_heads
from featurestore.heads.head import Head
from featurestore.heads.refit import features_of, plain_params
from featurestore.listening import OnEvent
from featurestore.store import FeatureStore, StoreLike

if TYPE_CHECKING:
    import os

    from featurestore.dataset import Dataset
    from featurestore.features import Features


def fit_stale(
    dataset: Dataset | str | os.PathLike[str],
    store: StoreLike = None,
    *,
    on_event: OnEvent | None = None,
) -> tuple[list[Head], list[dict[str, Any]]]:
    """Fit each stale head of a data set on its present state, with the head's own settings.

    These are the layer, parameters, seed, folds, views, name, tags and note. The stale heads stay
    in the store.

    Parameters
    ----------
    dataset : Dataset, str or path
    store : FeatureStore, path or URL, optional
    on_event : callable, optional
        Receives each `HeadEvent`.

    Returns
    -------
    heads : list of Head
    failed : list of dict
        Of those that cannot be fitted: ``name``, ``params``, ``seed``, ``model``, ``layer``,
        ``error``. The present samples may have no features, or the estimator may be one that a
        store does not keep, such as a Keras model.
    """
    opened = FeatureStore.of(store)
    stale = [row for row in leaderboard(dataset, opened) if row["stale"]]
    present = opened.datasets.load(dataset) if stale else None
    calls: dict[str, tuple[Features, dict[str, Any], list[Any]]] = {}
    members: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    failed = []
    for row in stale:
        assert present is not None
        try:
            head = Head.load(row["head"], opened)
            features = _features(head, present)
            name, pair, seed = _by_name(head, features)
        except (HeadError, StoreError) as error:
            failed.append(_failed(row, error))
            continue
        folds = head.folds or {"folds": None, "seeds": 1}
        options = {"seed": seed, "folds": folds["folds"], "seeds": folds["seeds"]}
        options |= {"tags": list(head.tags), "note": head.note or None}
        options["name"] = None if head.name == name else head.name
        views = [str(each.key) for each in features.views]
        key = json.dumps([str(features.key), views, options])
        calls.setdefault(key, (features, options, []))[2].append(pair)
        members[key].append(row)
    heads: dict[str, Head] = {}
    for key, (features, options, pairs) in calls.items():
        fitted: list[Any]
        try:
            fitted = try_heads(features, pairs, on_event=on_event, **options)
        except (HeadError, StoreError) as error:  # Of these features, or these folds.
            fitted = [error] * len(pairs)
        for row, new in zip(members[key], fitted, strict=True):
            if isinstance(new, Head):
                heads[new.id] = new
            else:
                failed.append(_failed(row, new))
    return list(heads.values()), failed


def _features(head: Head, dataset: Dataset) -> Features:
    try:
        return features_of(head, dataset)
    except NotFoundError:
        layer = f"{head.key.ref!r} by {head.key.model}"
        try:
            command = head.store.features.get(head.key).extract_command
        except NotFoundError:
            command = f"featurestore extract {dataset.name} --model M --layer {head.key.ref}"
        raise NotFoundError(
            f"layer {layer} has no features of all present samples; run `{command}`"
        ) from None


def _by_name(head: Head, features: Features) -> tuple[str, tuple[str, dict[str, Any]], int]:
    """Return the name, the estimator with its parameters, and the seed of a head."""
    name = head.id.rpartition("-")[0]
    try:
        pair = name, plain_params(head)
        found = candidate(*pair, features, head.seed)
    except HeadError:
        found = None
    if found is None or found.fields != head.lineage["estimator"]:
        raise HeadError("its estimator is not one that has a name; fit it again in Python")
    return found.name, pair, head.seed


def _failed(row: dict[str, Any], error: Exception) -> dict[str, Any]:
    fields = ("name", "params", "seed", "model", "layer")
    return {**{name: row[name] for name in fields}, "error": str(error)}
