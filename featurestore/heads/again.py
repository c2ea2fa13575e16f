"""Stale heads fitted again, with the settings that each of them records."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featurestore.errors import HeadError, NotFoundError, StoreError
from featurestore.features import Features
from featurestore.heads.candidate import candidate
from featurestore.heads.compare import leaderboard
from featurestore.heads.fit import fit_each
from featurestore.heads.head import Head
from featurestore.listening import OnEvent
from featurestore.store import FeatureStore, StoreLike

if TYPE_CHECKING:
    import os

    from featurestore.dataset import Dataset


def fit_stale(
    dataset: Dataset | str | os.PathLike[str],
    store: StoreLike = None,
    *,
    on_event: OnEvent | None = None,
) -> tuple[list[Head], list[dict[str, Any]]]:
    """Fit each stale head of a data set on its present state, with the head's own settings.

    These are the layer, parameters, seed, folds, tags and note. The stale heads stay in the
    store; a label moves to the new head.

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
        Of those that cannot be fitted: ``estimator``, ``params``, ``seed``, ``model``, ``layer``,
        ``error``. The present samples may have no features, or the estimator may be one that a
        store does not keep, such as a Keras model.
    """
    opened = FeatureStore.of(store)
    stale = [row for row in leaderboard(dataset, opened) if row["stale"]]
    # Heads on several earlier states may be the same on the present one: the newest speaks.
    stale.sort(key=lambda row: row["created"], reverse=True)
    if not stale:
        return [], []
    present = opened.datasets.load(dataset)
    requests: dict[str, Any] = {}
    failed, labelled = [], defaultdict(list)
    for row in stale:
        try:
            head = Head.load(row["head"], opened)
            features = _features(head, present)
            pair, new_id = _by_name(head, features)
        except (HeadError, StoreError) as error:
            fields = ("estimator", "params", "seed", "model", "layer")
            failed.append({**{field: row[field] for field in fields}, "error": str(error)})
            continue
        folds = head.folds or {"folds": None, "seeds": 1}
        options = {"seed": head.seed, "folds": folds["folds"], "seeds": folds["seeds"]}
        if not opened.heads.has(new_id):  # Else it has what the user wrote on it.
            options |= {"label": head.label, "tags": list(head.tags), "note": head.note or None}
            labelled[head.label].append(head.id)
        requests.setdefault(new_id, (features, options, pair))
    heads, not_fitted = fit_each(requests.values(), on_event, strict=False)
    for head in heads:
        for stale_id in labelled.pop(head.label, ()) if head.label else ():
            opened.heads.update(stale_id, lambda document: {"label": None})
    return heads, failed + not_fitted


def _features(head: Head, dataset: Dataset) -> Features:
    """Return the features of a head's layer, of a state of its data set."""
    features = head.store.features
    key = replace(head.key, dataset_digest=dataset.digest)
    if features.has(key):
        return Features(features.get(key), dataset, head.store)
    command = f"featurestore extract {shlex.quote(dataset.name)} --model M --layer {key.ref}"
    if features.has(head.key):
        command = features.get(head.key).extract_command
    raise NotFoundError(
        f"layer {key.ref!r} by {key.model} has no features of all present samples",
        remedy=f"run `{command}`",
    )


def _by_name(head: Head, features: Features) -> tuple[tuple[str, dict[str, Any]], str]:
    """Return the name of a head's estimator with its parameters, and the id of the head to fit.

    HeadError for an estimator that only an object or an import path can give: what is stored names
    no module to import.
    """
    # A cache in a folder that a store names may hold pickles.
    params = {name: value for name, value in head.params.items() if not name.endswith("memory")}
    with suppress(HeadError):
        pair = head.estimator, {name: _plain(value) for name, value in params.items()}
        new = candidate(*pair, features, head.seed)
        if "." not in head.estimator and new.fields == head.provenance["estimator"]:
            return pair, new.id
    raise HeadError("its estimator is not one that has a name; fit it again in Python")


def _plain(value: Any) -> Any:
    """Return a recorded parameter, if it is nothing but data."""
    if isinstance(value, list):
        return list(map(_plain, value))
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"float"}:
        return float(value["float"])
    if value.keys() == {"dict"}:
        return {_plain(key): _plain(item) for key, item in value["dict"]}
    raise HeadError("a parameter is an object, which a store does not keep")
