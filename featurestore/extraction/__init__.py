"""From images to stored features: plan, then compute in one forward pass; repair."""

from featurestore.extraction.events import (
    BackboneLoading,
    BatchHalved,
    ClusterJoined,
    ClusterStarting,
    ExtractionEvent,
    ExtractionFinished,
    ExtractionStarted,
    Float16Replaced,
    Float32Chosen,
    Float32Reused,
    RowsComputed,
    RowsCopied,
    RowsDerived,
    WaitingForOthers,
    WorkersPreparing,
)
from featurestore.extraction.planned import ExtractionPlan, LayerPlan
from featurestore.extraction.planning import plan
from featurestore.extraction.repair import Repair, repair
from featurestore.extraction.report import Extraction, LayerReport
from featurestore.extraction.run import extract

__all__ = [
    "BackboneLoading",
    "BatchHalved",
    "ClusterJoined",
    "ClusterStarting",
    "Extraction",
    "ExtractionEvent",
    "ExtractionFinished",
    "ExtractionPlan",
    "ExtractionStarted",
    "Float16Replaced",
    "Float32Chosen",
    "Float32Reused",
    "LayerPlan",
    "LayerReport",
    "Repair",
    "RowsComputed",
    "RowsCopied",
    "RowsDerived",
    "WaitingForOthers",
    "WorkersPreparing",
    "extract",
    "plan",
    "repair",
]
