"""Fitting heads on stored features: check, decide, read once, fit, measure, keep."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import DamagedError, HeadError, one_line
from featurestore.heads import metrics
from featurestore.heads.candidate import Candidate, candidate, checked_seed
from featurestore.heads.events import (
    EpochEnded,
    HeadEvent,
    HeadFitted,
    HeadReused,
    HeadStarted,
    HeadWarned,
    OnEvent,
)
from featurestore.heads.head import Head
from featurestore.heads.rows import SPLITS, Rows

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.features import Features

# What to fit: a name, estimator or model, alone or with its parameters.
Wanted = Any


def fit_head(
    features: Features,
    estimator: Any,
    params: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    save: bool = True,
    on_event: OnEvent | None = None,
) -> Head:
    """Fit a head on the training rows of stored features, and measure it on every split.

    The same head on the same features, labels and splits is fitted once: asked for again, it is
    loaded from the store.

    Parameters
    ----------
    features : Features
        Of a labelled data set.
    estimator : str, scikit-learn estimator or keras.Model
        A ready-made name (see `featurestore.heads.READY`); the class name or import path of a
        scikit-learn estimator, several joined by ``+`` for a pipeline; an estimator or pipeline;
        or a Keras model of Keras' own layers that gives (row, class), built or not, compiled or
        not. What is passed is not changed.
    params : mapping, optional
        Parameters of the estimator; of the last step of a pipeline, or ``step__parameter`` of
        any. A Keras model takes ``epochs``, ``batch_size`` and ``learning_rate``.
    seed : int
        Of everything random: ``random_state`` where it is None, initial weights, dropout, order.
    epochs, batch_size : int, optional
        Of a Keras head; the same as in ``params``.
    save : bool
        Whether to keep the head in the features' store.
    on_event : callable, optional
        Receives each `HeadEvent`.

    Returns
    -------
    Head

    Raises
    ------
    HeadError
        For an unknown head or parameter; for labels that nothing can be learnt from; for an
        estimator that cannot be stored without pickle.
    IncompleteFeaturesError, DamagedError
        If rows were never extracted, or cannot be read.

    Examples
    --------
    >>> head = fit_head(pooled, "logistic", {"C": 0.1})  # doctest: +SKIP
    >>> head.metrics["val"]["accuracy"]  # doctest: +SKIP
    0.93
    """
    given = {"epochs": epochs, "batch_size": batch_size}
    given = {key: each for key, each in given.items() if each is not None}
    if given:
        params = {**(params or {}), **given}
    return fit_heads(features, [(estimator, params)], seed=seed, save=save, on_event=on_event)[0]


def fit_heads(
    features: Features,
    wanted: Sequence[Wanted],
    *,
    seed: int = 0,
    save: bool = True,
    on_event: OnEvent | None = None,
) -> list[Head]:
    """Fit several heads on one layer's features, which are read once.

    Parameters
    ----------
    features : Features
        Of a labelled data set.
    wanted : sequence of (estimator, params), or of estimators
        As `fit_head` takes them. All are checked before the first is fitted.
    seed, save, on_event
        As in `fit_head`.

    Returns
    -------
    list of Head
        In the order of ``wanted``.
    """
    check_labels(features.dataset)
    tell = on_event or _ignore
    seed = checked_seed(seed)
    pairs = [each if isinstance(each, tuple | list) else (each, None) for each in wanted]
    candidates = [candidate(each, params, features, seed) for each, params in pairs]
    rows = Rows(features)
    _check_completed(rows)
    heads: dict[str, Head] = {}
    left = list({each.id: each for each in candidates}.values())
    dataset, store = features.dataset, features.store
    if save and not all(store.has_head(each.id) for each in left):
        store.check_writable()
    with store.fitting_on(features.key, dataset.name, dataset.manifest_digest):
        if save:
            store.keep_manifest(dataset)  # Never added, or gc was quicker.
        # Other processes may fit some of them: those come last, and are then stored.
        while left:
            others = []
            for each in left:
                with store.claim_head(each.id) as mine:
                    if mine:
                        heads[each.id] = _stored_or_fitted(each, rows, seed, save, tell)
                    else:
                        others.append(each)
            if others:
                with store.claim_head(others[0].id, wait=True):
                    pass
            left = others
    return [heads[each.id] for each in candidates]


def _stored_or_fitted(each: Candidate, rows: Rows, seed: int, save: bool, tell: OnEvent) -> Head:
    head = _stored(each, rows.features)
    if head is not None:
        if save:
            rows.features.store.settle_head(head.id)
        tell(HeadReused(head.id))
        return head
    head = _fit(each, rows, seed, tell)
    if save:
        head.save(rows.features.store)
    return head


def _ignore(event: HeadEvent) -> None:
    pass


def check_labels(dataset: Dataset) -> None:
    """Raise HeadError where no head can be learnt from the labels of a data set."""
    again = "`featurestore scan`"
    if dataset.task is None:
        raise HeadError(
            f"data set {dataset.name!r} has no labels, which heads learn from; scan a folder with "
            f"a sub-folder for each class, or a table with a column of labels, with {again}"
        )
    train = dataset.rows("train", labelled=True)
    if not len(train):
        raise HeadError(
            f"data set {dataset.name!r} has no labelled rows in its train split; "
            f"split it again with {again} --val F --test F"
        )
    if dataset.task == "regression":
        return
    targets = dataset.targets[dataset.rows(labelled=True)]
    counts = np.bincount(targets, minlength=len(dataset.classes))
    lone = [str(name) for name, count in zip(dataset.classes, counts, strict=True) if count < 2]
    if len(dataset.classes) > 1 and lone:
        raise HeadError(
            f"data set {dataset.name!r} has a single sample of class {', '.join(lone)}; a class "
            "needs two, one to learn from and one to be measured on: add samples or remove the "
            f"class, then run {again}"
        )
    seen = np.unique(dataset.targets[train])
    if len(seen) < 2:
        only = dataset.classes[int(seen[0])]
        raise HeadError(
            f"the train split of data set {dataset.name!r} has one class, {str(only)!r}; a head "
            f"needs two to tell apart: add samples, or split again with {again} --val F --seed N"
        )


def _check_completed(rows: Rows) -> None:
    """Raise HeadError where the rows that exist are too few to learn from."""
    features = rows.features
    learnt = len(np.unique(rows.targets("train")))
    if features.blocks is not None and learnt < (2 if rows.task == "classification" else 1):
        raise HeadError(
            f"{features.key}: of {features.group.shape[0]} rows {len(features)} exist, and their "
            f"training labels are too few to learn from; run `{features.group.extract_command}`"
        )


def _stored(each: Candidate, features: Features) -> Head | None:
    if not features.store.has_head(each.id):
        return None
    try:
        return Head.load(features.store, each.id)
    except DamagedError:
        # Fitting is the way out that the error would name.
        return None


def _fit(each: Candidate, rows: Rows, seed: int, tell: OnEvent) -> Head:
    started = time.perf_counter()
    tell(HeadStarted(each.id, rows.count("train")))
    problems: list[str] = _completed(rows.features) + _unseen(rows)
    history: dict[str, list[float]] = {}
    if each.kind == "keras":
        estimator, history = _fit_keras(each, rows, seed, tell)
        classes = tuple(rows.features.classes)
    else:
        estimator = _fit_sklearn(each, rows, problems)
        classes = () if rows.task == "regression" else _columns(estimator, rows)
    for text in problems:
        tell(HeadWarned(each.id, text))
    unmeasured = Head(
        id=each.id,
        name=each.name,
        kind=each.kind,
        estimator=estimator,
        task=rows.task,
        classes=classes,
        shape=rows.features.shape[1:],
        params=each.params,
        seed=seed,
        metrics={},
        history=history,
        problems=tuple(problems),
        lineage=lineage(rows.features, each),
        store=rows.features.store,
    )
    measured = measure(unmeasured, rows)
    seconds = time.perf_counter() - started
    origin = {**unmeasured.lineage, "seconds": round(seconds, 3)}
    head = replace(unmeasured, metrics=measured, lineage=origin)
    tell(HeadFitted(head.id, head.metrics, seconds))
    return head


def _columns(estimator: Any, rows: Rows) -> tuple[Any, ...]:
    """Return what the columns of a fitted classifier's scores stand for."""
    classes = getattr(estimator, "classes_", None)
    seen = np.unique(rows.labels("train")) if classes is None else np.asarray(classes)
    return tuple(seen.tolist())


def _completed(features: Features) -> list[str]:
    if features.blocks is None:
        return []
    return [
        f"fitted and measured on the {len(features)} of {features.group.shape[0]} rows that existed"
    ]


def _unseen(rows: Rows) -> list[str]:
    classes = rows.features.classes
    if not classes:
        return []
    lacking = sorted(set(range(len(classes))) - set(np.unique(rows.targets("train")).tolist()))
    if not lacking:
        return []
    names = ", ".join(str(classes[code]) for code in lacking)
    return [f"the train split has no sample of class {names}, which will never be predicted"]


def _fit_keras(
    each: Candidate, rows: Rows, seed: int, tell: OnEvent
) -> tuple[Any, dict[str, list[float]]]:
    from featurestore.heads.training import train

    epochs = each.template.epochs

    def on_epoch(epoch: int, logs: dict[str, float]) -> None:
        tell(EpochEnded(each.id, epoch, epochs, logs))

    return train(each.template, rows, seed=seed, on_epoch=on_epoch)


def _fit_sklearn(each: Candidate, rows: Rows, problems: list[str]) -> Any:
    from sklearn.base import clone

    X, y = rows.flat("train"), rows.labels("train")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator = clone(each.template).fit(X, y)
            # Some mistakes, such as more neighbours than rows, show at the first prediction.
            estimator.predict(X[:1])
        except Exception as error:  # scikit-learn's estimators raise a dozen kinds
            raise HeadError(
                f"head {each.name!r} cannot be fitted: {one_line(error, 300)}"
            ) from error
    texts = [" ".join(str(warning.message).split()) for warning in caught]
    problems.extend(text[:300] for text in dict.fromkeys(texts))
    return estimator


def measure(head: Head, rows: Rows) -> dict[str, dict[str, Any]]:
    """Measure a head on every split that has labelled rows: metrics by split."""
    found = {}
    for split in SPLITS:
        if not rows.count(split):
            continue
        parts = [_predicted(head, part, split) for part in rows.parts(split)]
        predicted = np.concatenate([part for part, _ in parts])
        truth = rows.labels(split)
        if head.task == "regression":
            found[split] = metrics.regression(truth, predicted)
            continue
        columns = [part for _, part in parts if part is not None]
        probabilities = np.concatenate(columns) if columns else None
        found[split] = metrics.classification(
            truth, predicted, probabilities, head.classes, rows.features.classes
        )
    return found


def _predicted(
    head: Head, features: np.ndarray, split: str
) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        probabilities = head.predict_proba(features)
        if head.kind == "keras" and probabilities is not None:
            predicted = np.asarray(head.classes)[probabilities.argmax(axis=1)]
        else:
            predicted = head.predict(features)
    except Exception as error:  # as when a row has no neighbour within the radius
        raise HeadError(
            f"head {head.name!r} cannot predict the {split} split: {one_line(error, 300)}"
        ) from error
    for numbers in (predicted, probabilities):
        if numbers is not None and numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
            raise HeadError(
                f"head {head.name!r} predicts NaN or infinity on the {split} split; change its "
                "parameters, or take another head"
            )
    return predicted, probabilities


def lineage(features: Features, each: Candidate) -> dict[str, Any]:
    """Return where a head comes from, as JSON values."""
    from featurestore.versions import versions

    key, dataset, provenance = features.key, features.dataset, features.group.provenance
    partly = {} if features.blocks is None else {"rows": len(features)}
    return {
        "features": {
            "key": str(key),
            "model": key.model,
            "ref": key.ref,
            "prefix_digest": key.prefix_digest,
            "dataset_digest": key.dataset_digest,
            "dtype": str(features.dtype),
            **partly,
        },
        "dataset": {
            "name": dataset.name,
            "digest": dataset.digest,
            "manifest_digest": dataset.manifest_digest,
            "rows": len(dataset),
        },
        "backbone": provenance.get("backbone"),
        "prefix": provenance.get("prefix"),
        "estimator": each.fields,
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
