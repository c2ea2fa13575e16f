"""From a head to a model: fuse, prove, fine-tune, save, evaluate, predict.

::

    convert    scikit-learn estimators as Keras layers     fuse       head and backbone as one model
    parity     how far two predictors may differ           proof      that they are one predictor
    tune       fine-tuning end to end                      run        the whole of it
    saved      model files with class names                predictor  quick predictions from images
    seen       which samples a model has seen              measure    how good it is, on these apart
    apply      evaluate and predict with model files       fine_tuning  the options

The names below are loaded on first use: to read the options imports no Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.promotion.events import (
        PromotionEvent,
        Proved,
        TuningEpochEnded,
        TuningStarted,
    )
    from featurestore.promotion.fine_tuning import FineTuning
    from featurestore.promotion.fuse import promotable
    from featurestore.promotion.inference import evaluate, predict
    from featurestore.promotion.parity import Parity
    from featurestore.promotion.run import Promotion, promote
    from featurestore.promotion.saved import check_target, load_model, save_model

_HOMES = {
    "FineTuning": "fine_tuning",
    "Parity": "parity",
    "Promotion": "run",
    "PromotionEvent": "events",
    "Proved": "events",
    "TuningEpochEnded": "events",
    "TuningStarted": "events",
    "check_target": "saved",
    "evaluate": "apply",
    "load_model": "saved",
    "predict": "apply",
    "promotable": "fuse",
    "promote": "run",
    "save_model": "saved",
}

__all__ = [
    "FineTuning",
    "Parity",
    "Promotion",
    "PromotionEvent",
    "Proved",
    "TuningEpochEnded",
    "TuningStarted",
    "check_target",
    "evaluate",
    "load_model",
    "predict",
    "promotable",
    "promote",
    "save_model",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'featurestore.promotion' has no attribute {name!r}")
    return getattr(importlib.import_module(f"featurestore.promotion.{home}"), name)
