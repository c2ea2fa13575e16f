"""Labels of one type, and what heads learn from: classes, and a target for each row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from featurestore.dataset.source import is_text
from featurestore.errors import DatasetError

Label = str | int | float | None
Task = Literal["classification", "regression"]

# Python takes the square of their number to read so many digits.
_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")
_NUMBER = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|infinity)", re.IGNORECASE
)
# Read as "no label" in a column of numbers or of nothing else; among words only empty cells are.
_ABSENT = {"", "nan", "na", "n/a", "<na>", "null", "none"}


def from_text(cells: Sequence[str]) -> list[Label]:
    """Give the cells of a CSV column one type: integers, numbers, or else words.

    Parameters
    ----------
    cells : sequence of str
        Empty where there is no label.

    Examples
    --------
    >>> from_text(["007", "7", ""]), from_text(["1.5", "2", "NaN"]), from_text(["cat", "7"])
    ([7, 7, None], [1.5, 2.0, None], ['cat', '7'])
    """
    present = [each for each in cells if each.strip().casefold() not in _ABSENT]
    number: type[int] | type[float]
    if present and all(_INTEGER.fullmatch(each.strip()) for each in present):
        number = int
    elif present and all(_NUMBER.fullmatch(each.strip()) for each in present):
        number = float
    elif present:
        return [each if each.strip() else None for each in cells]
    else:
        return [None] * len(cells)
    return [None if each.strip().casefold() in _ABSENT else number(each) for each in cells]


def uniform(values: Iterable[Any], where: str) -> list[Label]:
    """Turn labels of whatever library into Python ones of one type; missing ones into None.

    Parameters
    ----------
    values : iterable
        Text, integers, finite floats or booleans (which become the words ``"False"`` and
        ``"True"``); None, NaN, ``pandas.NA`` and empty or blank text are missing.
    where : str
        Names the labels in an error.

    Raises
    ------
    DatasetError
        Where the types are mixed, or one is none of these.
    """
    labels: list[Label] = []
    kinds: dict[str, Any] = {}
    for value in values:
        kind, label = _one(value, where)
        labels.append(label)
        if kind is not None:
            kinds.setdefault(kind, value)
    if set(kinds) == {"integer", "number"}:
        return [None if label is None else float(label) for label in labels]
    if len(kinds) > 1:
        shown = " and ".join(f"{kind} ({value!r})" for kind, value in sorted(kinds.items()))
        raise DatasetError(
            f"{where}: labels of mixed types, {shown}; expected all text, all integers or all "
            "floats: convert them to one type"
        )
    return labels


def _one(value: Any, where: str) -> tuple[str | None, Label]:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None, None
    if isinstance(value, bool | np.bool_):
        return "boolean", str(bool(value))
    if isinstance(value, int | np.integer):
        if not -(2**63) <= value < 2**63:
            raise DatasetError(f"{where}: label {value} does not fit 64 bits; make it text")
        return "integer", int(value)
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return None, None
        if np.isinf(value):
            raise DatasetError(f"{where}: label {value}, expected a finite number or none")
        return "number", float(value)
    if isinstance(value, str):
        if not is_text(value):
            raise DatasetError(f"{where}: label {value!r} is not valid Unicode")
        return ("text", str(value)) if value.strip() else (None, None)
    raise DatasetError(
        f"{where}: label {str(value)[:60]!r} of type {type(value).__name__}, expected one text, "
        "integer or float for each sample"
    )


def column(labels: Sequence[Label]) -> np.ndarray | None:
    """Put labels in an array: float64 with NaN, or objects with None; None where there is none."""
    if all(each is None for each in labels):
        return None
    if any(isinstance(each, float) for each in labels):
        return np.array([np.nan if each is None else each for each in labels], np.float64)
    array = np.empty(len(labels), object)
    array[:] = labels
    return array


def task(labels: np.ndarray | None) -> Task | None:
    """Tell what the labels (row,) are for: floats regression, text and integers classification."""
    if labels is None:
        return None
    return "regression" if labels.dtype == np.float64 else "classification"


def classes(labels: np.ndarray | None) -> tuple[Any, ...]:
    """Return the sorted classes among labels (row,); none unless it is a classification."""
    if labels is None or task(labels) != "classification":
        return ()
    return tuple(sorted({each for each in labels if each is not None}))


def targets(labels: np.ndarray | None, rows: int) -> np.ndarray:
    """Return what a head fits, (row,): int32 codes into the classes, or float64 values.

    A missing label is -1 or NaN.
    """
    if labels is None:
        return np.full(rows, -1, np.int32)
    if task(labels) == "regression":
        return labels
    codes = {each: code for code, each in enumerate(classes(labels))}
    return np.array([codes.get(each, -1) for each in labels], np.int32)
