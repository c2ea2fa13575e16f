"""Events of fitting and ranking, which a caller may draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HeadReused:
    """The head is in the store already; nothing was fitted."""

    head: str


@dataclass(frozen=True)
class HeadStarted:
    """A head is about to be fitted on ``rows`` training rows."""

    head: str
    rows: int


@dataclass(frozen=True)
class EpochEnded:
    """A Keras head has finished an epoch.

    Attributes
    ----------
    head : str
        Its id.
    epoch, epochs : int
        Epochs done, and all.
    logs : mapping of str to float
        ``loss`` and ``accuracy``, and the same with ``val_`` if there are validation rows.
    """

    head: str
    epoch: int
    epochs: int
    logs: Mapping[str, float]


@dataclass(frozen=True)
class HeadWarned:
    """A problem of a head, such as a solver that has not converged."""

    head: str
    text: str


@dataclass(frozen=True)
class HeadFitted:
    """A head has been fitted and measured, in ``seconds`` of wall time."""

    head: str
    metrics: Mapping[str, Mapping[str, Any]]
    seconds: float


@dataclass(frozen=True)
class LayerRanked:
    """One feature array has been probed; ``done`` of ``total`` so far."""

    key: str
    done: int
    total: int


HeadEvent = HeadReused | HeadStarted | EpochEnded | HeadWarned | HeadFitted | LayerRanked
OnEvent = Callable[[HeadEvent], None]
