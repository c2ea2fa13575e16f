"""Labels of one type, and what heads learn from: classes, and a target for each row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unicodedata import normalize

import numpy as np

from featurestore.errors import DatasetError

Label = str | int | float | None
Task = Literal["classification", "regression"]

_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")
_NUMBER = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|inf|infinity)", re.IGNORECASE
)
# Missing labels in a column of numbers, or of nothing else; beside words, only blank cells are.
_ABSENT = {"", "nan", "na", "n/a", "<na>", "null", "none"}


def parse(cells: Sequence[str], where: str) -> list[Label]:
    """Give the cells of a CSV column one type: integers, else floats, else text.

    Raises
    ------
    DatasetError
        If all cells are numbers, but some have commas; ``where`` names the table.

    Examples
    --------
    >>> parse(["007", "7", ""], "t"), parse(["1.5", "2", "NaN"], "t"), parse(["cat", "7"], "t")
    ([7, 7, None], [1.5, 2.0, None], ['cat', '7'])
    """
    stripped = [None if cell.strip().casefold() in _ABSENT else cell.strip() for cell in cells]
    present = [cell for cell in stripped if cell is not None]
    if all(_INTEGER.fullmatch(cell) for cell in present):
        return [None if cell is None else int(cell) for cell in stripped]
    if all(_NUMBER.fullmatch(cell) for cell in present):
        return [None if cell is None else float(cell) for cell in stripped]
    if all(_NUMBER.fullmatch(cell.replace(",", ".")) for cell in present):
        comma = next(cell for cell in present if "," in cell)
        raise DatasetError(
            f"{where}: label {comma!r} has a comma",
            "numbers with decimal points, or text",
            "read it with pandas.read_csv(…, decimal=',') and pass the DataFrame",
        )
    return list(cells)


def text(value: Any) -> str:
    """Return a value as valid Unicode in composed form (NFC), so that equal names compare equal.

    Bytes of a file name that are not UTF-8 appear as escapes.
    """
    return normalize("NFC", str(value).encode("utf-8", "backslashreplace").decode())


def is_missing(value: Any) -> bool:
    """Whether a value means "none": None, NaN, ``pandas.NA``, blank text."""
    if isinstance(value, str):
        return not value.strip()
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float | np.floating) and bool(np.isnan(value)))
    )


def uniform(values: Iterable[Any], where: str) -> list[Label]:
    """Turn labels from any library into Python values of one type; errors name ``where``.

    They are text, integers, finite floats or booleans (which become the classes ``"False"`` and
    ``"True"``). Missing labels become None, see `is_missing`.

    Raises
    ------
    DatasetError
        If the types are mixed or a value is none of these.
    """
    labels = [None if is_missing(value) else _label(value, where) for value in values]
    kinds = {type(label): label for label in labels if label is not None}
    if set(kinds) == {int, float}:
        return [None if label is None else float(label) for label in labels]
    if len(kinds) > 1:
        shown = sorted(f"{kind.__name__} ({label!r})" for kind, label in kinds.items())
        raise DatasetError(
            f"{where}: labels of mixed types, {' and '.join(shown)}",
            "all text, all integers or all floats",
        )
    return [str(label) if isinstance(label, bool) else label for label in labels]


def _label(value: Any, where: str) -> str | int | float:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, float | np.floating) and np.isfinite(value):
        return float(value)
    raise DatasetError(
        f"{where}: label {str(value)[:60]} of type {type(value).__name__}",
        "text, an integer of 64 bits or a finite float for each sample",
    )


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of samples, as heads fit them.

    Attributes
    ----------
    classes : tuple
        The sorted classes, str or int; empty unless it is a classification.
    targets : numpy.ndarray, (row,)
        int32 codes into the classes, -1 where missing; or float64, NaN where missing.
    """

    classes: tuple[Any, ...]
    targets: np.ndarray

    @classmethod
    def of(cls, values: Sequence[Label]) -> Labels:
        """Take labels of one type, as `uniform` returns them."""
        distinct = {label for label in values if label is not None}
        if any(isinstance(label, float) for label in distinct):
            return cls((), np.array(values, np.float64) + 0.0)  # NaN for None, 0.0 for -0.0
        classes: tuple[Any, ...] = tuple(sorted(distinct))  # type: ignore[type-var]
        codes: dict[Label, int] = {name: code for code, name in enumerate(classes)}
        codes[None] = -1
        return cls(classes, np.fromiter((codes[label] for label in values), np.int32, len(values)))

    @classmethod
    def none(cls, rows: int) -> Labels:
        """Return the labels of unlabelled samples."""
        return cls((), np.full(rows, -1, np.int32))

    @property
    def task(self) -> Task | None:
        """``regression`` for floats, ``classification`` for others, None if all are missing."""
        if self.targets.dtype == np.float64:
            return "regression"
        return "classification" if self.classes else None

    @property
    def labelled(self) -> np.ndarray:
        """Whether each row has a label, bool (row,)."""
        return self.targets >= 0 if self.task != "regression" else ~np.isnan(self.targets)

    def array(self) -> np.ndarray | None:
        """Return the labels as float64 with NaN, or as objects; None if all are missing."""
        if self.task == "regression":
            return self.targets
        return self.values() if self.task else None

    def label(self, row: int) -> Label:
        """Return the label of a row; None if it has none."""
        target = self.targets[row].item()
        if self.task == "regression":
            return None if np.isnan(target) else float(target)
        return None if target < 0 else self.classes[target]

    def of_rows(self, rows: np.ndarray | slice) -> Labels:
        """Return the labels of some rows, without classes that do not occur."""
        targets = self.targets[rows]
        if self.task == "regression":
            return Labels((), targets) if not np.isnan(targets).all() else Labels.none(len(targets))
        used = np.unique(targets[targets >= 0])
        codes = np.full(len(self.classes) + 1, -1, np.int32)  # the last stays for those of code -1
        codes[used] = np.arange(len(used))
        return Labels(tuple(self.classes[code] for code in used.tolist()), codes[targets])

    def values(self) -> np.ndarray:
        """Return the labels themselves, (row,): objects of type str, int or float, or None."""
        if self.task == "regression":
            values = self.targets.astype(object)
            values[np.isnan(self.targets)] = None
            return values
        return np.array([*self.classes, None], object)[self.targets]
