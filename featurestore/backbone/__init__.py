"""Frozen Keras models: where they can be cut, what they compute there, and what that depends on."""

from featurestore.backbone.backbone import Backbone
from featurestore.backbone.cost import LayerInfo
from featurestore.backbone.preprocessing import INTERPOLATIONS, RESIZES, SCALINGS, Preprocessing
from featurestore.backbone.refs import LayerRef, unfrozen

__all__ = [
    "INTERPOLATIONS",
    "RESIZES",
    "SCALINGS",
    "Backbone",
    "LayerInfo",
    "LayerRef",
    "Preprocessing",
    "unfrozen",
]
