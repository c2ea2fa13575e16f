"""Which layer is worth a head: a quick linear probe on each stored layer of a data set."""

from __future__ import annotations

import warnings
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
# A probe reads at most this many numbers of a layer, which takes some 1.5 GB: if one is very wide,
# all are probed on fewer rows, down to this floor.
PROBE_VALUES = 50_000_000
FEWEST_PROBE_ROWS = 200
# For each feature of a row; the probe takes the best by leave-one-out.
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

    The probe is scikit-learn's ridge on standardized features, its penalty chosen by leave-one-out,
    measured by cross-validation on training rows alone (by group, if there are groups). Means,
    deviations and penalty are those of a fold's training rows. All layers are probed on the same
    rows and folds. The first rows of content order are a fair sample, so that no more is read than
    is used.

    Parameters
    ----------
    store : FeatureStore
    dataset : str
        A name, or a path that was scanned.
    model : str, optional
        Only layers of this backbone.
    rows : int
        Most training rows to use; fewer are used if one of the layers is very wide.
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
        If the data set has no labels, or too few to learn from.
    NotFoundError
        If the store has no features of the data set, or of the model.
    IncompleteFeaturesError
        If none of them are complete. Otherwise incomplete ones are left out, with a warning.
    """
    asked = stored(store, dataset, model=model, **variant)
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
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = y.dtype.kind == "i"
    ridge = (RidgeClassifierCV if classes else RidgeCV)(np.array(PROBE_PENALTIES) * X.shape[1])
    probe = make_pipeline(StandardScaler(copy=False), ridge)
    scores: list[float | None] = []
    for train, held_out in folds:
        if classes and len(np.unique(y[train])) < 2:
            continue
        probe.fit(X[train].astype(np.float32), y[train])
        predicted, truth = probe.predict(X[held_out].astype(np.float32)), y[held_out]
        if classes:
            scores.append(float((predicted == truth).mean()))
        else:
            scores.append(metrics.regression(truth, predicted)["r2"])
    return [score for score in scores if score is not None]


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
