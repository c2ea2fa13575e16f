"""Which layer is worth a head: a quick linear probe on each stored layer of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import FeatureStoreWarning
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
# A probe reads at most this many numbers of a layer: where one is very wide, all are probed on
# fewer rows, down to this floor.
PROBE_VALUES = 200_000_000
FEWEST_PROBE_ROWS = 200
COLUMNS_AT_ONCE = 4096
# Shares of the mean squared length of a row; the probe takes the best by leave-one-out.
PROBE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

Folds = list[tuple[np.ndarray, np.ndarray]]


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
    cross-validation on training rows alone (by group, where there are groups). Means, deviations
    and penalty are those of a fold's training rows. All layers are probed on the same rows and
    folds. The first rows of content order are a fair sample, so that no more is read than is used.

    Parameters
    ----------
    store : FeatureStore
    dataset : str
        A name, or a path that was scanned.
    model : str, optional
        Only layers of this backbone.
    rows : int
        Most training rows to use; fewer are used where one of the layers is very wide.
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
        Where none of them are complete; else those that are not are left out, with a warning.
    """
    asked = stored(store, dataset, model=model, **variant)
    found = [each for each in asked if each.complete]
    if not found:
        asked[0].group.require()
    if len(found) < len(asked):
        left_out = ", ".join(sorted({each.ref for each in asked if not each.complete}))
        warnings.warn(
            f"{len(asked) - len(found)} of {len(asked)} layers are not ranked, for they are not "
            f"complete: {left_out}; `featurestore extract` completes them",
            FeatureStoreWarning,
            stacklevel=2,
        )
    samples = found[0].dataset
    check_labels(samples)
    widest = max(_dims(each) for each in found)
    limit = min(rows, max(FEWEST_PROBE_ROWS, PROBE_VALUES // widest))
    chosen = samples.rows("train", labelled=True)[:limit]
    groups = None if samples.groups is None else samples.groups[chosen]
    y = samples.targets[chosen]
    parts = _folds(y, groups, folds, seed)
    table = []
    for done, features in enumerate(found, 1):
        table.append(_probe(features, chosen, y, parts))
        if on_event is not None:
            on_event(LayerRanked(str(features.key), done, len(found)))
    return sorted(table, key=lambda row: (sort_key(row["score"], row["metric"]), row["dims"]))


def _dims(features: Features) -> int:
    return int(np.prod(features.shape[1:]))


def _probe(features: Features, chosen: np.ndarray, y: np.ndarray, folds: Folds) -> dict[str, Any]:
    X = features.group.read(chosen).reshape(len(chosen), -1)
    scores = _scores(X, y, folds)
    return {
        "key": str(features.key),
        "model": features.key.model,
        "layer": features.ref,
        "metric": metrics.primary(str(features.task)),
        "score": float(np.mean(scores)) if scores else None,
        "spread": float(np.std(scores)) if scores else None,
        "rows": len(chosen),
        "dims": _dims(features),
        "bytes": _dims(features) * features.dtype.itemsize,
        "shape": list(features.shape[1:]),
        "prefix": features.key.short.prefix,
        **Variant.of(features.group.provenance).to_dict(),
    }


def _scores(X: np.ndarray, y: np.ndarray, folds: Folds) -> list[float]:
    """Fit ridge on the training rows of each fold; score it on the others, where that can be."""
    scores: list[float | None] = []
    for (train, held_out), rotated in zip(folds, _rotated(X, folds), strict=True):
        truth = y[held_out]
        if y.dtype.kind == "f":
            predicted = _ridge(*rotated, y[train][:, None])[:, 0]
            scores.append(metrics.regression(truth, predicted)["r2"])
            continue
        classes, codes = np.unique(y[train], return_inverse=True)
        if len(classes) > 1:
            values = _ridge(*rotated, 2.0 * np.eye(len(classes))[codes] - 1)
            scores.append(float((classes[values.argmax(axis=1)] == truth).mean()))
    return [score for score in scores if score is not None]


def _rotated(X: np.ndarray, folds: Folds) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Standardize by the training rows of each fold, and rotate so that these do not correlate.

    Ridge does not change when rows are rotated, and n rows lie in n dimensions: beyond one product
    of the rows with themselves, the probe costs the same for the widest layer.

    Parameters
    ----------
    X : numpy.ndarray (row, feature)
    folds : list of (train, held_out)

    Yields
    ------
    train, held_out : numpy.ndarray (row, axis)
        float64, at most as many axes as training rows or features.
    """
    rows, width = X.shape
    if width <= min(rows, COLUMNS_AT_ONCE):
        part, scales = _scaled(X, folds)
        for (train, held_out), scale in zip(folds, scales, strict=True):
            Z = part.astype(np.float64) * scale
            Z -= Z[train].mean(axis=0)
            axes = np.linalg.eigh(Z[train].T @ Z[train])[1]
            yield Z[train] @ axes, Z[held_out] @ axes
        return
    grams = [np.zeros((rows, rows)) for _ in folds]
    for at in range(0, width, COLUMNS_AT_ONCE):
        part, scales = _scaled(X[:, at : at + COLUMNS_AT_ONCE], folds)
        for gram, scale in zip(grams, scales, strict=True):
            Z = part * scale
            gram += Z @ Z.T
    for (train, held_out), gram in zip(folds, grams, strict=True):
        from_mean = gram[:, train].mean(axis=1)
        gram -= from_mean[:, None] + from_mean - from_mean[train].mean()
        lengths, axes = np.linalg.eigh(gram[np.ix_(train, train)])
        kept = lengths > 1e-9 * lengths[-1]
        axes, roots = axes[:, kept], np.sqrt(lengths[kept])
        yield axes * roots, gram[np.ix_(held_out, train)] @ axes / roots


def _scaled(X: np.ndarray, folds: Folds) -> tuple[np.ndarray, np.ndarray]:
    """Return features float32 (row, feature) near zero, and what scales them (fold, feature).

    The scale is 1 / standard deviation over the training rows of the fold, and 0 for a feature
    that is constant there.
    """
    part = X.astype(np.float32)
    part -= part.mean(axis=0)  # of no effect but on rounding: each fold takes its own mean away
    shares = np.zeros((len(folds), len(X)), np.float32)
    for share, (train, _) in zip(shares, folds, strict=True):
        share[train] = 1 / len(train)
    squares = shares @ np.square(part)
    variances = squares - np.square(shares @ part)
    varies = variances > 1e-5 * squares
    return part, np.where(varies, 1 / np.sqrt(np.where(varies, variances, 1)), 0)


def _ridge(train: np.ndarray, held_out: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Predict held-out rows (row, target) by ridge with the penalty of the best leave-one-out.

    The axes of the training rows do not correlate, so that each coefficient stands alone.
    """
    lengths = np.square(train).sum(axis=0)
    mean = y.mean(axis=0)
    found = []
    for penalty in np.array(PROBE_PENALTIES) * (lengths.sum() / len(train) or 1.0):
        coefficients = train.T @ (y - mean) / (lengths + penalty)[:, None]
        leverage = 1 / len(train) + (np.square(train) / (lengths + penalty)).sum(axis=1)
        left_out = (y - mean - train @ coefficients) / (1 - leverage)[:, None]
        found.append((float(np.square(left_out).mean()), coefficients))
    return held_out @ min(found, key=lambda each: each[0])[1] + mean


def _folds(y: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> Folds:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    classes = y.dtype.kind == "i"
    if groups is not None:
        folds = min(folds, len(np.unique(groups)))
        if folds < 2:
            return []
        splitter = StratifiedGroupKFold if classes else GroupKFold
        return list(splitter(folds, shuffle=True, random_state=seed).split(y, y, groups))
    folds = min(folds, len(y))
    if folds < 2:
        return []
    smallest = int(np.unique(y, return_counts=True)[1].min()) if classes else 0
    splitter = StratifiedKFold if smallest >= folds else KFold
    return list(splitter(folds, shuffle=True, random_state=seed).split(y, y))
