"""Rank the stored layers of a data set, before any head is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import FeatureStoreWarning, HeadError, received
from featurestore.features import stored, without_boundaries
from featurestore.heads import metrics
from featurestore.heads.events import LayerRanked
from featurestore.heads.listing import ranking_layout
from featurestore.heads.rows import check_labels
from featurestore.heads.transferability import SCORES, Score, transferability
from featurestore.listening import OnEvent, receiver
from featurestore.store import FeatureStore, StoreLike
from featurestore.store.variants import Variant
from featurestore.table import Table

if TYPE_CHECKING:
    import os

    from featurestore.dataset import Dataset

MOST_ROWS = 2000
# Of a layer at most this many numbers are read, which takes about 0.7 GB. One very wide layer
# reduces the rows that all are ranked on, to this many at least.
MOST_VALUES = 50_000_000
FEWEST_ROWS = 200
# The best predictor of trained heads: benchmarks/rank.py.
DEFAULT: Score = "logme"


def rank(
    dataset: Dataset | str | os.PathLike[str],
    store: StoreLike = None,
    model: str | os.PathLike[str] | Sequence[str] | None = None,
    *,
    by: Score = DEFAULT,
    on_event: OnEvent | None = None,
    **variant: Any,
) -> Table[dict[str, Any]]:
    """Rank the stored layers of a data set by how well a head would do on each.

    No head is trained. Both scores (see docs/choosing.md) are computed from the same training rows
    of all layers: the first of content order, which are a fair sample.

    Parameters
    ----------
    dataset : Dataset, str or path
        A data set, its name, or a path that was scanned.
    store : FeatureStore, path or URL, optional
        By default FEATURESTORE_STORE, else ``./store``.
    model : str, path or sequence of str, optional
        Only layers of this backbone, or of these.
    by : {"logme", "ridge"}
        The score to sort by: the log evidence of a Bayesian linear model; or the accuracy, or R²,
        of ridge that predicts each row from those of other groups.
    on_event : callable, optional
        Receives `LayerRanked` after each layer.
    **variant
        Only layers of this ``input_size``, ``resize``, ``weights``, …: as in `stored`.

    Returns
    -------
    Table of dict
        Best first: ``key``, ``model``, ``layer``, ``by``, ``score`` (that one's value), each score
        by its name (ridge is None if all rows are of one group), ``metric`` of ridge ("accuracy" or
        "r2"), ``rows``, ``dims`` (numbers per row), ``bytes`` (per row, as stored, uncompressed),
        ``shape`` (of a row), ``prefix`` (first digits of the prefix digest) and the fields of
        `Variant`: ``input_size``, ``resize``, ``weights``, ….

    Raises
    ------
    HeadError
        If the data set has no labels, or too few to learn from.
    NotFoundError
        If the store has no features of the data set, or of a model.
    IncompleteFeaturesError
        If no layer is complete. Otherwise incomplete layers are left out, with a warning.
    """
    from featurestore.dataset import Dataset
    from featurestore.dataset.source import text_of

    if by not in SCORES:
        raise HeadError(f"by is {received(by)}", f"one of {', '.join(SCORES)}")
    if not isinstance(dataset, Dataset):
        text_of(dataset)  # before the store is opened: the two may be in the wrong order
    layers = without_boundaries(stored(FeatureStore.of(store), dataset, model=model, **variant))
    complete = [layer for layer in layers if layer.complete]
    if not complete:
        layers[0].group.require()
    if len(complete) < len(layers):
        left_out = ", ".join(sorted({layer.ref for layer in layers if layer not in complete}))
        warnings.warn(
            f"{len(layers) - len(complete)} of {len(layers)} layers are not ranked, because they "
            f"are incomplete: {left_out}; `featurestore extract` completes them",
            FeatureStoreWarning,
            stacklevel=2,
        )
    samples = complete[0].dataset
    check_labels(samples)
    widest = max(int(np.prod(features.shape[1:])) for features in complete)
    limit = min(MOST_ROWS, max(FEWEST_ROWS, MOST_VALUES // widest))
    numbers = samples.rows("train", labelled=True, views=False)[:limit]
    groups = None if samples.groups is None else samples.groups[numbers]
    table, emit = [], receiver(on_event)
    for done, features in enumerate(complete, 1):
        X = features.read(numbers, np.float32).reshape(len(numbers), -1)
        if not np.isfinite(X).all():
            raise HeadError(
                f"{features.key} cannot be ranked: its training rows have NaN or infinity, which "
                "`featurestore extract` never stores",
                remedy="run `featurestore verify`",
            )
        scores = transferability(X, samples.targets[numbers], groups)
        table.append(
            {
                "key": str(features.key),
                "model": features.key.model,
                "layer": features.ref,
                "by": by,
                "score": scores[by],
                "metric": metrics.primary(str(features.task)),
                **scores,
                "rows": len(numbers),
                "dims": X.shape[1],
                "bytes": X.shape[1] * features.dtype.itemsize,
                "shape": list(features.shape[1:]),
                "prefix": features.key.short.prefix,
                **Variant.of(features.group.provenance).to_dict(),
            }
        )
        emit(LayerRanked(str(features.key), done, len(complete)))
    # Of each score, more is better.
    table.sort(key=lambda row: (row["score"] is None, -(row["score"] or 0), row["dims"]))
    return Table(table, ranking_layout)
