"""Layers and functions that are not Keras' own: which they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any


def is_keras(code: Any) -> bool:
    """Whether a class or function is Keras' own."""
    return _package(getattr(code, "__module__", None)) == "keras"


def layers_of(operation: Any) -> list[Any]:
    """Return a layer or operation and all layers inside it."""
    return list(getattr(operation, "_flatten_layers", lambda: [operation])())


def own_code(operation: Any) -> list[Any]:
    """Return what a layer, and layers inside it, compute with that is not Keras' own.

    These are classes of layers, and functions that are attributes, such as an activation.
    """
    codes = []
    for layer in layers_of(operation):
        functions = [value for value in vars(layer).values() if isinstance(value, FunctionType)]
        codes += [code for code in (type(layer), *functions) if not is_keras(code)]
    return codes


def is_custom(operation: Any) -> bool:
    """Whether a layer or operation computes with code that is not Keras' own."""
    import keras

    if own_code(operation):
        return True
    config = keras.saving.serialize_keras_object(operation)["config"]
    return any(True for _ in foreign_names(config))


def is_serialized(part: Any) -> bool:
    """Whether a part of a configuration is what ``keras.saving.serialize_keras_object`` gives."""
    return isinstance(part, Mapping) and {"class_name", "config", "module"} <= set(part)


def foreign_names(config: Any) -> Iterator[str]:
    """Yield the name of each class or function in a configuration that is not Keras' own.

    Parameters
    ----------
    config : mapping, list or other JSON value
        Anything that ``keras.saving.serialize_keras_object`` gives, or that is in it.
    """
    if is_serialized(config):
        name = config["class_name"]
        # The module of a class of ``__main__`` is None.
        package = _package(config["module"])
        if package != "keras" and (package != "builtins" or name == "function"):
            yield str(config["config"] if name == "function" else name)
    if isinstance(config, Mapping | list | tuple):
        for part in config.values() if isinstance(config, Mapping) else config:
            yield from foreign_names(part)


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]
