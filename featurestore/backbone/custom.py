"""Layers and functions that are not Keras' own: how to find them, and their identity.

The identity is a digest of byte code, because that is what runs: the source file may have been
edited since it was imported. It covers what a class inherits, class attributes, defaults and
closures, and the functions, classes and constants that the code reads from its own module and the
user's other modules. Keras, TensorFlow, NumPy and the standard library count as fixed; other
installed packages count by name and version. Anything else is refused.
"""

from __future__ import annotations

import dis
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, ModuleType
from typing import Any

from featurestore.digests import canonical_number, digest_array, digest_fields
from featurestore.errors import BackboneError

_FIXED = {"builtins", "jax", "keras", "numpy", "tensorflow", "torch"} | set(sys.stdlib_module_names)
_INSTALLED = {"dist-packages", "site-packages"}
# What methods, properties, partial functions and decorated functions are made of.
_PARTS = (
    "__func__",
    "__self__",
    "__wrapped__",
    "args",
    "fget",
    "fset",
    "func",
    "keywords",
    "python_function",
)


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
    """Raise BackboneError for code of the user that Keras' serialization takes for other code."""
    import keras

    for layer in layers_of(operation):
        own = is_keras(type(layer))
        functions = [each for each in vars(layer).values() if isinstance(each, FunctionType)]
        for code in (type(layer), *(functions if own else ())):
            if is_keras(code):
                continue
            if code.__name__ == "<lambda>":
                raise BackboneError("uses a lambda, which has no canonical form: use keras.ops")
            named = keras.saving.get_registered_object(keras.saving.get_registered_name(code))
            if named not in (None, code):
                raise BackboneError(
                    f"uses {code.__name__!r} as it was before it was defined again: build the model"
                    " again, with what is now registered under that name"
                )
            if code in functions and isinstance(keras.activations.serialize(code), str):
                raise BackboneError(
                    f"uses a function {code.__name__!r} that is not Keras' own of that name: give"
                    " it another name and decorate it with"
                    " keras.saving.register_keras_serializable"
                )


def registered_digest(part: Mapping[str, Any]) -> str:
    """Return the digest of the user's class or function in a part of a configuration.

    Raises
    ------
    BackboneError
        If it is not registered, so that Keras could not find it again when loading, or has no
        canonical form.
    """
    import keras

    name = _name_of(part)
    key = name if part["class_name"] == "function" else part.get("registered_name")
    found = keras.saving.get_registered_object(key) if ">" in str(key) else None
    if found is None:
        raise BackboneError(
            f"uses {name!r}, which Keras cannot find by name: decorate it with"
            " keras.saving.register_keras_serializable, or use a stock one"
        )
    return code_digest(found)


def code_digest(code: Any) -> str:
    """Return the digest of what a user's class or function computes.

    Raises
    ------
    BackboneError
        If it reads an object that has no canonical form.
    """
    return digest_fields({"code": _Walk(code).value(code, code.__name__)})


class _Walk:
    """One walk through code and what it reads, in an order that does not depend on the process."""

    def __init__(self, root: Any) -> None:
        self._home = {_package(root.__module__), "__main__"}
        # Keeps the objects alive, so that their ids stay unique.
        self._seen: dict[int, tuple[int, Any]] = {}

    def value(self, value: Any, name: str) -> Any:
        """Return the canonical form of a value that code reads under a name."""
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, (int, float)):
            return canonical_number(value)
        if isinstance(value, (bytes, complex, range, slice, EllipsisType, PurePath)):
            return {type(value).__name__: repr(value)}
        if isinstance(value, logging.Logger):  # nothing is computed from it
            return {"logger": value.name}
        # The interpreter may make one object or two of equal tuples.
        if isinstance(value, tuple):
            return {type(value).__name__: [self.value(each, name) for each in value]}
        if isinstance(value, (set, frozenset)):
            return {"set": sorted(str(self.value(each, name)) for each in value)}
        if id(value) in self._seen:
            return {"seen": self._seen[id(value)][0]}
        self._seen[id(value)] = (len(self._seen), value)
        if isinstance(value, list):
            return {"list": [self.value(each, name) for each in value]}
        if isinstance(value, dict):
            return {"map": [[self.value(each, name) for each in item] for item in value.items()]}
        if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
            fixed = self._fixed(value.__module__ or "builtins", value.__qualname__)
            if fixed is not None:
                return fixed
            return self._class(value) if isinstance(value, type) else self._function(value)
        if isinstance(value, ModuleType):
            return self._module(value, [each for each in vars(value) if each[0] != "_"])
        return self._object(value, name)

    def _object(self, value: Any, name: str) -> Any:
        import keras
        import numpy as np

        kind = type(value)
        if isinstance(value, np.dtype) or kind.__name__ == "DType":
            return {"dtype": value.name}
        if isinstance(value, (np.generic, np.ndarray)) or keras.ops.is_tensor(value):
            return {"array": digest_array(np.asarray(keras.ops.convert_to_numpy(value)))}
        if self._fixed(kind.__module__, kind.__qualname__) is None and hasattr(value, "__dict__"):
            return {"object": [self.value(kind, name), self.value(dict(vars(value)), name)]}
        parts = {each: getattr(value, each) for each in _PARTS if hasattr(value, each)}
        if parts:
            return {kind.__name__: self.value(parts, name)}
        raise BackboneError(
            f"it reads {name!r}, an object of type {kind.__qualname__}, which has no canonical"
            " form: its changes could not be seen; put it into the layer's configuration, as a"
            " number, a string or an array"
        )

    def _fixed(self, module: str, name: str) -> dict[str, Any] | None:
        """Return the stand-in for code that need not be read; None for the user's own."""
        package = _package(module)
        if package in self._home:
            return None
        if package in _FIXED:
            return {"fixed": f"{module}.{name}"}
        file = getattr(sys.modules.get(module), "__file__", None) or ""
        if not _INSTALLED & set(PurePath(file).parts):
            return None
        version = getattr(sys.modules.get(package), "__version__", None)
        return {"fixed": f"{module}.{name}", "version": str(version)}

    def _class(self, kind: type) -> Any:
        parts = []
        for each in kind.__mro__:
            fixed = self._fixed(each.__module__, each.__qualname__)
            own = {name: member for name, member in vars(each).items() if _is_read(name, member)}
            parts.append(fixed or {name: self.value(own[name], name) for name in sorted(own)})
        return {"class": parts}

    def _function(self, function: Any) -> Any:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        return {
            "function": self._code(function.__code__, function.__globals__),
            "defaults": self.value(function.__defaults__, function.__name__),
            "keywords": self.value(function.__kwdefaults__, function.__name__),
            "closure": [self.value(_content(cell), name) for name, cell in cells],
        }

    def _code(self, code: CodeType, scope: dict[str, Any]) -> Any:
        return {
            "steps": [
                [step.opname, step.arg, self._argument(step, code, scope)]
                for step in dis.get_instructions(code)
            ],
            "exceptions": code.co_exceptiontable.hex(),
            "flags": code.co_flags,
            "arguments": [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount],
            "variables": list(code.co_varnames),
        }

    def _argument(self, step: dis.Instruction, code: CodeType, scope: dict[str, Any]) -> Any:
        """Return the argument of an instruction: a constant, a name, or the object of that name."""
        # Python 3.11 does not look up the names of keyword arguments, which are constants too.
        found = code.co_consts[step.arg or 0] if step.opcode in dis.hasconst else step.argval
        if isinstance(found, CodeType):
            return self._code(found, scope)
        if step.opname == "IMPORT_NAME":
            inside = f"{scope.get('__package__')}.{found}"
            found = sys.modules.get(found) or sys.modules.get(inside)
        elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found = scope.get(found, found)
        if isinstance(found, ModuleType):
            return self._module(found, code.co_names)
        return self.value(found, str(step.argval))

    def _module(self, module: ModuleType, names: Sequence[str]) -> Any:
        """Return what code may read from a module, by the names that it uses."""
        fixed = self._fixed(module.__name__, "")
        if fixed is not None:
            return fixed
        read: dict[str, Any] = {}
        for place, name in enumerate(names):
            found = vars(module).get(name)
            if isinstance(found, ModuleType):
                read[name] = self._module(found, names[place + 1 :])
            elif found is not None:
                read[name] = self.value(found, name)
        return {"module": module.__name__, "reads": read}


def _name_of(part: Mapping[str, Any]) -> str:
    return str(part["config"] if part["class_name"] == "function" else part["class_name"])


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _is_read(name: str, member: Any) -> bool:
    """Whether a member of a class may be computed with; names, lines and docs are not."""
    special = name.startswith("__") or name == "_abc_impl"
    return not special or callable(member) or hasattr(member, "__func__")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
