"""Events of fitting and ranking, for callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HeadReused:
    """A head was loaded from the store instead of fitted."""

    head: str


@dataclass(frozen=True)
class EpochEnded:
    """A Keras head was trained for one more epoch.

    Attributes
    ----------
    head : str
        Its id.
    epoch, epochs : int
        Number of this epoch, from 1, and of all.
    logs : mapping of str to float
        ``loss`` and ``accuracy``; with validation rows, also ``val_loss`` and ``val_accuracy``.
    """

    head: str
    epoch: int
    epochs: int
    logs: Mapping[str, float]


@dataclass(frozen=True)
class FoldFitted:
    """``heads`` heads were fitted and measured on one more fold: number ``done`` of ``total``."""

    heads: int
    done: int
    total: int


@dataclass(frozen=True)
class HeadWarned:
    """A head has a problem, such as a solver that did not converge."""

    head: str
    text: str


@dataclass(frozen=True)
class HeadFitted:
    """A head was fitted, in ``seconds`` of wall time, and measured; of a joint fit, its share.

    Attributes
    ----------
    head : str
        Its id.
    metrics : mapping
        By split.
    seconds : float
    layer : str
    params : mapping
        The parameters that were given.
    """

    head: str
    metrics: Mapping[str, Mapping[str, Any]]
    seconds: float
    layer: str
    params: Mapping[str, Any]


@dataclass(frozen=True)
class LayerRanked:
    """A layer was scored: number ``done`` of ``total``."""

    key: str
    done: int
    total: int


HeadEvent = HeadReused | EpochEnded | FoldFitted | HeadWarned | HeadFitted | LayerRanked
