"""What the user's own code computes, as a digest: changed code is a changed identity.

The digest is made of byte code, which is what runs: a source file may have been edited since it was
imported. With a class or function go what it inherits, class attributes, defaults and closures, and
the functions, classes and constants that it reads from its own module and other modules of the
user's. Keras, TensorFlow, NumPy and the standard library count as fixed; other installed packages
count by name and version.
"""

from __future__ import annotations

import dis
import enum
import functools
import os
import re
import sys
import types
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from featurestore.digests import canonical_number, digest_array, digest_fields
from featurestore.errors import BackboneError

_FIXED = {"builtins", "jax", "keras", "numpy", "tensorflow", "torch"} | set(sys.stdlib_module_names)
_INSTALLED = {"dist-packages", "site-packages"}
# Locks, loggers and the like: nothing is computed from them.
_IDLE_OBJECTS = {"_thread", "logging", "threading"}
# Of a class: what Python keeps there for itself, and what changes with no effect.
_IDLE = {
    "__abstractmethods__",
    "__annotate__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__qualname__",
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
}


def is_keras(code: Any) -> bool:
    """Whether a class or function is Keras' own."""
    return _package(getattr(code, "__module__", None)) == "keras"


def code_digest(code: Any) -> str:
    """Return the digest of what a class or function of the user's computes.

    Raises
    ------
    BackboneError
        Where it reads an object that has no canonical form.
    """
    return digest_fields({"code": _Walk(code).value(code)})


class _Walk:
    """One walk through code and what it reads, in an order that does not depend on the process."""

    def __init__(self, root: Any) -> None:
        self._home = {_package(root.__module__), "__main__"}
        # The objects are held, so that no other one gets their id.
        self._seen: dict[int, tuple[int, Any]] = {}

    def value(self, value: Any) -> Any:
        """Return the canonical form of a value that code reads."""
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, enum.Enum):
            return {"member": [type(value).__qualname__, value.name, self.value(value.value)]}
        if isinstance(value, (int, float)):
            return canonical_number(value)
        if isinstance(value, (complex, bytes, range, slice, re.Pattern, types.EllipsisType)):
            return {type(value).__name__: repr(value)}
        if isinstance(value, PurePath):
            return {"path": os.fspath(value)}
        if type(value).__module__ in _IDLE_OBJECTS:
            return {"idle": type(value).__name__}
        if isinstance(value, types.CodeType):
            return self._code(value, {})
        if isinstance(value, types.ModuleType):
            return {"module": value.__name__}
        # Equal tuples may be one object or two, as the interpreter likes.
        if isinstance(value, tuple):
            return {type(value).__name__: [self.value(each) for each in value]}
        if isinstance(value, (set, frozenset)):
            return {"set": sorted(str(self.value(each)) for each in value)}
        if id(value) in self._seen:
            return {"seen": self._seen[id(value)][0]}
        self._seen[id(value)] = (len(self._seen), value)
        return self._compound(value)

    def _compound(self, value: Any) -> Any:
        if isinstance(value, list):
            return {"list": [self.value(each) for each in value]}
        if isinstance(value, Mapping):
            return {"map": [[self.value(key), self.value(value[key])] for key in value]}
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            fixed = self._fixed(value)
            if fixed is not None:
                return fixed
            return self._class(value) if isinstance(value, type) else self._function(value)
        if isinstance(value, property):
            return {"property": [self.value(each) for each in (value.fget, value.fset)]}
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return {"partial": [self.value(each) for each in parts]}
        for within in ("__func__", "__wrapped__", "func", "python_function"):
            inner = getattr(value, within, None)
            if callable(inner):
                return {type(value).__name__: self.value(inner)}
        return self._object(value)

    def _object(self, value: Any) -> Any:
        import keras
        import numpy as np

        if isinstance(value, np.dtype) or type(value).__name__ == "DType":
            return {"dtype": value.name}
        if isinstance(value, (np.generic, np.ndarray)) or keras.ops.is_tensor(value):
            return {"array": digest_array(np.asarray(keras.ops.convert_to_numpy(value)))}
        fixed = self._fixed(type(value))
        if fixed is None and hasattr(value, "__dict__"):
            return {"object": [self.value(type(value)), self.value(dict(vars(value)))]}
        if fixed is not None and isinstance(value, types.MemberDescriptorType):
            return {"slot": value.__name__}
        raise BackboneError(
            f"an object of type {type(value).__qualname__}, which has no canonical form: changes"
            " of it could not be seen; hand it over in the layer's configuration, as a number,"
            " a string or an array"
        )

    def _fixed(self, code: Any) -> dict[str, Any] | None:
        """Return how code is known by name; None where it has to be read."""
        module = getattr(code, "__module__", None) or "builtins"
        package = _package(module)
        name = f"{module}.{code.__qualname__}"
        if package in self._home:
            return None
        if package in _FIXED:
            return {"fixed": name}
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None or not _INSTALLED & set(PurePath(file).parts):
            return None
        return {"fixed": name, "version": _version(package)}

    def _class(self, kind: type) -> Any:
        parts = []
        for each in kind.__mro__:
            fixed = self._fixed(each)
            if fixed is not None:
                parts.append(fixed)
                continue
            members = {name: vars(each)[name] for name in sorted(vars(each)) if name not in _IDLE}
            parts.append({name: self._named(name, member) for name, member in members.items()})
        return {"class": parts}

    def _function(self, function: Any) -> Any:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        return {
            "function": self._code(function.__code__, function.__globals__),
            "defaults": self.value(function.__defaults__),
            "keywords": self.value(function.__kwdefaults__),
            "closure": [self._named(name, _content(cell)) for name, cell in cells],
        }

    def _code(self, code: types.CodeType, scope: dict[str, Any]) -> Any:
        constants = [
            self._code(each, scope) if isinstance(each, types.CodeType) else self.value(each)
            for each in code.co_consts
        ]
        return {
            "bytes": code.co_code.hex(),
            "exceptions": getattr(code, "co_exceptiontable", b"").hex(),
            "flags": code.co_flags,
            "arguments": [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount],
            "variables": [*code.co_varnames, *code.co_cellvars, *code.co_freevars],
            "names": list(code.co_names),
            "constants": constants,
            "reads": self._reads(code, scope),
        }

    def _reads(self, code: types.CodeType, scope: dict[str, Any]) -> dict[str, Any]:
        """Return what code takes from its module, and from modules that it takes from there."""
        read: dict[str, Any] = {}
        for step in dis.get_instructions(code):
            name = step.argval
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name in scope:
                found = scope[name]
            elif step.opname == "IMPORT_NAME":
                found = sys.modules.get(name) or sys.modules.get(
                    f"{scope.get('__package__')}.{name}"
                )
            else:
                continue
            if name in read:
                continue
            if isinstance(found, types.ModuleType):
                read[name] = self._of_module(found, code.co_names)
            else:
                read[name] = self._named(name, found)
        return read

    def _of_module(self, module: types.ModuleType, names: tuple[str, ...]) -> Any:
        """Return what code may read of a module of the user's, by the names that it uses."""
        package, file = _package(module.__name__), getattr(module, "__file__", None) or ""
        if package not in self._home:
            if package in _FIXED:
                return {"module": module.__name__}
            if _INSTALLED & set(PurePath(file).parts):
                return {"module": module.__name__, "version": _version(package)}
        read: dict[str, Any] = {}
        for place, name in enumerate(names):
            found = vars(module).get(name)
            if isinstance(found, types.ModuleType):
                read[name] = self._of_module(found, names[place + 1 :])
            elif found is not None:
                read[name] = self._named(name, found)
        return {"module": module.__name__, "reads": read}

    def _named(self, name: str, value: Any) -> Any:
        try:
            return self.value(value)
        except BackboneError as error:
            message = str(error)
            if message.startswith("an object"):
                message = f"it reads {name!r}, {message}"
            raise BackboneError(message) from None


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _version(package: str) -> str | None:
    version = getattr(sys.modules.get(package), "__version__", None)
    return None if version is None else str(version)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
