"""Keras model files, loaded so that no code of theirs runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featurestore.backbone.seeding import seeded
from featurestore.errors import InputError, one_line


def load_model(path: str | Path) -> Any:
    """Load a ``.keras`` or ``.h5`` model in Keras' safe mode, uncompiled.

    Safe mode refuses lambdas, modules other than Keras' own, and files that the model refers to.

    Raises
    ------
    InputError
        If Keras refuses the file; the message is the reason.
    """
    import keras

    try:
        with seeded():
            return keras.models.load_model(str(path), compile=False, safe_mode=True)
    except Exception as error:  # zipfile, h5py, JSON and Keras raise a dozen kinds
        raise InputError(_reason(error)) from error


def _reason(error: Exception) -> str:
    # Keras wraps the error of a layer in a page about the model around it.
    text = str(error).rpartition("Exception encountered:")[2].partition("If you trust")[0]
    return one_line(Exception(text) if text.strip() else error)
