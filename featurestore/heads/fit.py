"""Fitting heads on stored features: check, read once, fit, measure, save."""

from __future__ import annotations

import json
import operator
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from featurestore.errors import DamagedError, HeadError, received
from featurestore.features import Features
from featurestore.heads.candidate import Candidate, candidate, shown
from featurestore.heads.estimator import fit_estimator
from featurestore.heads.events import HeadFitted, HeadReused, HeadWarned
from featurestore.heads.head import Head
from featurestore.heads.identity import foreign
from featurestore.heads.metrics import measure
from featurestore.heads.notes import Notes
from featurestore.heads.refit import fitted_again
from featurestore.heads.rows import Rows, check_labels
from featurestore.heads.schema import validate
from featurestore.listening import OnEvent, receiver
from featurestore.quiet import load_tensorflow
from featurestore.store.variants import part_of
from featurestore.versions import versions


def fit_head(
    features: Features | Mapping[str, Features],
    estimator: Any,
    params: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    save: bool = True,
    callbacks: Sequence[Any] = (),
    name: str | None = None,
    tags: Sequence[str] = (),
    note: str | None = None,
    on_event: OnEvent | None = None,
) -> Head:
    """Fit a head on the training rows of stored features and their views; measure it on all splits.

    It is measured on the plain rows alone.

    The same head on the same features, labels and splits is fitted once; later calls load it from
    the store.

    Parameters
    ----------
    features : Features
        Of a labelled data set; or what `extract` gave for one layer.
    estimator : str, scikit-learn estimator or keras.Model
        A ready-made name (see docs/heads.md); the import path of an estimator, or the class name
        of one of scikit-learn's; several joined by ``+`` for a pipeline; an estimator or pipeline;
        or a Keras model of Keras' own layers with outputs (row, class), built or not, compiled or
        not.
        Objects are copied, not changed.
    params : mapping, optional
        Parameters of the estimator. In a pipeline, they belong to the last step;
        ``step__parameter`` sets those of the others. A Keras model takes those of
        `featurestore.heads.network.TrainingOptions`.
    seed : int
        For everything random: each ``random_state`` that is None, initial weights, dropout, order
        of rows.
    save : bool
        Whether to save the head in the features' store. Of an estimator that cannot be loaded
        without running foreign code (XGBoost, a class of yours) everything but the estimator is
        saved: see `Head.portable`.
    callbacks : sequence of keras.callbacks.Callback
        For a Keras head. What they do cannot be compared, so that a head that is trained with some
        gets an id of its own, and is never taken from the store for another call.
    name, tags, note : str, sequence of str, str, optional
        To find the head again. They do not decide its id: `annotate` changes them later, and a
        head that is taken from the store gets them too.
    on_event : callable, optional
        Receives each `HeadEvent`.

    Returns
    -------
    Head

    Raises
    ------
    HeadError
        If the head or a parameter is unknown, if no head can learn from the labels, or if the
        estimator is to be saved and has no identity, such as one with a lambda.
    IncompleteFeaturesError, DamagedError
        If rows were never extracted, or cannot be read.

    Examples
    --------
    >>> head = fit_head(pooled, "logistic", {"C": 0.1})  # doctest: +SKIP
    >>> head.metrics["val"]["accuracy"]  # doctest: +SKIP
    0.93
    """
    options: dict[str, Any] = {"seed": seed, "save": save, "callbacks": callbacks}
    options |= {"name": name, "tags": tags, "note": note}
    return fit_heads(features, [(estimator, params)], on_event=on_event, **options)[0]


def fit_heads(
    features: Features | Mapping[str, Features],
    wanted: Iterable[Any],
    *,
    seed: int = 0,
    save: bool = True,
    callbacks: Sequence[Any] = (),
    name: str | None = None,
    tags: Sequence[str] = (),
    note: str | None = None,
    on_event: OnEvent | None = None,
) -> list[Head]:
    """Fit several heads on one layer's features, which are read once.

    Parameters
    ----------
    features : Features
        Of a labelled data set.
    wanted : iterable of estimators, or of (estimator, params)
        As `fit_head` takes them. All are checked before the first is fitted.
    seed, save, callbacks, name, tags, note, on_event
        As in `fit_head`.

    Returns
    -------
    list of Head
        In the order of ``wanted``.
    """
    notes = Notes.parse(name, tags, note)
    features, seed = _of_one_layer(features), _index(seed)
    check_labels(features.dataset)
    if hasattr(callbacks, "on_epoch_end"):  # one, as Keras takes it
        callbacks = [callbacks]
    if isinstance(wanted, str | Mapping) or not isinstance(wanted, Iterable):
        raise HeadError(
            f"the heads are {received(wanted)}; expected a list such as ['knn', ('ridge', "
            "{'alpha': 3})]"
        )
    candidates = [candidate(*_pair(each), features, seed, callbacks) for each in wanted]
    for each in candidates:
        if save and each.nameless:
            raise HeadError(f"head {each.name!r}: {each.nameless}; or fit it with save=False")
    rows = Rows(features)
    rows.check_completed()
    fitting = _Fitting(rows, seed, save, callbacks, notes, receiver(on_event))
    heads: dict[str, Head] = {}
    dataset, store = features.dataset, features.store
    if save and not all(store.heads.has(each.id) for each in candidates):
        store.heads.check_writable()
    kept = store.datasets.keep(dataset) if save else nullcontext()
    in_use = [each.key for each in (features, *features.views)]
    with store.features.lock(in_use, shared=True), kept:
        for each in candidates:
            if each.id not in heads:
                # Another process that fits this head holds the lock until it is stored.
                with store.heads.lock([each.id]):
                    heads[each.id] = fitting.head(each)
    return [heads[each.id] for each in candidates]


def _of_one_layer(features: Any) -> Features:
    layers = list(features.values()) if isinstance(features, Mapping) else [features]
    if len(layers) > 1:
        raise HeadError(
            f"these are the features of {len(layers)} layers, {', '.join(map(str, features))}; "
            f"give those of one, such as features[{next(iter(features))!r}]"
        )
    if layers and isinstance(layers[0], Features):
        return layers[0]
    raise HeadError(
        f"the features are {received(features)}; expected those of one layer: "
        "extract(…)['LAYER'], or Features.open(DATASET, 'LAYER')"
    )


def _index(seed: Any) -> int:
    try:
        return operator.index(seed)
    except TypeError:
        raise HeadError(f"the seed is {received(seed)}; expected an integer") from None


def _pair(wanted: Any) -> tuple[Any, Mapping[str, Any] | None]:
    estimator, params = wanted if isinstance(wanted, tuple) and len(wanted) == 2 else (wanted, None)
    if params is not None and not isinstance(params, Mapping):
        raise HeadError(
            f"the parameters are {received(params)}; expected a dict such as {{'C': 1}}"
        )
    return estimator, params


@dataclass(frozen=True)
class _Fitting:
    """What the heads of one call share."""

    rows: Rows
    seed: int
    save: bool
    callbacks: Sequence[Any]
    notes: Notes
    on_event: OnEvent

    def head(self, each: Candidate) -> Head:
        """Load a head from the store, or else fit it."""
        store = self.rows.features.store
        if store.heads.has(each.id):
            try:
                head = Head.load(each.id, store)
            except DamagedError:
                pass  # It is fitted again.
            else:
                changes = self.notes.changes(head.document())
                if self.save:
                    if changes:
                        store.heads.update(head.id, lambda now: self.notes.changes(validate(now)))
                    store.heads.fsync(head.id)
                head = replace(head, **{**changes, "tags": tuple(changes.get("tags", head.tags))})
                self.on_event(HeadReused(head.id))
                return head if head.portable else fitted_again(head, each, self.rows)
        head = self._fit(each)
        if self.save:
            head.save(store)
        return head

    def _fit(self, each: Candidate) -> Head:
        started = time.perf_counter()
        rows, features = self.rows, self.rows.features
        problems = rows.problems()
        history: dict[str, list[float]] = {}
        if each.kind == "keras":
            load_tensorflow()
            from featurestore.heads.training import train

            estimator, history = train(
                each.template,
                rows,
                seed=self.seed,
                head=each.id,
                callbacks=self.callbacks,
                on_event=self.on_event,
            )
            classes = tuple(features.classes)
        else:
            estimator, classes, warned = fit_estimator(each, rows)
            problems += warned
        for text in problems:
            self.on_event(HeadWarned(each.id, text))
        head = Head(
            id=each.id,
            name=self.notes.name or each.name,
            kind=each.kind,
            _fit=lambda: estimator,
            task=rows.task,
            classes=classes,
            shape=features.shape[1:],
            params=each.params,
            seed=self.seed,
            metrics={},
            history=history,
            problems=tuple(problems),
            lineage=_lineage(features, each),
            portable=each.portable,
            best_params=_best_params(estimator),
            tags=tuple(self.notes.tags),
            note=self.notes.note or "",
            store=features.store,
        )
        metrics = measure(head, rows)
        seconds = time.perf_counter() - started
        head = replace(
            head, metrics=metrics, lineage={**head.lineage, "seconds": round(seconds, 3)}
        )
        self.on_event(HeadFitted(head.id, head.metrics, seconds))
        return head


def _best_params(estimator: Any) -> dict[str, Any]:
    found = getattr(estimator, "best_params_", None) or {}
    return {name: shown(value, name) for name, value in found.items()}


def _views(features: Features) -> dict[str, Any]:
    """Return the views that a head was fitted on too, as JSON values."""
    if not features.views:
        return {}
    from featurestore.backbone.augmentation import settings

    layers = part_of(features.views[0].group.provenance, "backbone").get("augmentation") or []
    return {
        "views": {
            "augmentation": json.loads(settings(layers)),
            "dataset_digest": features.views[0].key.dataset_digest,
            "prefix_digests": [each.key.prefix_digest for each in features.views],
        }
    }


def _lineage(features: Features, each: Candidate) -> dict[str, Any]:
    """Return the origin of a head as JSON values."""
    key, dataset, provenance = features.key, features.dataset, features.group.provenance
    partial = {} if features.blocks is None else {"rows": len(features)}
    return {
        "features": {
            "key": str(key),
            "model": key.model,
            "ref": key.ref,
            "prefix_digest": key.prefix_digest,
            "dataset_digest": key.dataset_digest,
            "dtype": str(features.dtype),
            **partial,
            **_views(features),
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
        "versions": versions(*foreign(each.fields)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
