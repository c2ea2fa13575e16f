"""Layers and functions that are not Keras' own: how to find them, and their identity.

The identity is a digest of byte code, because that is what runs: the source file may have been
edited since it was imported. It covers methods, class attributes, default arguments, and the
user's classes and functions that code uses by name. Keras, TensorFlow, NumPy and the standard
library count as fixed, other installed packages by version. Other modules and objects are refused.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, ModuleType
from typing import Any

from featurestore.digests import canonical_number, digest_array, digest_fields
from featurestore.errors import BackboneError

_FIXED = {"builtins", "jax", "keras", "numpy", "tensorflow", "torch"} | set(sys.stdlib_module_names)
_INSTALLED = {"dist-packages", "site-packages"}
_REGISTER = "decorate it with keras.saving.register_keras_serializable"


def is_keras(code: Any) -> bool:
    """Whether a class or function is Keras' own."""
    return _package(getattr(code, "__module__", None)) == "keras"


def layers_of(operation: Any) -> list[Any]:
    """Return a layer or operation and all layers inside it."""
    return list(getattr(operation, "_flatten_layers", lambda: [operation])())


def is_custom(operation: Any) -> bool:
    """Whether a layer or operation is, or holds, one that is not Keras' own."""
    return not all(is_keras(type(layer)) for layer in layers_of(operation))


def is_serialized(part: Any) -> bool:
    """Whether a part of a configuration is what ``keras.saving.serialize_keras_object`` gives."""
    return isinstance(part, Mapping) and {"class_name", "config", "module"} <= set(part)


def is_foreign(part: Any) -> bool:
    """Whether a part of a serialized configuration is a class or function that is not Keras' own.

    Parameters
    ----------
    part : mapping or other JSON value
        Anything that ``keras.saving.serialize_keras_object`` gives, or that is in it.
    """
    if not is_serialized(part):
        return False
    # The module of a class of ``__main__`` is None.
    package = _package(part["module"])
    return package != "keras" and (package != "builtins" or part["class_name"] == "function")


def foreign_names(config: Any) -> Iterator[str]:
    """Yield the name of each class or function in a configuration that is not Keras' own."""
    if is_foreign(config):
        yield _name_of(config)
    parts: Any = config.values() if isinstance(config, Mapping) else config
    if isinstance(config, Mapping | list | tuple):
        for part in parts:
            yield from foreign_names(part)


def refuse_hidden_code(operation: Any) -> None:
    """Raise BackboneError for code of the user that Keras does not find, or takes for other code.

    It is not registered; or its name is that of a function of Keras, or of a class or function that
    was defined later.
    """
    import keras

    for layer in layers_of(operation):
        codes: list[Any] = [type(layer)]
        if is_keras(type(layer)):
            codes = [value for value in vars(layer).values() if isinstance(value, FunctionType)]
        for code in codes:
            name = keras.saving.get_registered_name(code)
            if not is_keras(code) and keras.saving.get_registered_object(name) is not code:
                raise BackboneError(
                    f"uses {code.__name__!r}, which is not what Keras finds by this name",
                    remedy=f"{_REGISTER}, under a name of its own, and build the model again",
                )


def registered_digest(part: Mapping[str, Any]) -> str:
    """Return the digest of the user's class or function in a part of a configuration.

    Raises
    ------
    BackboneError
        If Keras could not find it by name, or :func:`code_digest` refuses it.
    """
    import keras

    name = _name_of(part)
    key = name if part["class_name"] == "function" else part.get("registered_name")
    code = keras.saving.get_registered_object(key) if ">" in str(key) else None
    if code is None:
        raise BackboneError(
            f"uses {name!r}, which Keras cannot find by name",
            remedy=f"{_REGISTER}, or use a stock one",
        )
    return code_digest(code)


def code_digest(code: type | FunctionType) -> str:
    """Return the digest of what a user's class or function computes.

    Raises
    ------
    BackboneError
        If it uses an object whose changes would not be seen.
    """
    return digest_fields({"code": _Code(code).parts()})


class _Code:
    """A class or function, with the user's classes and functions that it uses."""

    def __init__(self, code: type | FunctionType) -> None:
        self._home = _package(code.__module__)
        self._own: list[Any] = [code]

    def parts(self) -> list[Any]:
        """Return the canonical form of each; the list grows while it is read."""
        return [
            self._class(code) if isinstance(code, type) else self._function(code)
            for code in self._own
        ]

    def _class(self, kind: type) -> dict[str, Any]:
        members: dict[str, list[Any]] = {}
        for name, member in sorted(vars(kind).items()):
            # Properties, and static and class methods.
            inner = [getattr(member, part, None) for part in ("fget", "fset", "__func__")]
            # Names, lines and docs are not computed with.
            if not name.startswith(("__", "_abc_impl")) or callable(member) or any(inner):
                parts = filter(None, inner) if any(inner) else [member]
                values = [self._value(part, name) for part in parts]
                members[name] = [type(member).__name__, *values]
        return {"bases": self._value(kind.__bases__, "bases"), "members": members}

    def _function(self, function: FunctionType) -> dict[str, Any]:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        return {
            "code": self._bytes(function.__code__, function.__globals__),
            "defaults": self._value([function.__defaults__, function.__kwdefaults__], "defaults"),
            "closure": [self._value(cell.cell_contents, name) for name, cell in cells.items()],
        }

    def _bytes(self, code: CodeType, scope: dict[str, Any]) -> dict[str, Any]:
        steps, constants = list(dis.get_instructions(code)), []
        reads: dict[str, Any] = {}
        for number, step in enumerate(steps):
            name = str(step.argval)
            if step.opcode in dis.hasconst:  # documentation strings are never loaded
                value = code.co_consts[step.arg or 0]
                inner = isinstance(value, CodeType)
                constants.append(self._bytes(value, scope) if inner else self._value(value, name))
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                reads[name] = self._value(scope.get(name), name)
            elif step.opname == "IMPORT_NAME":
                # Two steps before stands how many folders to go up; 0 for other packages.
                origin = _origin(name) if steps[number - 2].argval == 0 else None
                reads[f"import {name}"] = origin or self._refuse(name)
        fields = ("names", "varnames", "freevars", "flags")
        counts = ("argcount", "posonlyargcount", "kwonlyargcount")
        return {
            **{field: getattr(code, f"co_{field}") for field in (*fields, *counts)},
            "steps": code.co_code.hex(),
            "exceptions": code.co_exceptiontable.hex(),
            "constants": constants,
            "reads": reads,
        }

    def _value(self, value: Any, name: str) -> Any:
        """Return the canonical form of a constant, or of code that counts as a whole."""
        import keras
        import numpy as np

        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | float):
            return canonical_number(value)
        if isinstance(value, bytes | complex | EllipsisType | slice):
            return {type(value).__name__: repr(value)}
        if isinstance(value, tuple | list | dict | set | frozenset):
            values = value.items() if isinstance(value, dict) else value
            parts = [self._value(part, name) for part in values]
            is_set = isinstance(value, set | frozenset)
            return {type(value).__name__: sorted(parts, key=str) if is_set else parts}
        if isinstance(value, np.generic | np.ndarray) or keras.ops.is_tensor(value):
            return {"array": digest_array(np.asarray(keras.ops.convert_to_numpy(value)))}
        if isinstance(value, ModuleType):
            return _origin(value.__name__) or self._refuse(name)
        if not isinstance(value, type | FunctionType | BuiltinFunctionType):
            return self._refuse(name)
        module = value.__module__ or "builtins"
        origin = _origin(module)
        if origin is not None and _package(module) != self._home:
            return {"origin": origin, "name": value.__qualname__}
        places = [place for place, code in enumerate(self._own) if code is value]
        if not places:
            self._own.append(value)
        return {"own": places[0] if places else len(self._own) - 1}

    def _refuse(self, name: str) -> Any:
        raise BackboneError(
            f"reads {name!r}, whose changes would not be seen",
            "constants, functions, classes, and modules of installed packages",
            "pass it in the layer's configuration, or move it into the class",
        )


def _origin(module: str) -> str | None:
    """Return a package that counts as a whole, with its version; None for the user's modules."""
    package = _package(module)
    if package in _FIXED:
        return package
    loaded = sys.modules.get(package)
    place = PurePath(getattr(loaded, "__file__", None) or "")
    version = getattr(loaded, "__version__", None)
    return f"{package} {version}" if version and _INSTALLED & set(place.parts) else None


def _name_of(part: Mapping[str, Any]) -> str:
    return str(part["config"] if part["class_name"] == "function" else part["class_name"])


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]
