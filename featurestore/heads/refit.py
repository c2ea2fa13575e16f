"""Heads that are not portable: the estimator that a store cannot keep is fitted again.

Nothing that a store names is imported. The user passes the estimator; the stored fields only tell
whether it is the right one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from featurestore.errors import FeatureStoreWarning, HeadError, NotFoundError
from featurestore.features import Features
from featurestore.heads.candidate import Candidate, candidate
from featurestore.heads.identity import foreign
from featurestore.heads.metrics import measure
from featurestore.heads.parallel import fit_estimators
from featurestore.heads.rows import Rows
from featurestore.store import FeatureKey, RowIndex

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.heads.head import Head
    from featurestore.store import FeatureGroup, StoredRows

# Relative difference of a metric that rounding explains.
TOLERANCE = 1e-6


def missing_estimator(head: Head) -> NoReturn:
    """Raise HeadError that says how to pass the estimator of a head."""
    paths = list(dict.fromkeys(foreign(head.lineage["estimator"])))
    (path, *others) = paths or ["its class"]
    module, _, name = path.rpartition(".")
    alone = not others and head.lineage["estimator"].get("class") == path
    given = name if alone else "the estimator that it was fitted as"
    raise HeadError(
        f"head {head.id!r} is not portable: the store has its parameters and metrics, but not the "
        f"estimator, which contains {', '.join(paths)}; pass it to fit the head again: `from "
        f"{module} import {name}`, then Head.load({head.id!r}, store, estimator={given})"
    )


def refit(head: Head, estimator: Any) -> Head:
    """Return a stored head with an estimator that is fitted when it is first needed.

    Raises
    ------
    HeadError
        If it is another estimator, or has other parameters, than the head was fitted with.
    NotFoundError
        If the state of the data set is gone, or no array has the rows of the features.
    """
    recorded = head.lineage["dataset"]
    dataset = head.store.datasets.load(recorded["name"], recorded["manifest_digest"])
    features = features_of(head, dataset)
    if head.lineage["features"].get("rows"):
        features = features.completed()
    if isinstance(estimator, str | type):
        params = plain_params(head)
        if isinstance(estimator, type):
            found = candidate(estimator(**params), None, features, head.seed)
        else:
            found = candidate(estimator, params, features, head.seed)
    else:
        found = candidate(estimator, None, features, head.seed)
    if found.id.rpartition("-")[2] != head.id.rpartition("-")[2]:
        raise HeadError(
            f"head {head.id!r} was fitted as another estimator than the given one: "
            f"{_difference(head.lineage['estimator'], found.fields)}; fit that one with fit_head"
        )
    return fitted_again(head, found, Rows(features))


def fitted_again(head: Head, given: Candidate, rows: Rows) -> Head:
    """Return a head whose estimator is fitted, and compared with its metrics, when needed."""

    @cache
    def fit() -> Any:
        (fitted,) = fit_estimators([(given, None)], rows)
        if isinstance(fitted, HeadError):
            raise fitted
        estimator = fitted.estimator
        (measured,) = measure([replace(head, _fit=lambda: estimator)], rows)
        if differing := list(_differing(head.metrics, measured)):
            warnings.warn(
                f"head {head.id!r} was fitted again and has other metrics than recorded: "
                f"{', '.join(differing)}; another version of its library, or something random "
                "without a seed",
                FeatureStoreWarning,
                stacklevel=3,
            )
        return estimator

    return replace(head, _fit=fit)


def features_of(head: Head, dataset: Dataset) -> Features:
    """Return what a head was fitted on, of a state of its data set."""
    key = replace(head.key, dataset_digest=dataset.digest)
    return Features(_group(head, key, dataset), dataset, head.store)


def plain_params(head: Head) -> dict[str, Any]:
    """Return the recorded parameters of a head; HeadError if one is more than data."""
    return {
        name: _plain(value, name, head)
        for name, value in head.params.items()
        # A cache in a folder that a store names may hold pickles.
        if name.rpartition("__")[2] != "memory"
    }


def _group(head: Head, key: FeatureKey, dataset: Dataset) -> FeatureGroup | StoredRows:
    try:
        return head.store.features.get(key)
    except NotFoundError:
        dtype = head.lineage["features"]["dtype"]
        rows = RowIndex(head.store.features).find(key, dataset.sample_ids, dtype=dtype)
        if not rows.all:
            raise
        return rows


def _plain(value: Any, name: str, head: Head) -> Any:
    """Return a recorded parameter, if it is nothing but data."""
    if isinstance(value, list):
        return [_plain(each, name, head) for each in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"float"}:
        return float(value["float"])
    if value.keys() == {"dict"}:
        return {_plain(key, name, head): _plain(each, name, head) for key, each in value["dict"]}
    raise HeadError(
        f"head {head.id!r} has an object as its parameter {name!r}, which a store does not keep; "
        "pass the estimator with its parameters, not the class"
    )


def _difference(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Say how the fields of two estimators differ first."""
    for name in dict.fromkeys([*recorded, *found]):
        before, now = recorded.get(name), found.get(name)
        if before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping) and name != "dict":
            return _difference(before, now)
        if name == "source":
            return f"the code of {found.get('class') or found.get('import')} has changed"
        return f"{name} was {before!r} and is {now!r}"
    return "it has the same parameters, on other features"


def _differing(recorded: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    return [
        f"{split} {name} {now:.3f} (recorded: {before:.3f})"
        for split, metrics in recorded.items()
        for name, before in metrics.items()
        if isinstance(before, float)
        and isinstance(now := measured.get(split, {}).get(name), float)
        and not math.isclose(before, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    ]
