"""Stale heads: fitted on an earlier state of their data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.digests import sortable
from featurestore.errors import FeatureStoreWarning, NotFoundError, StoreError

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.heads.head import Head
    from featurestore.store import FeatureStore


def stale(store: FeatureStore, heads: Sequence[Head]) -> list[str | None]:
    """Return how the present state of its data set differs for each head; None if it does not.

    For example ``"labels (5), splits (12)"``, or ``"rows (32 of 64)"`` for a head fitted on part of
    the features. The present state is the one in the store; for a data set that is not in it, the
    state that the newest head was fitted on. Manifests are read only if digests differ.
    """
    origins = [head.provenance for head in heads]
    entries, damaged = store.datasets.survey()
    for damage in damaged:
        warnings.warn(damage.reason, FeatureStoreWarning, stacklevel=3)
    newest = sorted(origins, key=lambda origin: origin["created"])
    present = {
        **{origin["dataset"]["name"]: origin["dataset"]["manifest_digest"] for origin in newest},
        **{entry.name: entry.manifest_digest for entry in entries},
    }
    differs = cache(partial(_differs, cache(store.datasets.load)))
    verdicts = []
    for origin in origins:
        name, digest = origin["dataset"]["name"], origin["dataset"]["manifest_digest"]
        same = digest == present[name]
        verdicts.append(_partly(origin) if same else differs(name, digest, present[name]))
    return verdicts


def _differs(load: Callable[[str, str], Dataset], name: str, earlier: str, present: str) -> str:
    try:
        return differences(load(name, earlier), load(name, present))
    except NotFoundError:
        return "unknown (its manifest is gone)"
    except StoreError:
        return "unknown (a manifest is damaged)"


def _partly(origin: Mapping[str, Any]) -> str | None:
    rows = origin["features"].get("rows")
    return None if rows is None else f"rows ({rows} of {origin['dataset'].get('rows')})"


def state(origin: Mapping[str, Any]) -> tuple[str, int | None]:
    """Return what heads must share to be comparable: manifest digest and number of rows."""
    return origin["dataset"]["manifest_digest"], origin["features"].get("rows")


def differences(earlier: Dataset, present: Dataset) -> str:
    """Return in what two states of a data set differ, each with the number of samples.

    Examples
    --------
    >>> import numpy as np
    >>> from featurestore.dataset import Dataset
    >>> X = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
    >>> one = Dataset.from_arrays(X, ["a", "b", "a", "b"], name="tiny", val=0)
    >>> other = Dataset.from_arrays(X[:3], ["a", "b", "b"], name="tiny", val=0)
    >>> differences(one, other)
    'samples (1 removed), labels (1)'
    """
    was, now = (sortable(state.samples.digests) for state in (earlier, present))
    _, *rows = np.intersect1d(was, now, assume_unique=True, return_indices=True)
    both = len(rows[0])
    samples = [
        f"{n:,} {what}"
        for n, what in ((len(now) - both, "added"), (len(was) - both, "removed"))
        if n
    ]
    parts = [f"samples ({', '.join(samples)})"] if samples else []
    columns = zip(*map(_columns, (earlier, present), rows), strict=True)
    for what, (then, today) in zip(("labels", "splits", "groups"), columns, strict=True):
        changed = int(np.count_nonzero(then != today))
        parts += [f"{what} ({changed:,})"] if changed else []
    return ", ".join(parts)


def _columns(dataset: Dataset, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return labels, splits and groups of some rows."""
    samples = dataset.samples
    # 1 is a class and 1.0 a number, although they are equal.
    labels = np.array([repr(label) for label in samples.labels.values()[rows]])
    groups = np.full(len(rows), None) if samples.groups is None else samples.groups[rows]
    return labels, samples.splits[rows], groups
