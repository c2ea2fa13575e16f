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
from typing import Any

# Module -> its names that have a place here too.
_NAMES = {
    "evaluation": "evaluate mistakes",
    "events": "PromotionEvent PromotionStageStarted Proved TuningEpochEnded",
    "exportable": "fixed_images",
    "fine_tuning": "FineTuning",
    "fuse": "promotable",
    "inference": "predict",
    "parity": "Parity",
    "run": "Promotion promote",
    "saved": "check_target load_model",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'featurestore.promotion' has no attribute {name!r}")
    from featurestore.quiet import load_tensorflow

    load_tensorflow()
    return getattr(importlib.import_module(f"featurestore.promotion.{home}"), name)
