"""Load Keras and TensorFlow quickly, and without their start-up messages."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from types import ModuleType
from typing import Any

LEVEL = "TF_CPP_MIN_LOG_LEVEL"
WRAPPERS = "keras.wrappers"


def load_tensorflow() -> None:
    """Import Keras and TensorFlow without the messages on CPU and CUDA.

    TensorFlow 2.21 writes them to descriptor 2 before its log level takes effect. A level that the
    user has set stays; with level 0 the notes are shown. Child processes do not inherit ours.
    """
    if "keras" in sys.modules:
        return
    given = os.environ.get(LEVEL)
    os.environ[LEVEL] = given or "3"
    sys.modules[WRAPPERS] = _Later(WRAPPERS)
    collecting = gc.isenabled()
    gc.disable()  # Going through a million objects again and again takes half a second.
    try:
        if given == "0":
            import keras  # noqa: F401
        else:
            _load_silently()
    finally:
        if collecting:
            gc.enable()
        atexit.register(gc.freeze)  # A last search for garbage, before memory is freed: a second.
        del sys.modules[WRAPPERS]
        if given is None:
            del os.environ[LEVEL]


class _Later(ModuleType):
    """Stands for a module, and imports it when an attribute is used.

    Keras imports its wrappers when it starts, and with them scikit-learn and `scipy.stats`: a fifth
    of the time, for what few programs use.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def _load_silently() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed
        import keras

        return
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)
