"""Fitting heads on stored features: check, read once, fit, measure, save."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from featurestore.errors import HeadError, received
from featurestore.features import Features
from featurestore.heads.banks import banks
from featurestore.heads.candidate import Candidate, candidate
from featurestore.heads.fitting import Fitting
from featurestore.heads.folds import CrossValidation
from featurestore.heads.head import Head
from featurestore.heads.notes import Notes
from featurestore.heads.persist import dump_sklearn
from featurestore.heads.rows import Rows, check_labels
from featurestore.listening import OnEvent, receiver


def fit_head(
    features: Features | Mapping[str, Features],
    estimator: Any,
    params: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    save: bool = True,
    callbacks: Sequence[Any] = (),
    label: str | None = None,
    tags: Sequence[str] = (),
    note: str | None = None,
    folds: int | None = None,
    seeds: int = 1,
    on_event: OnEvent | None = None,
) -> Head:
    """Fit a head on the training rows of stored features; measure it on all splits.

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
        Whether to save the head in the features' store. To load an estimator of another library
        or of your own again, name what you trust: see `Head.load`.
    callbacks : sequence of keras.callbacks.Callback
        For a Keras head. What they do cannot be compared, so that a head that is trained with some
        gets an id of its own, and is never taken from the store for another call.
    label, tags, note : str, sequence of str, str, optional
        To find the head again. They do not decide its id: `annotate` changes them later, and a
        head that is taken from the store gets them too.
    folds : int, optional
        Cross-validate the head on this many folds of the training rows, by class and by group. The
        head itself is fitted on all training rows, as without folds: see `Head.folds`. No row of
        another split is used but for early stopping.
    seeds : int
        Repeat the cross-validation with this many seeds, from ``seed`` on.
    on_event : callable, optional
        Receives each `HeadEvent`.

    Returns
    -------
    Head

    Raises
    ------
    HeadError
        If the head or a parameter is unknown, if no head can learn from the labels, if the
        training rows are too few for the folds, or if the estimator is to be saved and has no
        identity, such as one with a lambda.
    IncompleteFeaturesError, DamagedError
        If rows were never extracted, or cannot be read.

    Examples
    --------
    >>> head = fit_head(pooled, "logistic", {"C": 0.1})  # doctest: +SKIP
    >>> head.metrics["val"]["accuracy"]  # doctest: +SKIP
    0.93
    """
    options: dict[str, Any] = {"seed": seed, "save": save, "callbacks": callbacks}
    options |= {"label": label, "tags": tags, "note": note, "folds": folds, "seeds": seeds}
    return fit_heads(features, [(estimator, params)], on_event=on_event, **options)[0]


def fit_heads(
    features: Features | Mapping[str, Features],
    wanted: Iterable[Any],
    *,
    seed: int = 0,
    save: bool = True,
    callbacks: Sequence[Any] = (),
    label: str | None = None,
    tags: Sequence[str] = (),
    note: str | None = None,
    folds: int | None = None,
    seeds: int = 1,
    on_event: OnEvent | None = None,
) -> list[Head]:
    """Fit several heads on one layer's features, which are read once.

    Logistic or ridge heads that differ in their penalty only are fitted together, many times
    faster than one after the other.

    Parameters
    ----------
    features : Features
        Of a labelled data set.
    wanted : iterable of estimators, or of (estimator, params)
        As `fit_head` takes them. All are checked before the first is fitted.
    seed, save, callbacks, label, tags, note, folds, seeds, on_event
        As in `fit_head`.

    Returns
    -------
    list of Head
        In the order of ``wanted``.

    Raises
    ------
    HeadError
        Of the first head that cannot be fitted, once all others are.
    """
    options: dict[str, Any] = {"seed": seed, "save": save, "callbacks": callbacks}
    options |= {"label": label, "tags": tags, "note": note, "folds": folds, "seeds": seeds}
    heads = []
    for head in try_heads(features, wanted, strict=True, on_event=on_event, **options):
        if isinstance(head, HeadError):
            raise head
        heads.append(head)
    return heads


def try_heads(
    features: Any,
    wanted: Iterable[Any],
    *,
    strict: bool = False,
    seed: int = 0,
    save: bool = True,
    callbacks: Sequence[Any] = (),
    label: str | None = None,
    tags: Sequence[str] = (),
    note: str | None = None,
    folds: int | None = None,
    seeds: int = 1,
    on_event: OnEvent | None = None,
) -> list[Head | HeadError]:
    """Fit heads as `fit_heads`; one that cannot be fitted is returned as its HeadError.

    With ``strict``, a mistake in one of them is raised before any is fitted.
    """
    features, seed = _of_one_layer(features), _index(seed)
    check_labels(features.dataset)
    if hasattr(callbacks, "on_epoch_end"):  # one, as Keras takes it
        callbacks = [callbacks]
    if isinstance(wanted, str | Mapping) or not isinstance(wanted, Iterable):
        raise HeadError(
            f"the heads are {received(wanted)}; expected a list such as ['knn', ('ridge', "
            "{'alpha': 3})]"
        )
    validation = CrossValidation.parse(folds, seeds)
    # For each seed, as the first is the head's own.
    repeated: list[list[Candidate] | HeadError] = []
    for pair in map(_pair, wanted):
        try:
            seeded = [
                candidate(*pair, features, seed + more, callbacks)
                for more in range(validation.seeds)
            ]
            if save and (reason := seeded[0].nameless):
                raise HeadError(f"head {seeded[0].name!r}: {reason}; or fit it with save=False")
            if save and seeded[0].kind == "sklearn":
                dump_sklearn(seeded[0].template, seeded[0].name)  # It can be stored.
            repeated.append(seeded)
        except HeadError as error:
            if strict:
                raise
            repeated.append(error)
    by_id = {asked[0].id: asked for asked in repeated if not isinstance(asked, HeadError)}
    rows = Rows(features)
    rows.check_completed()
    parts = [
        validation.split(rows, seed + more)
        for more in range(validation.seeds if validation.folds else 0)
    ]
    notes = Notes.parse(label, tags, note)
    fitting = Fitting(rows, validation, parts, by_id, save, callbacks, notes, receiver(on_event))
    heads: dict[str, Head | HeadError] = {}
    dataset, store = features.dataset, features.store
    if save and not all(map(store.heads.has, by_id)):
        store.heads.check_writable()
    kept = store.datasets.keep(dataset) if save else nullcontext()
    in_use = [features.key]
    with store.features.lock(in_use, shared=True), kept:
        for bank in banks(each for each, *_ in by_id.values()):
            # Another process that fits one of these heads holds the lock until it is stored.
            ids = [each.id for each in bank.members]
            with store.heads.lock(ids, shared=True), store.heads.lock_work(ids):
                heads |= fitting.heads(bank)
    return [asked if isinstance(asked, HeadError) else heads[asked[0].id] for asked in repeated]


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
