"""Stale heads fitted again, with the settings that each of them records."""

from __future__ import annotations

import shlex
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from featurestore.errors import HeadError, NotFoundError, StoreError
from featurestore.heads.calls import Call, Failed, add, failure, fit_calls
from featurestore.heads.candidate import candidate
from featurestore.heads.compare import leaderboard
from featurestore.heads.head import Head
from featurestore.heads.notes import annotate
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
) -> tuple[list[Head], list[Failed]]:
    """Fit each stale head of a data set on its present state, with the head's own settings.

    These are the layer, parameters, seed, folds, tags and note. The stale heads stay in the
    store; a name that a user gave moves to the new head.

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
    calls: list[Call] = []
    failed = []
    named: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in stale:
        assert present is not None
        try:
            head = Head.load(row["head"], opened)
            features = _features(head, present)
            name, pair = _by_name(head, features)
        except (HeadError, StoreError) as error:
            failed.append(failure(row, error))
            continue
        folds = head.folds or {"folds": None, "seeds": 1}
        options = {"seed": head.seed, "folds": folds["folds"], "seeds": folds["seeds"]}
        options |= {"tags": list(head.tags), "note": head.note or None}
        options["name"] = None if head.name == name else head.name
        if head.name != name:
            named[head.name].append((head.id, name))
        add(calls, features, options, [pair])
    heads, unfit = fit_calls(calls, on_event, strict=False)
    for head in heads:
        for former, estimator in named.pop(head.name, ()):
            annotate(former, opened, name=estimator)
    # Heads on several former states may be the same on the present one.
    return list({head.id: head for head in heads}.values()), failed + unfit


def _features(head: Head, dataset: Dataset) -> Features:
    try:
        return features_of(head, dataset)
    except NotFoundError:
        layer = f"{head.key.ref!r} by {head.key.model}"
        try:
            command = head.store.features.get(head.key).extract_command
        except NotFoundError:
            command = (
                f"featurestore extract {shlex.quote(dataset.name)} --model M --layer {head.key.ref}"
            )
        raise NotFoundError(
            f"layer {layer} has no features of all present samples; run `{command}`"
        ) from None


def _by_name(head: Head, features: Features) -> tuple[str, tuple[str, dict[str, Any]]]:
    """Return the name of a head's estimator, and the estimator with its parameters."""
    name = head.id.rpartition("-")[0]
    try:
        pair = name, plain_params(head)
        found = candidate(*pair, features, head.seed)
    except HeadError:
        found = None
    if found is None or found.fields != head.lineage["estimator"]:
        raise HeadError("its estimator is not one that has a name; fit it again in Python")
    return found.name, pair
