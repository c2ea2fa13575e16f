"""What fitting tells while it works: small frozen events that a caller may draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HeadReused:
    """The store holds this very head; nothing was fitted."""

    head: str


@dataclass(frozen=True)
class HeadStarted:
    """A head is about to be fitted on ``rows`` training rows."""

    head: str
    rows: int


@dataclass(frozen=True)
class EpochEnded:
    """A Keras head has seen the training rows once more.

    Attributes
    ----------
    head : str
        Its id.
    epoch, epochs : int
        How many are done, of how many.
    logs : mapping of str to float
        ``loss`` and ``accuracy``, and the same with ``val_`` where there are validation rows.
    """

    head: str
    epoch: int
    epochs: int
    logs: Mapping[str, float]


@dataclass(frozen=True)
class HeadWarned:
    """The estimator warned while it was fitted, such as of a solver that has not converged."""

    head: str
    text: str


@dataclass(frozen=True)
class HeadFitted:
    """A head is fitted, measured and, where asked, saved; ``seconds`` is its wall time."""

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
