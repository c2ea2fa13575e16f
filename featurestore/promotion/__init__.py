"""From a head to a model: fuse, prove, fine-tune, save, evaluate, predict.

::

    convert      scikit-learn estimators as Keras layers    fuse        head and backbone as one
    parity       how far two predictors may differ          proof       that they are the same one
    freezing     which layers train, and at which rate      tune        fine-tuning end to end
    fine_tuning  the options of fine-tuning                 run         the whole of it
    saved        model files with class names               seen        samples a model has seen
    inference    predictions from images                    evaluation  metrics, by what was seen
    origin       backbone and data set behind a head

The names below are loaded on first use: reading the options imports no Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.promotion.evaluation import evaluate
    from featurestore.promotion.events import (
        PromotionEvent,
        Proved,
        TuningEpochEnded,
        TuningStarted,
    )
    from featurestore.promotion.fine_tuning import FineTuning
    from featurestore.promotion.fuse import promotable
    from featurestore.promotion.inference import Prediction, predict
    from featurestore.promotion.parity import Parity
    from featurestore.promotion.run import Promotion, promote
    from featurestore.promotion.saved import check_target, load_model, save_model

_HOMES = {
    "FineTuning": "fine_tuning",
    "Parity": "parity",
    "Prediction": "inference",
    "Promotion": "run",
    "PromotionEvent": "events",
    "Proved": "events",
    "TuningEpochEnded": "events",
    "TuningStarted": "events",
    "check_target": "saved",
    "evaluate": "evaluation",
    "load_model": "saved",
    "predict": "inference",
    "promotable": "fuse",
    "promote": "run",
    "save_model": "saved",
}

__all__ = [
    "FineTuning",
    "Parity",
    "Prediction",
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
