"""Stale heads fitted again, with the settings that each of them records."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featurestore.errors import HeadError, NotFoundError, StoreError
from featurestore.features import Features
from featurestore.heads.calls import Call, Failed, add, failure, fit_calls
from featurestore.heads.candidate import candidate
from featurestore.heads.compare import leaderboard
from featurestore.heads.head import Head
from featurestore.listening import OnEvent
from featurestore.store import FeatureStore, RowIndex, StoreLike

if TYPE_CHECKING:
    import os

    from featurestore.dataset import Dataset


def fit_stale(
    dataset: Dataset | str | os.PathLike[str],
    store: StoreLike = None,
    *,
    on_event: OnEvent | None = None,
) -> tuple[list[Head], list[Failed]]:
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
    present = opened.datasets.load(dataset) if stale else None
    calls: list[Call] = []
    failed = []
    labelled: defaultdict[str, list[str]] = defaultdict(list)
    for row in stale:
        assert present is not None
        try:
            head = Head.load(row["head"], opened)
            features = _features(head, present)
            pair = _by_name(head, features)
        except (HeadError, StoreError) as error:
            failed.append(failure(row, error))
            continue
        folds = head.folds or {"folds": None, "seeds": 1}
        options = {"seed": head.seed, "folds": folds["folds"], "seeds": folds["seeds"]}
        options |= {"label": head.label, "tags": list(head.tags), "note": head.note or None}
        if head.label:
            labelled[head.label].append(head.id)
        add(calls, features, options, [pair])
    heads, unfit = fit_calls(calls, on_event, strict=False)
    for head in heads:
        for stale_id in labelled.pop(head.label or "", ()):
            opened.heads.update(stale_id, lambda document: {"label": None})
    # Heads on several earlier states may be the same on the present one.
    return list({head.id: head for head in heads}.values()), failed + unfit


def _features(head: Head, dataset: Dataset) -> Features:
    """Return the features of a head's layer, of a state of its data set."""
    key = replace(head.key, dataset_digest=dataset.digest)
    try:
        return Features(head.store.features.get(key), dataset, head.store)
    except NotFoundError:
        dtype = head.provenance["features"]["dtype"]
        rows = RowIndex(head.store.features).find(key, dataset.sample_ids, dtype=dtype)
        if rows.all:
            return Features(rows, dataset, head.store)
    try:
        command = head.store.features.get(head.key).extract_command
    except NotFoundError:
        command = (
            f"featurestore extract {shlex.quote(dataset.name)} --model M --layer {head.key.ref}"
        )
    raise NotFoundError(
        f"layer {head.key.ref!r} by {head.key.model} has no features of all present samples",
        remedy=f"run `{command}`",
    )


def _by_name(head: Head, features: Features) -> tuple[str, dict[str, Any]]:
    """Return the name of a head's estimator, and its parameters."""
    if "." in head.estimator:  # What is stored names no module to import.
        raise HeadError("its estimator is not one that has a name; fit it again in Python")
    try:
        pair = head.estimator, _plain_params(head)
        again = candidate(*pair, features, head.seed)
    except HeadError:
        again = None
    if again is None or again.fields != head.provenance["estimator"]:
        raise HeadError("its estimator is not one that has a name; fit it again in Python")
    return pair


def _plain_params(head: Head) -> dict[str, Any]:
    """Return the recorded parameters of a head; HeadError if one is more than data."""
    return {
        name: _plain(value)
        for name, value in head.params.items()
        # A cache in a folder that a store names may hold pickles.
        if name.rpartition("__")[2] != "memory"
    }


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
