"""Rank the stored layers of a data set by a quick linear probe."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import FeatureStoreWarning
from featurestore.features import Features, stored, without_boundaries
from featurestore.heads import metrics
from featurestore.heads.compare import sort_key
from featurestore.heads.events import LayerRanked
from featurestore.heads.listing import ranking_layout
from featurestore.heads.rows import check_labels
from featurestore.listening import OnEvent, receiver
from featurestore.store import FeatureStore, StoreLike
from featurestore.store.variants import Variant
from featurestore.table import Table

if TYPE_CHECKING:
    import os

    from featurestore.dataset import Dataset

PROBE_ROWS = 2000
PROBE_FOLDS = 5
# A probe reads at most this many numbers of a layer, which takes about 1.5 GB. One very wide layer
# reduces the rows that all are probed on, to this many at least.
PROBE_VALUES = 50_000_000
FEWEST_PROBE_ROWS = 200
# Multiplied by the number of features; leave-one-out picks the best.
PROBE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

Folds = list[tuple[np.ndarray, np.ndarray]]


def rank(
    dataset: Dataset | str | os.PathLike[str],
    store: StoreLike = None,
    model: str | os.PathLike[str] | None = None,
    *,
    on_event: OnEvent | None = None,
    **variant: Any,
) -> Table[dict[str, Any]]:
    """Rank the stored layers of a data set by how well a quick linear probe does on each.

    The probe is ridge on standardized features, with the penalty chosen by leave-one-out. Its
    score is cross-validated on training rows alone (by group, if there are groups); each fold
    takes means, deviations and penalty from its own training rows. All layers are probed on the
    same rows and folds: the first rows of content order, which are a fair sample.

    Parameters
    ----------
    dataset : Dataset, str or path
        A data set, its name, or a path that was scanned.
    store : FeatureStore, path or URL, optional
        By default FEATURESTORE_STORE, else ``./store``.
    model : str or path, optional
        Only layers of this backbone.
    on_event : callable, optional
        Receives `LayerRanked` after each layer.
    **variant
        Only layers of this ``input_size``, ``resize``, ``weights``, …: as in `stored`.

    Returns
    -------
    Table of dict
        Best first: ``key``, ``model``, ``layer``, ``metric`` ("accuracy" or "r2"), ``score``,
        ``spread`` (standard deviation over folds), ``rows``, ``dims`` (numbers per row), ``bytes``
        (per row, as stored, uncompressed), ``shape`` (of a row), ``prefix`` (first digits of the
        prefix digest) and the fields of `Variant`: ``input_size``, ``resize``, ``weights``, ….

    Raises
    ------
    HeadError
        If the data set has no labels, or too few to learn from.
    NotFoundError
        If the store has no features of the data set, or of the model.
    IncompleteFeaturesError
        If no layer is complete. Otherwise incomplete layers are left out, with a warning.
    """
    from featurestore.dataset import Dataset
    from featurestore.dataset.source import text_of

    if not isinstance(dataset, Dataset):
        text_of(dataset)  # before the store is opened: the two may be in the wrong order
    asked = without_boundaries(stored(FeatureStore.of(store), dataset, model=model, **variant))
    found = [each for each in asked if each.complete]
    if not found:
        asked[0].group.require()
    if len(found) < len(asked):
        left_out = ", ".join(sorted({each.ref for each in asked if not each.complete}))
        warnings.warn(
            f"{len(asked) - len(found)} of {len(asked)} layers are not ranked because they are "
            f"incomplete: {left_out}; `featurestore extract` completes them",
            FeatureStoreWarning,
            stacklevel=2,
        )
    samples = found[0].dataset
    check_labels(samples)
    widest = max(_dims(each) for each in found)
    limit = min(PROBE_ROWS, max(FEWEST_PROBE_ROWS, PROBE_VALUES // widest))
    chosen = samples.rows("train", labelled=True)[:limit]
    groups = None if samples.groups is None else samples.groups[chosen]
    y = samples.targets[chosen]
    splits = _folds(y, groups)
    table, emit = [], receiver(on_event)
    for done, features in enumerate(found, 1):
        table.append(_probe(features, chosen, y, splits))
        emit(LayerRanked(str(features.key), done, len(found)))
    table.sort(key=lambda row: (sort_key(row["score"], row["metric"]), row["dims"]))
    return Table(table, ranking_layout)


def _dims(features: Features) -> int:
    return int(np.prod(features.shape[1:]))


def _probe(features: Features, chosen: np.ndarray, y: np.ndarray, folds: Folds) -> dict[str, Any]:
    X = features.group.read(chosen, np.float32).reshape(len(chosen), -1)
    scores = _scores(X, y, folds) if folds else None
    return {
        "key": str(features.key),
        "model": features.key.model,
        "layer": features.ref,
        "metric": metrics.primary(str(features.task)),
        "score": None if scores is None else float(scores.mean()),
        "spread": None if scores is None else float(scores.std()),
        "rows": len(chosen),
        "dims": _dims(features),
        "bytes": _dims(features) * features.dtype.itemsize,
        "shape": list(features.shape[1:]),
        "prefix": features.key.short.prefix,
        **Variant.of(features.group.provenance).to_dict(),
    }


def _scores(X: np.ndarray, y: np.ndarray, folds: Folds) -> np.ndarray:
    """Return the accuracy or R² on the held-out rows of each fold."""
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ridge = RidgeClassifierCV if _are_classes(y) else RidgeCV
    penalties = np.array(PROBE_PENALTIES) * X.shape[1]
    probe = make_pipeline(StandardScaler(copy=False), ridge(penalties))
    return cross_val_score(probe, X, y, cv=folds, error_score="raise")


def _are_classes(y: np.ndarray) -> bool:
    return y.dtype.kind == "i"


def _folds(y: np.ndarray, groups: np.ndarray | None) -> Folds:
    """Return the training rows and the held-out rows of each fold that can be scored."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    classes = _are_classes(y)
    folds = min(PROBE_FOLDS, len(y) if groups is None else len(np.unique(groups)))
    if folds < 2:
        return []
    if groups is not None:
        splitter = StratifiedGroupKFold if classes else GroupKFold
    else:
        rare = classes and np.unique(y, return_counts=True)[1].min() < folds
        splitter = StratifiedKFold if classes and not rare else KFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A class may have fewer rows than there are folds.
        found = list(splitter(folds, shuffle=True, random_state=0).split(y, y, groups))
    # A classifier needs two classes to learn from, R² two values to be measured on.
    return [
        (train, held_out)
        for train, held_out in found
        if len(np.unique(y[train if classes else held_out])) > 1
    ]
