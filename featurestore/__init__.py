"""Extract the features of frozen Keras backbones once; train heads on them; promote the best.

The names below are loaded on first use, so that importing the package imports no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.backbone import Backbone, LayerRef
    from featurestore.bars import progress
    from featurestore.dataset import Dataset
    from featurestore.errors import FeatureStoreError
    from featurestore.extraction import Extraction, extract, plan
    from featurestore.extraction.repair import repair
    from featurestore.features import Features
    from featurestore.features.listing import ls
    from featurestore.heads import Head, annotate, best, fit_head, fit_heads, leaderboard, rank
    from featurestore.pipeline.run import run
    from featurestore.pipeline.sweep import sweep
    from featurestore.promotion import Promotion, evaluate, predict, promote
    from featurestore.promotion.evaluation import mistakes
    from featurestore.promotion.exportable import fixed_images
    from featurestore.store import FeatureKey, FeatureStore
    from featurestore.table import Table

_HOMES = {
    "Backbone": "backbone",
    "Dataset": "dataset",
    "Extraction": "extraction",
    "FeatureKey": "store",
    "FeatureStore": "store",
    "FeatureStoreError": "errors",
    "Features": "features",
    "Head": "heads",
    "LayerRef": "backbone",
    "Promotion": "promotion",
    "Table": "table",
    "annotate": "heads",
    "best": "heads",
    "evaluate": "promotion",
    "extract": "extraction",
    "fit_head": "heads",
    "fit_heads": "heads",
    "fixed_images": "promotion",
    "leaderboard": "heads",
    "ls": "features.listing",
    "mistakes": "promotion.evaluation",
    "plan": "extraction",
    "predict": "promotion",
    "progress": "bars",
    "promote": "promotion",
    "rank": "heads",
    "repair": "extraction.repair",
    "run": "pipeline.run",
    "sweep": "pipeline.sweep",
}

__all__ = [
    "Backbone",
    "Dataset",
    "Extraction",
    "FeatureKey",
    "FeatureStore",
    "FeatureStoreError",
    "Features",
    "Head",
    "LayerRef",
    "Promotion",
    "Table",
    "annotate",
    "best",
    "evaluate",
    "extract",
    "fit_head",
    "fit_heads",
    "fixed_images",
    "leaderboard",
    "ls",
    "mistakes",
    "plan",
    "predict",
    "progress",
    "promote",
    "rank",
    "repair",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'featurestore' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featurestore.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
