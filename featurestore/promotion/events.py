"""Events of promotion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featurestore.promotion.parity import Parity


@dataclass(frozen=True)
class PromotionStageStarted:
    """A stage of a promotion starts; ``what`` says what it does."""

    what: str


@dataclass(frozen=True)
class Proved:
    """``what`` (the fused model or its saved file) was proven to predict what the head predicts."""

    what: str
    parity: Parity


@dataclass(frozen=True)
class TuningStarted:
    """Fine-tuning starts, with the learning rates of the head and of each block.

    ``start`` is the layer ref whose stored features epochs read, and are measured on; None if they
    read the images.
    """

    head: str
    rates: Mapping[str, float]
    start: str | None


@dataclass(frozen=True)
class TuningEpochEnded:
    """An epoch of fine-tuning ended; ``logs`` are those of Keras."""

    head: str
    epoch: int
    epochs: int
    logs: Mapping[str, float]


@dataclass(frozen=True)
class TuningInterrupted:
    """Fine-tuning was interrupted in an epoch, counted from 1."""

    head: str
    epoch: int
    epochs: int


PromotionEvent = (
    PromotionStageStarted | Proved | TuningStarted | TuningEpochEnded | TuningInterrupted
)
