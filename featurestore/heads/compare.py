"""Comparing heads: a list, best first, and the best of some."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from featurestore.digests import short
from featurestore.errors import DamagedError, FeatureStoreWarning, HeadError, nearest, received
from featurestore.heads import metrics
from featurestore.heads.folds import FOLDS, common, mean_and_spread, p_value
from featurestore.heads.head import Head
from featurestore.heads.listing import heads_layout
from featurestore.heads.stale import stale, state
from featurestore.store import FeatureStore, StoreLike
from featurestore.store.variants import Variant
from featurestore.table import Table

if TYPE_CHECKING:
    import os

    from featurestore.dataset import Dataset


# A head with a larger p-value is not significantly different from the best.
SIGNIFICANCE = 0.05
_SHOWN = ("estimator", "label", "tags", "note", "kind", "params", "best_params", "seed")


def parse_metric(text: str | None, task: str, usual: str = "val") -> tuple[str, str]:
    """Read ``METRIC`` (on the usual split), ``SPLIT.METRIC`` or ``folds.METRIC``.

    Examples
    --------
    >>> parse_metric("testing.macro_f1", "classification"), parse_metric(None, "regression")
    (('test', 'macro_f1'), ('val', 'r2'))
    """
    from featurestore.dataset.splits import named

    split, _, metric = (text or metrics.primary(task)).rpartition(".")
    split = split or usual
    if metric not in metrics.METRICS:
        raise HeadError(f"no metric {metric!r}; {nearest(metric, metrics.METRICS)}")
    return split if split == FOLDS else named(split), metric


def sort_key(value: float | None, metric: str) -> tuple[bool, float]:
    """Sort key: best first, without a value last."""
    if value is None:
        return True, 0.0
    return False, value if metric in metrics.LESS_IS_BETTER else -value


def ordered(heads: Sequence[Head], sort: str | None = None) -> tuple[list[Head], str, str]:
    """Return heads on one state of a data set, best first, and the split and metric they are by.

    If all were cross-validated in the same way, the heads have the folds that they share, and these
    decide if ``sort`` names no split; else the validation split. Of equal heads the one that was
    fitted first comes first, then the first id.
    """
    shared = common([head.folds for head in heads])
    split, metric = parse_metric(sort, heads[0].task, FOLDS if shared else "val")
    if shared:
        heads = [head.changed(folds=own) for head, own in zip(heads, shared, strict=True)]

    def key(head: Head) -> tuple[Any, ...]:
        value = value_of(head.metrics, head.folds, split, metric)
        return *sort_key(value, metric), head.provenance["created"], head.id

    return sorted(heads, key=key), split, metric


def value_of(
    by_split: Mapping[str, Any], folds: Mapping[str, Any] | None, split: str, metric: str
) -> Any:
    """Return a metric of a head on a split, or its mean over the folds; None if it is unknown."""
    if split != FOLDS:
        return by_split.get(split, {}).get(metric)
    mean = mean_and_spread(folds or {}, metric)
    return mean and mean[0]


def best(heads: Sequence[Head], metric: str | None = None) -> Head:
    """Return the best of some heads, the first that `leaderboard` lists of them.

    Parameters
    ----------
    heads : sequence of Head
        Fitted on the same state of one data set: rows, labels and splits.
    metric : str, optional
        Such as ``"accuracy"``, ``"test.macro_f1"`` or ``"folds.accuracy"``; by default, accuracy
        or R². Without a split: the mean over the folds, if all heads were cross-validated in the
        same way; else the validation split.

    Raises
    ------
    HeadError
        If no head has the metric, for example because the split has no rows; or if the heads
        were fitted on different data, so that their metrics cannot be compared.
    """
    if not heads:
        raise HeadError(
            "there are no heads to select from", remedy="fit some with `featurestore train`"
        )
    for head in heads:
        if not isinstance(head, Head):
            raise HeadError(
                f"one of the heads is {received(head)}",
                "what fit_head or Head.load returns",
                "for a row of the leaderboard: Head.load(row['head'], store)",
            )
    names = sorted({repr(head.provenance["dataset"]["name"]) for head in heads})
    on = f"data set{'s' if len(names) > 1 else ''} {', '.join(names)}"
    states = len({state(head.provenance) for head in heads})
    if states > 1:
        raise HeadError(
            f"the heads were fitted on {states} states of {on}, whose metrics cannot be compared; "
            "choose among those of one (`featurestore heads` marks the stale ones)"
        )
    (first, *_), split, name = ordered(heads, metric)
    if value_of(first.metrics, first.folds, split, name) is None:
        remedy = "choose by another metric"
        if split == FOLDS:
            remedy += ", or fit the heads with folds (`--folds 5`)"
        elif split not in first.metrics:
            remedy += f", or give the data set such rows with `featurestore scan --{split} F`"
        raise HeadError(
            f"no head on {on} has {name!r} on the {split} {'' if split == FOLDS else 'split '}"
            "to choose by",
            remedy=remedy,
        )
    return next(head for head in heads if head.id == first.id)


def leaderboard(
    dataset: Dataset | str | os.PathLike[str] | None = None,
    store: StoreLike = None,
    *,
    sort: str | None = None,
    tags: str | Sequence[str] = (),
    heads: Collection[str] | None = None,
    **variant: Any,
) -> Table[dict[str, Any]]:
    """List the heads of a store by data set, best first. Loads neither scikit-learn nor Keras.

    Only heads on the present state of a data set are ranked with each other. The stale ones come
    last, newest first: they were fitted on other samples, labels or splits, or on part of the rows,
    so that their metrics cannot be compared.

    Parameters
    ----------
    dataset : Dataset, str or path, optional
        Only heads on this data set: a `Dataset`, a name, or a path that was scanned.
    store : FeatureStore, path or URL, optional
        By default FEATURESTORE_STORE, else ``./store``.
    sort : str, optional
        As in `best`. Heads without it come last, before the stale ones. If some of the heads were
        cross-validated and others not, they are sorted by the validation split.
    tags : str or sequence of str
        Only heads that have this tag, or all of these.
    heads : collection of str, optional
        Only the heads of these ids.
    **variant
        Only heads on features of this ``input_size``, ``resize``, ``weights``, …: as in `stored`.

    Returns
    -------
    Table of dict
        ``head`` (id), ``dataset``, ``manifest`` (digest of the state that it was fitted on),
        ``stale`` (None, or how the present state differs: ``"labels (5), splits (12)"``),
        ``model``, ``layer``, ``estimator``, ``label``, ``tags``, ``note``, ``kind``, ``params``,
        ``best_params`` (of a search), ``seed``, ``val_accuracy`` and ``test_accuracy`` (or
        ``val_r2`` and ``test_r2``; None without such rows), the metric that they are sorted by,
        ``metrics`` by split, ``folds`` (see `Head.folds`; None without), ``tied`` (if they are
        sorted by their folds: whether a head is not significantly different from the best, by a
        paired test over the folds with p > 0.05, see `featurestore.heads.folds.p_value`; else
        None), ``prefix`` (first digits of the prefix digest), the fields of `Variant`
        (``input_size``, ``resize``, ``weights``, …) and ``created``.
    """
    fields = Variant.asking(variant)
    store = FeatureStore.of(store)
    stored = _stored(store)
    required = {tags} if isinstance(tags, str) else set(tags)
    all_tags = {tag for head in stored for tag in head.tags}
    for tag in required - all_tags:
        offer = nearest(tag, all_tags)
        raise HeadError(f"no head in {store.location} has the tag {tag!r}; {offer}")
    names = {head.provenance["dataset"]["name"] for head in stored}
    name = dataset
    if dataset is not None and not (isinstance(dataset, str) and dataset in names):
        name = store.datasets.load(dataset).name
    if sort is not None:
        parse_metric(sort, "")
    if isinstance(name, str) and store.datasets.has(name):
        state_now = store.datasets.get(name).manifest_digest
        stored = [_under(name, state_now, head) for head in stored]
    stored = [
        head
        for head in stored
        if name in (None, head.provenance["dataset"]["name"])
        and required.issubset(head.tags)
        and (heads is None or head.id in heads)
        and Variant.of(head.provenance).fits(fields)
    ]
    verdicts = dict(zip([head.id for head in stored], stale(store, stored), strict=True))
    rows = []
    for name in sorted({head.provenance["dataset"]["name"] for head in stored}):
        own = [head for head in stored if head.provenance["dataset"]["name"] == name]
        rows += _best_first([head for head in own if not verdicts[head.id]], sort)
        own.sort(key=lambda head: (head.provenance["created"], head.id), reverse=True)
        for head in own:
            if verdicts[head.id]:
                row = head_row(head, *parse_metric(sort, head.task))
                rows.append({**row, "stale": verdicts[head.id]})
    return Table(rows, partial(heads_layout, sort=sort))


def _best_first(heads: Sequence[Head], sort: str | None) -> list[dict[str, Any]]:
    """Return the rows of heads on one state of a data set, best first."""
    if not heads:
        return []
    heads, split, metric = ordered(heads, sort)
    rows = [head_row(head, split, metric) for head in heads]
    if split == FOLDS and common([head.folds for head in heads]):
        best = rows[0]
        for row in rows:  # Their folds are those of the seed.
            if row["seed"] == best["seed"] and row[f"{FOLDS}_{metric}"] is not None:
                row["tied"] = p_value(row["folds"], best["folds"], metric) > SIGNIFICANCE
    return rows


def _under(name: str, manifest_digest: str, head: Head) -> Head:
    """Return a head on this state under the name of a data set: two may have the same samples."""
    origin = head.provenance["dataset"]
    if origin["manifest_digest"] != manifest_digest:
        return head
    return head.changed(provenance={**head.provenance, "dataset": {**origin, "name": name}})


def _stored(store: FeatureStore) -> list[Head]:
    """Return the heads of a store without estimators; warn of damaged ones, which are left out."""
    documents, damaged = store.heads.survey()
    heads, reasons = [], [damage.reason for damage in damaged]
    for document in documents:
        try:
            heads.append(Head.of_document(document, store))
        except DamagedError as error:
            reasons.append(str(error))
    for reason in reasons:
        warnings.warn(f"left out of the list: {reason}", FeatureStoreWarning, stacklevel=3)
    return heads


def head_row(head: Head, split: str, metric: str) -> dict[str, Any]:
    """Return what a table shows of a head: the columns of `leaderboard`."""
    usual = metrics.primary(head.task)
    origin, document = head.provenance, head.document()
    # The metric that they are sorted by comes first.
    columns = dict.fromkeys([(split, metric), *((part, usual) for part in (FOLDS, "val", "test"))])
    return {
        "head": head.id,
        "dataset": origin["dataset"]["name"],
        "manifest": origin["dataset"]["manifest_digest"],
        "stale": None,
        "model": origin["features"]["model"],
        "layer": origin["features"]["ref"],
        **{name: document[name] for name in _SHOWN},
        **{
            f"{part}_{name}": value_of(head.metrics, head.folds, part, name)
            for part, name in columns
        },
        "metrics": document["metrics"],
        "folds": head.folds,
        "tied": None,
        "prefix": short(origin["features"]["prefix_digest"]),
        **Variant.of(origin).to_dict(),
        "created": origin["created"],
    }
