"""The best of the stored heads that can be promoted, chosen as a pipeline chooses it."""

from __future__ import annotations

import shlex

from featurestore.errors import PromotionError
from featurestore.heads import Head, best, leaderboard
from featurestore.promotion.fuse import promotable
from featurestore.store import FeatureStore


def best_promotable(store: FeatureStore, dataset: str | None = None) -> tuple[Head, list[str]]:
    """Return the best head that can be promoted, and the ids of better ones without a Keras form.

    By accuracy, or R², as `leaderboard` sorts: over the folds if all were cross-validated, else on
    the validation split. Heads on another state of the data set, and on raw pixels, are left out,
    as in a pipeline. The data set may be left out if all heads are of one.

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
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    if len(names) > 1:
        raise PromotionError(
            f"heads of {len(names)} data sets are stored, which do not compare; name one: "
            + " or ".join(f"`--best {shlex.quote(name)}`" for name in names)
        )
    passed: list[str] = []
    for row in rows:
        head = Head.load(row["head"], store)
        if promotable(head):
            return best([head]), passed
        passed.append(head.id)
    which = f" of data set {dataset!r}" if dataset else ""
    found = (
        f"none of the {len(passed)} heads{which} has a Keras form"
        if passed
        else f"no head{which} was fitted on its samples, labels and splits as they are now"
    )
    raise PromotionError(
        f"{found}; `featurestore train` fits one that can be promoted, such as logistic or dense"
    )
