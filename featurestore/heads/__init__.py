"""Heads on stored features: fit, measure, keep, list, compare, rank layers.

::

    ready       heads by name, their parameters    candidate     what is asked for, made definite
    network     Keras heads: how they are built    identity      an estimator in canonical form
    training    Keras heads: how they are trained  fit           check, fit, measure, keep
    rows        what heads learn from, read once   head          a fitted head: predict, save, load
    metrics     how good predictions are           persist       files without pickle
    compare     heads best first, grids            probe         layers ranked
    stale       heads on a former state of data    events       what fitting tells
"""

from featurestore.heads.candidate import check_named
from featurestore.heads.compare import best, expand, heads
from featurestore.heads.events import (
    EpochEnded,
    HeadEvent,
    HeadFitted,
    HeadReused,
    HeadStarted,
    HeadWarned,
    LayerRanked,
)
from featurestore.heads.fit import check_labels, fit_head, fit_heads
from featurestore.heads.head import Head
from featurestore.heads.probe import rank
from featurestore.heads.ready import DENSE, READY, ReadyHead

__all__ = [
    "DENSE",
    "READY",
    "EpochEnded",
    "Head",
    "HeadEvent",
    "HeadFitted",
    "HeadReused",
    "HeadStarted",
    "HeadWarned",
    "LayerRanked",
    "ReadyHead",
    "best",
    "check_labels",
    "check_named",
    "expand",
    "fit_head",
    "fit_heads",
    "heads",
    "rank",
]
