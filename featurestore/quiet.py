"""Load Keras and TensorFlow quickly, and without their start-up messages."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def load_tensorflow() -> None:
    """Import Keras and TensorFlow without the messages on CPU and CUDA.

    The log level is set to errors only, unless the user has set one; 0 shows the messages.
    """
    if "keras" in sys.modules:
        return
    level = os.environ.setdefault(LEVEL, "3")
    # Repeated searches for garbage among a million new objects take half a second, and the last
    # one, when the process ends, takes a second.
    gc.disable()
    atexit.register(gc.freeze)
    try:
        with nullcontext() if level == "0" else _stderr_to_null():
            import keras  # noqa: F401
    finally:
        gc.enable()


@contextmanager
def _stderr_to_null() -> Iterator[None]:
    """Discard descriptor 2, to which TensorFlow 2.21 writes before its log level takes effect."""
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
