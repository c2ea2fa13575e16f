"""Layers, classes and functions that are not Keras' own, live or in serialized configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from featurestore.errors import BackboneError


def is_keras(code: Any) -> bool:
    """Whether a class or function is Keras' own."""
    return (getattr(code, "__module__", None) or "").partition(".")[0] == "keras"


def is_foreign(part: Any) -> bool:
    """Whether a part of a serialized configuration is a class or function that is not Keras' own.

    Parameters
    ----------
    part : mapping or other JSON value
        Anything that ``keras.saving.serialize_keras_object`` gives, or that is in it.
    """
    if not isinstance(part, Mapping) or not {"class_name", "config", "module"} <= set(part):
        return False
    # The module of a class of ``__main__`` is None.
    package = (part["module"] or "").partition(".")[0]
    return package != "keras" and (package != "builtins" or part["class_name"] == "function")


def foreign_names(config: Any) -> Iterator[str]:
    """Yield the name of each class or function in a configuration that is not Keras' own."""
    if is_foreign(config):
        yield name_of(config)
    parts: Any = config.values() if isinstance(config, Mapping) else config
    if isinstance(config, Mapping | list | tuple):
        for part in parts:
            yield from foreign_names(part)


def name_of(part: Mapping[str, Any]) -> str:
    """Return the name of a serialized class or function."""
    return str(part["config"] if part["class_name"] == "function" else part["class_name"])


def registered(part: Mapping[str, Any]) -> Any:
    """Return the user's class or function behind a part of a configuration.

    Raises
    ------
    BackboneError
        If it is not registered, so that Keras could not find it again when loading.
    """
    import keras

    name = name_of(part)
    key = name if part["class_name"] == "function" else part.get("registered_name")
    found = keras.saving.get_registered_object(key) if ">" in str(key) else None
    if found is None:
        raise BackboneError(
            f"uses {name!r}, which Keras cannot find by name: decorate it with"
            " keras.saving.register_keras_serializable, or use a stock one"
        )
    return found


def refuse_hidden_functions(operation: Any) -> None:
    """Refuse functions of the user's that Keras would serialize as its own of the same name."""
    import keras

    for layer in getattr(operation, "_flatten_layers", lambda: [operation])():
        for value in vars(layer).values() if is_keras(type(layer)) else ():
            if not isinstance(value, FunctionType) or is_keras(value):
                continue
            if value.__name__ == "<lambda>":
                raise BackboneError("uses a lambda, which has no canonical form: use keras.ops")
            if isinstance(keras.activations.serialize(value), str):
                raise BackboneError(
                    f"uses a function {value.__name__!r} that is not Keras' own of that name: give"
                    " it another name and decorate it with"
                    " keras.saving.register_keras_serializable"
                )
