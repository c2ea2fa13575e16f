"""What promotion tells while it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.promotion.parity import Parity


@dataclass(frozen=True)
class Proved:
    """``what`` (the fused model, or the saved file) is the predictor that the cached head is."""

    what: str
    parity: Parity


@dataclass(frozen=True)
class TuningStarted:
    """Fine-tuning begins; ``rates`` are the learning rates of the head and of each block."""

    head: str
    rates: Mapping[str, float]


@dataclass(frozen=True)
class TuningEpochEnded:
    """Fine-tuning has seen the training rows once more; ``logs`` as Keras gives them."""

    head: str
    epoch: int
    epochs: int
    logs: Mapping[str, float]


PromotionEvent = Proved | TuningStarted | TuningEpochEnded
OnEvent = Callable[[Any], None]
