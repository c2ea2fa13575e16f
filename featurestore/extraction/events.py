"""What extraction tells while it works: small frozen events that a caller may draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ExtractionStarted:
    """The forward pass is about to start.

    Attributes
    ----------
    model : str
        Name of the backbone.
    layers : tuple of str
        Layer refs that will be written.
    rows : int
        Samples that will go through the backbone.
    """

    model: str
    layers: tuple[str, ...]
    rows: int


@dataclass(frozen=True)
class RowsComputed:
    """A batch has gone through the backbone; ``done`` of ``total`` samples so far."""

    done: int
    total: int


@dataclass(frozen=True)
class WaitingForOthers:
    """All that is left is being computed by other processes: ``rows`` samples, at most."""

    rows: int


@dataclass(frozen=True)
class ExtractionFinished:
    """Every block is stored; ``seconds`` is the wall time since the start."""

    rows: int
    seconds: float


ExtractionEvent = ExtractionStarted | RowsComputed | WaitingForOthers | ExtractionFinished
OnEvent = Callable[[ExtractionEvent], None]
