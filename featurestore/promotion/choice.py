"""The best of the stored heads that can be promoted."""

from __future__ import annotations

from featurestore.errors import PromotionError
from featurestore.heads import Head, leaderboard
from featurestore.heads.compare import best, ordered, value_of
from featurestore.promotion.fuse import promotable
from featurestore.store import FeatureStore
from featurestore.table import cell


def best_promotable(store: FeatureStore, dataset: str | None = None) -> tuple[Head, str]:
    """Return the best head that can be promoted, and by what it was chosen, in words.

    As `best` chooses among these: over the folds if all of them were cross-validated in the same
    way, else on the validation split. Heads on another state of the data set, and on raw pixels,
    are left out, as in a pipeline. The data set may be left out if all heads are of one.

    Raises
    ------
    PromotionError
        If there is no such head, or several data sets have some.
    HeadError
        If the heads were not measured on validation rows.
    NotFoundError
        If there is no such data set.
    """
    rows = [
        row
        for row in leaderboard(dataset, store)
        if row["stale"] is None and row["model"] != "pixels"
    ]
    if len(names := sorted({row["dataset"] for row in rows})) > 1:
        raise PromotionError(
            f"heads of {len(names)} data sets are stored, which do not compare; name one of "
            f"{', '.join(names)}: `--best NAME`"
        )
    heads = [Head.load(row["head"], store) for row in rows]
    candidates = [head for head in heads if promotable(head)]
    if not candidates:
        of = f" of data set {dataset!r}" if dataset else ""
        raise PromotionError(
            f"none of the {len(heads)} heads{of} on its present samples, labels and splits has a "
            "Keras form; `featurestore train` fits one that can be promoted, such as logistic or "
            "dense"
        )
    chosen = best(candidates)
    (first, *_), split, metric = ordered(candidates)
    by = "the mean over the folds" if split == "folds" else "the val split"
    value = cell(value_of(first.metrics, first.folds, split, metric))
    return chosen, f"{by}, {metric} {value}, best of {len(candidates)} of {len(heads)} heads"
