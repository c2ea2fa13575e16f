"""From images to stored features: a pure plan, then one forward pass that acts on it."""

from featurestore.extraction.events import (
    ExtractionEvent,
    ExtractionFinished,
    ExtractionStarted,
    RowsComputed,
)
from featurestore.extraction.extract import Extraction, LayerReport, extract
from featurestore.extraction.plan import ExtractionPlan, LayerPlan, explain_miss, plan
from featurestore.extraction.soundness import Damage, repair, verify

__all__ = [
    "Damage",
    "Extraction",
    "ExtractionEvent",
    "ExtractionFinished",
    "ExtractionPlan",
    "ExtractionStarted",
    "LayerPlan",
    "LayerReport",
    "RowsComputed",
    "explain_miss",
    "extract",
    "plan",
    "repair",
    "verify",
]
