"""Fitting heads on stored features: check, read once, fit, measure, save."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from featurestore.errors import FeatureStoreWarning, HeadError, StoreError, received
from featurestore.features import Features
from featurestore.heads.candidate import Candidate, candidate
from featurestore.heads.fitting import FitOptions, Fitting
from featurestore.heads.head import Head
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
    label: str | None = None,
    tags: Sequence[str] = (),
    note: str | None = None,
    folds: int | None = None,
    seeds: int = 1,
    on_event: OnEvent | None = None,
) -> Head:
    """Fit a head on the training rows of stored features; measure it on all splits.

    The same head on the same features, labels and splits is fitted once; later calls load it from
    the store.

    Parameters
    ----------
    features : Features
        Of a labelled data set; or what `extract` gave for one layer.
    estimator : str, scikit-learn estimator or keras.Model
        A ready-made name (see docs/heads.md); the import path of an estimator, or the class name
        of one of scikit-learn's; several joined by ``+`` for a pipeline; an estimator or pipeline;
        or a Keras model of Keras' own layers with outputs (row, class), built or not. Objects are
        copied, not changed.
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
    options: dict[str, Any] = {"seed": seed, "save": save, "folds": folds, "seeds": seeds}
    options |= {"label": label, "tags": tags, "note": note}
    return fit_heads(features, [(estimator, params)], on_event=on_event, **options)[0]


def fit_heads(
    features: Features | Mapping[str, Features],
    wanted: Iterable[Any],
    *,
    on_event: OnEvent | None = None,
    **options: Any,
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
    on_event : callable, optional
    **options
        ``seed``, ``save``, ``label``, ``tags``, ``note``, ``folds``, ``seeds``, as in `fit_head`.

    Returns
    -------
    list of Head
        In the order of ``wanted``.

    Raises
    ------
    HeadError
        Of the first head that cannot be fitted, once all others are.
    """
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
    on_event: OnEvent | None = None,
    **options: Any,
) -> list[Head | HeadError]:
    """Fit heads as `fit_heads`; one that cannot be fitted is returned as its HeadError.

    With ``strict``, a mistake in one of them is raised before any is fitted.
    """
    features, chosen = _of_one_layer(features), FitOptions.of(options)
    check_labels(features.dataset)
    if isinstance(wanted, str | Mapping) or not isinstance(wanted, Iterable):
        raise HeadError(
            f"the heads are {received(wanted)}; expected a list such as ['knn', ('ridge', "
            "{'alpha': 3})]"
        )
    candidates: list[Candidate | HeadError] = []
    for estimator in wanted:
        try:
            candidates.append(_candidate(estimator, features, chosen))
        except HeadError as error:
            if strict:
                raise
            candidates.append(error)
    rows = Rows(features)
    rows.check_completed()
    unique = {head.id: head for head in candidates if isinstance(head, Candidate)}
    heads = Fitting(rows, chosen, receiver(on_event)).heads(unique.values())
    return [head if isinstance(head, HeadError) else heads[head.id] for head in candidates]


def _candidate(estimator: Any, features: Features, options: FitOptions) -> Candidate:
    params = None
    if isinstance(estimator, tuple) and len(estimator) == 2:
        estimator, params = estimator
    if params is not None and not isinstance(params, Mapping):
        raise HeadError(
            f"the parameters are {received(params)}; expected a dict such as {{'C': 1}}"
        )
    head = candidate(estimator, params, features, options.seed)
    if options.save and head.nameless:
        raise HeadError(f"head {head.name!r}: {head.nameless}; or fit it with save=False")
    if options.save and head.kind == "sklearn":
        dump_sklearn(head.template, head.name)  # It can be stored.
    return head


def _of_one_layer(features: Any) -> Features:
    layers = list(features.values()) if isinstance(features, Mapping) else [features]
    if len(layers) == 1 and isinstance(layers[0], Features):
        return layers[0]
    raise HeadError(
        f"the features are {received(features)}",
        "those of one layer",
        "such as extract(…)['LAYER'], or Features.open(DATASET, 'LAYER')",
    )


def fit_each(
    requests: Iterable[tuple[Features, dict[str, Any], tuple[str, dict[str, Any]]]],
    on_event: OnEvent | None = None,
    *,
    strict: bool = True,
) -> tuple[list[Head], list[dict[str, Any]]]:
    """Fit heads of several layers and options; those with the same are fitted by one call.

    Parameters
    ----------
    requests : iterable of (Features, options, (name, params))
        The options are those of `fit_heads`.
    strict : bool
        Whether an error of all heads of a call is raised, such as missing features.

    Returns
    -------
    heads : list of Head
    failed : list of dict
        ``estimator``, ``params``, ``seed``, ``model``, ``layer`` and ``error`` of each head that
        cannot be fitted. A FeatureStoreWarning says so, too.
    """
    calls: dict[str, tuple[Features, dict[str, Any], list[tuple[str, dict[str, Any]]]]] = {}
    for features, options, pair in requests:
        same = json.dumps([str(features.key), options], sort_keys=True)
        calls.setdefault(same, (features, options, []))[2].append(pair)
    heads: list[Head] = []
    failed: list[dict[str, Any]] = []
    for features, options, pairs in calls.values():
        results: Sequence[Head | Exception]
        try:
            results = try_heads(features, pairs, on_event=on_event, **options)
        except (HeadError, StoreError) as error:  # Of these features, or these folds.
            if strict:
                raise
            results = [error] * len(pairs)
        for (name, params), head in zip(pairs, results, strict=True):
            if isinstance(head, Head):
                heads.append(head)
                continue
            origin = {"seed": options["seed"], "model": features.key.model, "layer": features.ref}
            failed.append({"estimator": name, "params": params, **origin, "error": str(head)})
            text = f"on {features.ref}: {head}; the other heads go on"
            warnings.warn(text, FeatureStoreWarning, stacklevel=2)
    return heads, failed
