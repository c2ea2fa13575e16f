"""Extract the features of frozen Keras backbones once; train heads on them; promote the best.

The names below are loaded on first use, so that importing the package imports no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.backbone import Backbone as Backbone
    from featurestore.backbone import LayerRef as LayerRef
    from featurestore.bars import progress as progress
    from featurestore.dataset import Dataset as Dataset
    from featurestore.errors import FeatureStoreError as FeatureStoreError
    from featurestore.extraction import Extraction as Extraction
    from featurestore.extraction import extract as extract
    from featurestore.extraction import plan as plan
    from featurestore.extraction.doctor import diagnose as diagnose
    from featurestore.extraction.repair import repair as repair
    from featurestore.features import Features as Features
    from featurestore.features.listing import ls as ls
    from featurestore.heads import Head as Head
    from featurestore.heads import annotate as annotate
    from featurestore.heads import best as best
    from featurestore.heads import fit_head as fit_head
    from featurestore.heads import fit_heads as fit_heads
    from featurestore.heads import leaderboard as leaderboard
    from featurestore.heads import rank as rank
    from featurestore.pipeline.run import run as run
    from featurestore.promotion.evaluation import evaluate as evaluate
    from featurestore.promotion.evaluation import mistakes as mistakes
    from featurestore.promotion.exportable import fixed_images as fixed_images
    from featurestore.promotion.inference import predict as predict
    from featurestore.promotion.run import Promotion as Promotion
    from featurestore.promotion.run import promote as promote
    from featurestore.store import FeatureKey as FeatureKey
    from featurestore.store import FeatureStore as FeatureStore
    from featurestore.table import Table as Table

# Names by the module that has them.
_NAMES = {
    "backbone": "Backbone LayerRef",
    "bars": "progress",
    "dataset": "Dataset",
    "errors": "FeatureStoreError",
    "extraction": "Extraction extract plan",
    "extraction.doctor": "diagnose",
    "extraction.repair": "repair",
    "features": "Features",
    "features.listing": "ls",
    "heads": "Head annotate best fit_head fit_heads leaderboard rank",
    "pipeline.run": "run",
    "promotion": "Promotion evaluate fixed_images mistakes predict promote",
    "store": "FeatureKey FeatureStore",
    "table": "Table",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'featurestore' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featurestore.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
