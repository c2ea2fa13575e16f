"""Where a network may compute NaN from finite numbers, which OpenVINO hides.

Its ReLU of NaN is 0, and so is its maximum over an image. An image without contrast that is divided
by its standard deviation would then have features like any others, where TensorFlow's are NaN,
which are never stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Operations whose sign is that of what they take.
_KEEP_SIGN = {
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "Reshape", "Squeeze", "Unsqueeze"),
    *("Transpose", "Broadcast", "Tile", "Convert", "Sqrt"),
}
_NEVER_NEGATIVE = {"Relu", "Abs", "Exp", "Sigmoid", "SoftPlus", "Softmax", "SquaredDifference"}
# What is inside a branch is not looked at.
_OTHERS = {"Acos", "Asin", "Acosh", "Atanh", "Mod", "FloorMod", "If"}


def may_give_nan(model: Any) -> str | None:
    """Return the type of an operation whose result may be NaN or infinite; None if there is none.

    It depends on the image, and nothing shows that it is no root or logarithm of a negative number
    and no division by 0. Overflow does not count.

    Parameters
    ----------
    model : openvino.Model
    """
    varying: set[str] = set()
    for node in model.get_ordered_ops():
        kind, taken = node.get_type_name(), _taken(node)
        name = node.get_name()
        if kind == "Parameter" or any(each.get_name() in varying for each in taken):
            varying.add(name)
            if not _is_defined(kind, taken, node):
                return str(kind)
    return None


def _is_defined(kind: str, taken: list[Any], node: Any) -> bool:
    if kind == "Divide":
        divisor = _constant(taken[1])
        return _is_positive(taken[1]) if divisor is None else bool((divisor != 0).all())
    if kind == "Log":
        return _is_positive(taken[0])
    if kind == "Sqrt":
        return _is_nonnegative(taken[0])
    if kind == "Power":
        exponent = _constant(taken[1])
        if exponent is None or ((exponent < 0).any() and not _is_limited(node)):
            return _is_positive(taken[0])
        return bool((exponent % 1 == 0).all()) or _is_nonnegative(taken[0])
    return kind not in _OTHERS


def _is_limited(node: Any) -> bool:
    """Whether the result is infinite to nobody, because all take the minimum of it and another."""
    takers = node.output(0).get_target_inputs()
    return all(each.get_node().get_type_name() == "Minimum" for each in takers)


def _is_positive(node: Any) -> bool:
    kind, taken = node.get_type_name(), _taken(node)
    if kind == "Constant":
        return bool((_value(node) > 0).all())
    if kind == "Add":
        return any(map(_is_positive, taken)) and all(map(_is_nonnegative, taken))
    if kind == "Maximum":
        return any(map(_is_positive, taken))
    return kind in _KEEP_SIGN and _is_positive(taken[0])


def _is_nonnegative(node: Any) -> bool:
    kind, taken = node.get_type_name(), _taken(node)
    if kind == "Constant":
        return bool((_value(node) >= 0).all())
    if kind in ("Multiply", "Power") and _is_square(kind, taken):
        return True
    if kind == "Power":
        return _is_nonnegative(taken[0])
    if kind in ("Add", "Multiply", "Divide"):
        return all(map(_is_nonnegative, taken))
    if kind == "Maximum":
        return any(map(_is_nonnegative, taken))
    return kind in _NEVER_NEGATIVE or (kind in _KEEP_SIGN and _is_nonnegative(taken[0]))


def _is_square(kind: str, taken: list[Any]) -> bool:
    if kind == "Multiply":
        return bool(taken[0].get_name() == taken[1].get_name())
    exponent = _constant(taken[1])
    return exponent is not None and bool((exponent % 2 == 0).all())


def _taken(node: Any) -> list[Any]:
    return [each.get_source_output().get_node() for each in node.inputs()]


def _constant(node: Any) -> np.ndarray | None:
    while node.get_type_name() == "Convert":
        (node,) = _taken(node)
    return _value(node) if node.get_type_name() == "Constant" else None


def _value(node: Any) -> np.ndarray:
    found: np.ndarray = node.get_data()
    return found
