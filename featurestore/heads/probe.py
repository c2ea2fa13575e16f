"""Which layer is worth a head: a quick linear probe on each stored layer of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.features import Features, stored
from featurestore.heads import metrics
from featurestore.heads.compare import sort_key
from featurestore.heads.events import LayerRanked, OnEvent
from featurestore.heads.fit import check_labels
from featurestore.store.variants import Variant

if TYPE_CHECKING:
    from featurestore.store import FeatureStore

PROBE_ROWS = 2000
PROBE_FOLDS = 5
# A probe reads at most this many numbers: the rows of very wide layers are fewer, to this floor.
PROBE_VALUES = 200_000_000
FEWEST_PROBE_ROWS = 200
COLUMNS_AT_ONCE = 4096
# Shares of the mean squared length of a row; the probe takes the best by leave-one-out.
PROBE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def rank(
    store: FeatureStore,
    dataset: str,
    model: str | None = None,
    *,
    rows: int = PROBE_ROWS,
    folds: int = PROBE_FOLDS,
    seed: int = 0,
    on_event: OnEvent | None = None,
    **variant: Any,
) -> list[dict[str, Any]]:
    """Rank the stored layers of a data set by how well a quick linear probe does on each.

    The probe is ridge on standardized features, its penalty chosen by leave-one-out, measured by
    cross-validation on training rows alone (by group, where there are groups). The first rows of
    content order are a fair sample, so that no more is read than is used.

    Parameters
    ----------
    store : FeatureStore
    dataset : str
        A name, or a path that was scanned.
    model : str, optional
        Only layers of this backbone.
    rows : int
        Most training rows to use; very wide layers are probed on fewer, and say so.
    folds : int
    seed : int
        Of the folds.
    on_event : callable, optional
        Receives `LayerRanked` after each.
    **variant
        Only layers of this ``input_size``, ``resize``, ``weights``, …: as in `stored`.

    Returns
    -------
    list of dict
        Best first: ``key``, ``model``, ``layer``, ``metric`` ("accuracy" or "r2"), ``score``,
        ``spread`` (standard deviation over folds), ``rows``, ``dims`` (numbers a row), ``bytes``
        (stored, a row, uncompressed), ``shape`` (of a row), ``prefix`` (first digits of the
        prefix digest) and the fields of `Variant`: ``input_size``, ``resize``, ``weights``, ….

    Raises
    ------
    HeadError
        Where the labels teach nothing.
    NotFoundError
        Where the store has no features of the data set, or of the model.
    IncompleteFeaturesError
        Where none of them are complete; else those that are not are left out.
    """
    asked = stored(store, dataset, model=model, **variant)
    found = [each for each in asked if each.complete]
    if not found:
        asked[0].group.require()
    table = []
    for done, features in enumerate(found, 1):
        check_labels(features.dataset)
        table.append(_probe(features, rows, folds, seed))
        if on_event is not None:
            on_event(LayerRanked(str(features.key), done, len(found)))
    return sorted(table, key=lambda row: (sort_key(row["score"], row["metric"]), row["dims"]))


def _probe(features: Features, rows: int, folds: int, seed: int) -> dict[str, Any]:
    dims = int(np.prod(features.shape[1:]))
    metric = metrics.primary(str(features.task))
    limit = min(rows, max(FEWEST_PROBE_ROWS, PROBE_VALUES // dims))
    chosen = features.rows("train")[:limit]
    X = _standardized(features.group.read(chosen).reshape(len(chosen), -1))
    y = features.dataset.targets[chosen]
    groups = None if features.dataset.groups is None else features.dataset.groups[chosen]
    scores = _cross_validate(X, y, groups, folds, seed)
    return {
        "key": str(features.key),
        "model": features.key.model,
        "layer": features.ref,
        "metric": metric,
        "score": float(np.mean(scores)) if len(scores) else None,
        "spread": float(np.std(scores)) if len(scores) else None,
        "rows": len(chosen),
        "dims": dims,
        "bytes": dims * features.dtype.itemsize,
        "shape": list(features.shape[1:]),
        "prefix": features.key.short.prefix,
        **Variant.of(features.group.provenance).to_dict(),
    }


def _standardized(X: np.ndarray) -> np.ndarray:
    """Standardize features (row, feature); rotate those wider than the rows are many.

    Ridge does not change when rows are rotated, and n rows lie in n dimensions: the probe then
    costs the same for the widest layer.

    Returns
    -------
    numpy.ndarray (row, component)
        float64, at most as many components as rows or features.
    """
    rows, width = X.shape
    gram = np.zeros((rows, rows))
    for at in range(0, width, COLUMNS_AT_ONCE):
        part = X[:, at : at + COLUMNS_AT_ONCE].astype(np.float32)
        part -= part.mean(axis=0)
        deviation = part.std(axis=0)
        part /= np.where(deviation > 0, deviation, 1)
        if width <= min(rows, COLUMNS_AT_ONCE):
            return part.astype(np.float64)
        gram += part @ part.T
    lengths, axes = np.linalg.eigh(gram)
    kept = lengths > 1e-9 * lengths[-1]
    if not kept.any():
        return np.zeros((rows, 1))
    return axes[:, kept] * np.sqrt(lengths[kept])


def _cross_validate(
    X: np.ndarray, y: np.ndarray, groups: np.ndarray | None, folds: int, seed: int
) -> list[float]:
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV

    penalties = np.array(PROBE_PENALTIES) * (np.square(X).sum(axis=1).mean() or 1.0)
    ridge = RidgeCV if y.dtype.kind == "f" else RidgeClassifierCV
    scores = []
    for train, held_out in _folds(y, groups, folds, seed):
        if y.dtype.kind == "i" and len(np.unique(y[train])) < 2:
            continue
        probe = ridge(alphas=penalties).fit(X[train], y[train])
        predicted = probe.predict(X[held_out])
        if y.dtype.kind == "i":
            scores.append(float((predicted == y[held_out]).mean()))
        else:
            value = metrics.regression(y[held_out], predicted)["r2"]
            scores.extend([] if value is None else [value])
    return scores


def _folds(
    y: np.ndarray, groups: np.ndarray | None, folds: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    classes = y.dtype.kind == "i"
    if groups is not None:
        folds = min(folds, len(np.unique(groups)))
        if folds < 2:
            return iter(())
        splitter = StratifiedGroupKFold if classes else GroupKFold
        return splitter(folds, shuffle=True, random_state=seed).split(y, y, groups)
    folds = min(folds, len(y))
    if folds < 2:
        return iter(())
    smallest = int(np.unique(y, return_counts=True)[1].min()) if classes else 0
    splitter = StratifiedKFold if smallest >= folds else KFold
    return splitter(folds, shuffle=True, random_state=seed).split(y, y)
