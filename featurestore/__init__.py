"""Extract the features of frozen Keras backbones once; train heads on them; promote the best.

The names below are loaded on first use, so that importing the package imports no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.backbone import Backbone, LayerRef
    from featurestore.dataset import Dataset
    from featurestore.errors import FeatureStoreError
    from featurestore.extraction import Extraction, extract
    from featurestore.features import Features
    from featurestore.heads import Head, fit_head
    from featurestore.promotion import promote
    from featurestore.store import FeatureKey, FeatureStore

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
    "extract": "extraction",
    "fit_head": "heads",
    "promote": "promotion",
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
    "extract",
    "fit_head",
    "promote",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'featurestore' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featurestore.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
