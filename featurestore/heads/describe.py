"""What the command ``show`` reports of a head. Loads neither scikit-learn nor Keras."""

from __future__ import annotations

import json
from typing import Any

from featurestore.errors import DamagedError
from featurestore.heads.head import CONFUSION_FILE, find
from featurestore.heads.metrics import by_class
from featurestore.heads.schema import validate
from featurestore.heads.stale import stale
from featurestore.store import FeatureStore, StoreLike

_FIRST = ("id", "name", "tags", "note", "kind", "task", "portable", "params", "best_params", "seed")


def describe_head(head: str, store: StoreLike = None) -> dict[str, Any]:
    """Return everything that is stored of a head but its estimator, as JSON values.

    Parameters
    ----------
    head : str
        Its id, the beginning of it, or its name.

    Returns
    -------
    dict
        Its document, ``stale`` (how its data set differs now, or None) and, for classes,
        ``by_class``: by split, what `featurestore.heads.metrics.by_class` returns.
    """
    opened = FeatureStore.of(store)
    key = find(opened, head)
    document = validate(opened.heads.get(key))
    (differs,) = stale(opened, [document])
    found = {name: document[name] for name in _FIRST}
    found |= {"stale": differs, "metrics": document["metrics"]}
    if document["task"] == "classification":
        try:
            confusion = json.loads(opened.heads.read(key, CONFUSION_FILE))
            found["by_class"] = {split: by_class(each) for split, each in confusion.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DamagedError(
                f"{CONFUSION_FILE} of head {key!r} is not a confusion matrix for each split; fit "
                "the head again with `featurestore train`"
            ) from error
    return found | {name: value for name, value in document.items() if name not in found}
