"""Successive halving: of many heads, those that do best on part of the rows go on to more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np

from featurestore.errors import HeadError, received
from featurestore.features import Features
from featurestore.heads import metrics
from featurestore.heads.banks import banks
from featurestore.heads.candidate import Candidate
from featurestore.heads.compare import sort_key
from featurestore.heads.events import HeadsHalved, HeadWarned
from featurestore.heads.fitting import Fitting
from featurestore.heads.folds import CrossValidation, mean_and_spread
from featurestore.heads.rows import Rows
from featurestore.listening import OnEvent, receiver

# Of each class in each fold, on average, in the first round: as scikit-learn's HalvingGridSearchCV.
FEWEST_ROWS = 2
ROUND = CrossValidation(folds=5)


def survivors(
    layers: Sequence[tuple[Features, Sequence[Candidate]]],
    factor: int,
    *,
    on_event: OnEvent | None = None,
) -> set[str]:
    """Return the ids of the heads that are worth fitting on all training rows.

    In each round the heads are cross-validated on the first rows of content order, which are a
    fair sample; one of ``factor`` goes on to ``factor`` times the rows, by accuracy or R². Nothing
    is saved. Heads of all layers compete with each other. One that cannot be fitted on so few rows,
    such as that of more neighbours than these, comes last.

    Parameters
    ----------
    layers : sequence of (Features, sequence of Candidate)
        The heads on each layer, all of one data set.
    factor : int
        2 or more.
    on_event : callable, optional
        Receives `HeadsHalved` after each round; once, with all heads and rows, if the heads or the
        rows are too few for a round. `HeadWarned` for a head that cannot be fitted.

    Raises
    ------
    HeadError
        If no head can be fitted, or one has no identity.

    References
    ----------
    Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization", AISTATS 2016.
    """
    if not isinstance(factor, Integral) or factor < 2:
        raise HeadError(
            f"halving is {received(factor)}; expected an integer of 2 or more, such as 3: the best "
            "third of the heads goes on"
        )
    emit = receiver(on_event)
    rows = [Rows(features) for features, _ in layers]
    alive = [list({each.id: each for each in candidates}.values()) for _, candidates in layers]
    heads, total = sum(map(len, alive)), rows[0].count("train")
    sizes = _sizes(heads, rows[0], factor)
    if not sizes:
        emit(HeadsHalved(heads, heads, total, total))
    for size in sizes:
        scores: dict[str, float | None] = {}
        for whole, candidates in zip(rows, alive, strict=True):
            part = whole.fold(np.arange(size), np.arange(0))
            scores |= _scores(part, candidates, emit) if candidates else {}
        metric = metrics.primary(str(rows[0].task))
        kept = sorted(scores, key=lambda key: sort_key(scores[key], metric))
        kept = kept[: math.ceil(len(kept) / factor)]
        alive = [[each for each in candidates if each.id in kept] for candidates in alive]
        emit(HeadsHalved(len(scores), len(kept), size, total))
    return {each.id for candidates in alive for each in candidates}


def _sizes(heads: int, rows: Rows, factor: int) -> list[int]:
    """Return the number of training rows of each round before the last, which has all."""
    assert ROUND.folds is not None
    total = rows.count("train")
    fewest = FEWEST_ROWS * ROUND.folds * max(1, len(rows.features.classes))
    rounds = min(_log(heads, factor), _log(max(1, total // fewest), factor))
    return [total // factor**left for left in range(rounds, 0, -1)]


def _log(value: int, factor: int) -> int:
    """Return the largest power of ``factor`` that is not above ``value``."""
    return max(power for power in range(value.bit_length()) if factor**power <= value)


def _scores(rows: Rows, candidates: Sequence[Candidate], emit: OnEvent) -> dict[str, float | None]:
    parts = [ROUND.split(rows, candidates[0].seed)]
    fitting = Fitting(rows, ROUND, parts, {each.id: [each] for each in candidates})
    found: dict[str, float | None] = {}
    for bank in banks(candidates):
        for key, folds in fitting.folds(bank).items():
            if isinstance(folds, HeadError):
                emit(HeadWarned(key, f"{folds}, on {rows.count('train')} rows"))
                found[key] = None
            else:
                mean = mean_and_spread(folds, metrics.primary(str(rows.task)))
                found[key] = mean and mean[0]
    return found
