"""From a head to a model: fuse, prove, fine-tune, save, evaluate, predict.

::

    convert    scikit-learn estimators as Keras layers     fuse       head and backbone as one model
    parity     how far two predictors may differ           proof      that they are one predictor
    tune       fine-tuning end to end                      run        the whole of it
    saved      model files with class names                predictor  quick predictions from images
    apply      evaluate and predict with them
"""

from featurestore.promotion.apply import evaluate, predict
from featurestore.promotion.events import PromotionEvent, Proved, TuningEpochEnded
from featurestore.promotion.fuse import promotable
from featurestore.promotion.parity import Parity
from featurestore.promotion.run import Promotion, promote
from featurestore.promotion.saved import check_target, load_model, save_model

__all__ = [
    "Parity",
    "Promotion",
    "PromotionEvent",
    "Proved",
    "TuningEpochEnded",
    "check_target",
    "evaluate",
    "load_model",
    "predict",
    "promotable",
    "promote",
    "save_model",
]
