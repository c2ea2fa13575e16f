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
    """The fused model and its saved file were proven to predict what the head predicts."""

    parity: Parity


@dataclass(frozen=True)
class TuningEpochEnded:
    """An epoch of fine-tuning ended; ``logs`` are those of Keras."""

    head: str
    epoch: int
    epochs: int
    logs: Mapping[str, float]


PromotionEvent = PromotionStageStarted | Proved | TuningEpochEnded
