"""Which head is best: heads listed best first, the best of some, grids of parameters."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.digests import short
from featurestore.errors import FeatureStoreWarning, HeadError, NotFoundError, nearest
from featurestore.heads import metrics
from featurestore.heads.document import fault
from featurestore.heads.head import Head
from featurestore.heads.stale import stale, state
from featurestore.store.variants import Variant

if TYPE_CHECKING:
    from featurestore.store import FeatureStore

SPLITS = ("val", "test", "train")
METRICS = (*metrics.CLASSIFICATION, *metrics.REGRESSION)


def expand(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a parameter grid, the last parameter changing quickest.

    Examples
    --------
    >>> expand({"C": [0.1, 1], "penalty": ["l1", "l2"]})[1]
    {'C': 0.1, 'penalty': 'l2'}
    >>> expand({})
    [{}]
    """
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise HeadError(f"grid of {name!r} is {values!r}; expected a list of values")
    return [dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values())]


def parse_metric(text: str | None, task: str) -> tuple[str, str]:
    """Read ``METRIC`` (on the validation split) or ``SPLIT.METRIC``.

    Examples
    --------
    >>> parse_metric("test.macro_f1", "classification"), parse_metric(None, "regression")
    (('test', 'macro_f1'), ('val', 'r2'))
    """
    split, _, metric = (text or metrics.primary(task)).rpartition(".")
    split = split or "val"
    if split not in SPLITS:
        raise HeadError(f"no split {split!r} in {text!r}; {nearest(split, SPLITS)}")
    if metric not in METRICS:
        raise HeadError(f"no metric {metric!r}; {nearest(metric, METRICS)}")
    return split, metric


def sort_key(value: float | None, metric: str) -> tuple[bool, float]:
    """Sort key: best first, without a value last."""
    if value is None:
        return True, 0.0
    return False, value if metric in metrics.LESS_IS_BETTER else -value


def best(heads: Sequence[Head], metric: str | None = None) -> Head:
    """Return the best of some heads; the first of equals.

    Parameters
    ----------
    heads : sequence of Head
        Fitted on one state of one data set: on the same rows, labels and splits.
    metric : str, optional
        ``"accuracy"`` or ``"test.macro_f1"``, say; accuracy or R² on the validation split by
        default.

    Raises
    ------
    HeadError
        If no head has the metric, as without rows in the split; if the heads were fitted on
        different data, so that their metrics cannot be compared.
    """
    if not heads:
        raise HeadError("there are no heads to choose from; fit some with `featurestore train`")
    states = {state(head.lineage): head.lineage["dataset"]["name"] for head in heads}
    if len(states) > 1:
        raise HeadError(
            f"the heads were fitted on {len(states)} states of {_names(states.values())}, whose "
            "metrics cannot be compared; choose among those of one (`featurestore heads` marks "
            "the stale ones)"
        )
    split, name = parse_metric(metric, heads[0].task)
    values = [head.metrics.get(split, {}).get(name) for head in heads]
    if all(value is None for value in values):
        dataset = heads[0].lineage["dataset"]["name"]
        raise HeadError(
            f"no head on data set {dataset!r} has {name!r} on the {split} split, to choose by; "
            f"give the data set such rows with `featurestore scan --{split} F`, or choose by "
            "another metric"
        )
    order = sorted(range(len(heads)), key=lambda index: sort_key(values[index], name))
    return heads[order[0]]


def heads(
    store: FeatureStore,
    dataset: str | None = None,
    sort_metric: str | None = None,
    **variant: Any,
) -> list[dict[str, Any]]:
    """List the heads of a store by data set, best first. Loads neither scikit-learn nor Keras.

    Only like is ranked with like: heads that were fitted on the present state of one data set
    (`FeatureStore.datasets`). After them come its stale heads, newest first: fitted on other
    samples, labels or splits, or on part of the rows, their metrics cannot be compared.

    Parameters
    ----------
    store : FeatureStore
    dataset : str, optional
        Only those fitted on this data set: a name, or a path that was scanned.
    sort_metric : str, optional
        As in `best`. Heads without it come last, before the stale ones.
    **variant
        Only those on features of this ``input_size``, ``resize``, ``weights``, …: as in `stored`.

    Returns
    -------
    list of dict
        ``head`` (id), ``dataset``, ``manifest`` (digest of the state that it was fitted on),
        ``stale`` (None, or what differs from the present state: ``"labels (5), splits (12)"``),
        ``model``, ``layer``, ``name``, ``kind``, ``params``, ``seed``, ``val_accuracy`` and
        ``test_accuracy`` (or ``val_r2`` and ``test_r2``; None without such rows), what is sorted
        by, ``metrics`` by split, ``prefix`` (first digits of the prefix digest), the fields of
        `Variant` (``input_size``, ``resize``, ``weights``, …) and ``created``.
    """
    asked = Variant(**variant)
    if dataset is not None:
        dataset = _dataset_name(store, dataset)
    if sort_metric is not None:
        parse_metric(sort_metric, "")
    metas = [
        meta
        for meta in documents(store)
        if (dataset is None or meta["lineage"]["dataset"]["name"] == dataset)
        and Variant.of(meta["lineage"]).fits(asked)
    ]
    rows, order = [], {}
    for meta, differs in zip(metas, stale(store, metas), strict=True):
        split, metric = parse_metric(sort_metric, meta["task"])
        rows.append({**_row(meta, split, metric), "stale": differs})
        order[meta["id"]] = sort_key(rows[-1][f"{split}_{metric}"], metric)
    rows.sort(key=lambda row: (row["created"], row["head"]))
    former = [row for row in reversed(rows) if row["stale"]]
    fresh = [row for row in rows if not row["stale"]]
    fresh.sort(key=lambda row: order[row["head"]])
    return sorted([*fresh, *former], key=lambda row: str(row["dataset"]))


def documents(store: FeatureStore) -> list[dict[str, Any]]:
    """Return the documents of the heads; invalid ones are left out, with a warning."""
    found = []
    for meta in store.heads():
        wrong = fault(meta)
        if wrong is None:
            found.append(meta)
        else:
            warnings.warn(
                f"head {meta['id']!r} is left out: {wrong}; fit it again with `featurestore train`",
                FeatureStoreWarning,
                stacklevel=2,
            )
    return found


def _row(meta: Mapping[str, Any], split: str, metric: str) -> dict[str, Any]:
    usual = metrics.primary(meta["task"])
    columns = dict.fromkeys([("val", usual), ("test", usual), (split, metric)])
    origin = meta["lineage"]
    return {
        "head": meta["id"],
        "dataset": origin["dataset"]["name"],
        "manifest": origin["dataset"]["manifest_digest"],
        "model": origin["features"]["model"],
        "layer": origin["features"]["ref"],
        "name": meta["name"],
        "kind": meta["kind"],
        "params": meta["params"],
        "seed": meta["seed"],
        **{f"{part}_{each}": meta["metrics"].get(part, {}).get(each) for part, each in columns},
        "metrics": meta["metrics"],
        "prefix": short(origin["features"]["prefix_digest"]),
        **Variant.of(origin).to_dict(),
        "created": origin["created"],
    }


def _names(names: Iterable[str]) -> str:
    found = sorted({repr(name) for name in names})
    return f"data set{'s' if len(found) > 1 else ''} {', '.join(found)}"


def _dataset_name(store: FeatureStore, text: str) -> str:
    known = {meta["lineage"]["dataset"]["name"] for meta in documents(store)}
    if text in known:
        return text
    try:
        return store.dataset(text).name
    except NotFoundError as error:
        raise NotFoundError(
            f"no data set {text!r} in {store.location}; "
            f"{nearest(text, [entry.name for entry in store.datasets()])}"
        ) from error
