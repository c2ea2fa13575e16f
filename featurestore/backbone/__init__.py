"""Frozen Keras models: where they can be cut, what they compute there, and what that depends on.

The names below are loaded on first use, so that reading the options imports no NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.backbone.backbone import Backbone
    from featurestore.backbone.cost import LayerInfo
    from featurestore.backbone.preprocessing import Preprocessing
    from featurestore.backbone.refs import LayerRef

_HOMES = {
    "Backbone": "backbone",
    "LayerInfo": "cost",
    "LayerRef": "refs",
    "Preprocessing": "preprocessing",
}

__all__ = ["Backbone", "LayerInfo", "LayerRef", "Preprocessing"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'featurestore.backbone' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featurestore.backbone.{home}"), name)
