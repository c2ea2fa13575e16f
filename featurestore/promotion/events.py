"""Events of promotion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featurestore.promotion.parity import Parity


@dataclass(frozen=True)
class Proved:
    """``what`` (the fused model or its saved file) was proven to predict what the head predicts."""

    what: str
    parity: Parity


@dataclass(frozen=True)
class TuningStarted:
    """Fine-tuning starts, with the learning rates of the head and of each block."""

    head: str
    rates: Mapping[str, float]


@dataclass(frozen=True)
class TuningEpochEnded:
    """An epoch of fine-tuning ended; ``logs`` are those of Keras."""

    head: str
    epoch: int
    epochs: int
    logs: Mapping[str, float]


PromotionEvent = Proved | TuningStarted | TuningEpochEnded
