"""Heads on stored features: fit, measure, save, list, compare; rank layers.

::

    registry         heads by name                     candidate   what to fit, with its id
    network          ready-made Keras heads            adopted     the user's own Keras models
    identity         estimators in canonical form      persist     estimators as files
    fit              fit heads: the functions          fitting     load, fit, evaluate and save
    estimator        estimators fitted one by one      joint       linear heads fitted jointly
    training         train a Keras head                folds       cross-validation
    rows             features and labels by split      metrics     how good predictions are
    head             a fitted head: document, predict  decision    values that classifiers use
    compare          heads listed best first           listing     how tables show heads
    stale            heads on an earlier state         again       stale heads fitted again
    describe         all that is stored of a head      notes       labels, tags and notes of users
    ranking          layers ranked                     transferability  what they are ranked by
    events           events of fitting and ranking
"""

from featurestore.heads.again import fit_stale
from featurestore.heads.compare import best, leaderboard
from featurestore.heads.describe import describe_head
from featurestore.heads.events import (
    EpochEnded,
    FoldFitted,
    HeadEvent,
    HeadFitted,
    HeadReused,
    HeadWarned,
    LayerRanked,
)
from featurestore.heads.fit import fit_head, fit_heads
from featurestore.heads.head import Head
from featurestore.heads.notes import annotate
from featurestore.heads.ranking import rank
from featurestore.heads.registry import KERAS_HEADS, SKLEARN_HEADS, check_named
from featurestore.heads.rows import check_labels

__all__ = [
    "KERAS_HEADS",
    "SKLEARN_HEADS",
    "EpochEnded",
    "FoldFitted",
    "Head",
    "HeadEvent",
    "HeadFitted",
    "HeadReused",
    "HeadWarned",
    "LayerRanked",
    "annotate",
    "best",
    "check_labels",
    "check_named",
    "describe_head",
    "fit_head",
    "fit_heads",
    "fit_stale",
    "leaderboard",
    "rank",
]
