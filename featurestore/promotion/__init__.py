"""From a head to a model: fuse, prove, fine-tune, save, evaluate, predict.

::

    run          promote: all steps                        fuse        a head on its backbone
    convert      scikit-learn estimators as Keras layers   proof       compare with the cached head
    parity       tolerances of the proof                   tune        fine-tune end to end
    fine_tuning  options of fine-tuning                    freezing    which layers train, and how
    saved        model files with class names              seen        samples a model has seen
    inference    predictions from images                   evaluation  metrics, by what was seen
    carried      what the layers carry                      listing     images to predict
    choice       the best head that can be promoted         origin      backbone and data of a head
    exportable   images of one size, for LiteRT and ONNX

The names below are loaded on first use: reading the options imports no Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.promotion.evaluation import evaluate, mistakes
    from featurestore.promotion.events import (
        PromotionEvent,
        Proved,
        TuningEpochEnded,
        TuningStarted,
    )
    from featurestore.promotion.exportable import fixed_images
    from featurestore.promotion.fine_tuning import FineTuning
    from featurestore.promotion.freezing import boundary_ref
    from featurestore.promotion.fuse import promotable
    from featurestore.promotion.inference import Prediction, predict
    from featurestore.promotion.parity import Parity
    from featurestore.promotion.run import Promotion, promote
    from featurestore.promotion.saved import Promoted, check_target, load_model

_HOMES = {
    "FineTuning": "fine_tuning",
    "Parity": "parity",
    "Prediction": "inference",
    "Promoted": "saved",
    "Promotion": "run",
    "PromotionEvent": "events",
    "Proved": "events",
    "TuningEpochEnded": "events",
    "TuningStarted": "events",
    "boundary_ref": "freezing",
    "check_target": "saved",
    "evaluate": "evaluation",
    "fixed_images": "exportable",
    "load_model": "saved",
    "mistakes": "evaluation",
    "predict": "inference",
    "promotable": "fuse",
    "promote": "run",
}
# Modules that import Keras at their top.
_WITH_KERAS = ("carried", "exportable", "freezing", "fuse", "run")

__all__ = [
    "FineTuning",
    "Parity",
    "Prediction",
    "Promoted",
    "Promotion",
    "PromotionEvent",
    "Proved",
    "TuningEpochEnded",
    "TuningStarted",
    "boundary_ref",
    "check_target",
    "evaluate",
    "fixed_images",
    "load_model",
    "mistakes",
    "predict",
    "promotable",
    "promote",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'featurestore.promotion' has no attribute {name!r}")
    if home in _WITH_KERAS:
        from featurestore.quiet import load_tensorflow

        load_tensorflow()
    return getattr(importlib.import_module(f"featurestore.promotion.{home}"), name)
