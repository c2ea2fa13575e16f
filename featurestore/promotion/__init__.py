"""From a head to a model: fuse, prove, fine-tune, save, evaluate, predict.

::

    run              promote: all steps             fuse         a head on its backbone
    convert          scikit-learn as Keras layers   proof        compare with the cached head
    calibration      sigmoids and temperatures      parity       tolerances of the proof
    fine_tuning      options of fine-tuning         tune         fine-tune end to end
    freezing         which layers train             origin       backbone and data of a head
    saved            model files                    class_names  what every copy of a model keeps
    training_record  samples that trained a model   evaluation   metrics, by what was seen
    inference        predictions from images        exportable   images of one size
    choice           the best head to promote

The names below are loaded on first use: reading the options imports no Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.promotion.evaluation import evaluate as evaluate
    from featurestore.promotion.evaluation import mistakes as mistakes
    from featurestore.promotion.events import PromotionEvent as PromotionEvent
    from featurestore.promotion.events import PromotionStageStarted as PromotionStageStarted
    from featurestore.promotion.events import Proved as Proved
    from featurestore.promotion.events import TuningEpochEnded as TuningEpochEnded
    from featurestore.promotion.exportable import fixed_images as fixed_images
    from featurestore.promotion.fine_tuning import FineTuning as FineTuning
    from featurestore.promotion.freezing import boundary_ref as boundary_ref
    from featurestore.promotion.fuse import promotable as promotable
    from featurestore.promotion.inference import predict as predict
    from featurestore.promotion.parity import Parity as Parity
    from featurestore.promotion.run import Promotion as Promotion
    from featurestore.promotion.run import promote as promote
    from featurestore.promotion.saved import check_target as check_target
    from featurestore.promotion.saved import load_model as load_model

# Names by the module that has them.
_NAMES = {
    "evaluation": "evaluate mistakes",
    "events": "PromotionEvent PromotionStageStarted Proved TuningEpochEnded",
    "exportable": "fixed_images",
    "fine_tuning": "FineTuning",
    "freezing": "boundary_ref",
    "fuse": "promotable",
    "inference": "predict",
    "parity": "Parity",
    "run": "Promotion promote",
    "saved": "check_target load_model",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
# Modules that import Keras at their top.
_WITH_KERAS = ("exportable", "freezing", "fuse", "run")


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'featurestore.promotion' has no attribute {name!r}")
    if home in _WITH_KERAS:
        from featurestore.quiet import load_tensorflow

        load_tensorflow()
    return getattr(importlib.import_module(f"featurestore.promotion.{home}"), name)
