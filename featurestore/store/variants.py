"""How variants of a stored layer differ: input size, resize, weights, precision."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from featurestore.errors import InputError, nearest


@dataclass(frozen=True)
class Variant:
    """The preprocessing and weights of some features; None where that was not recorded.

    A request for features is a variant too: None stands for any value, and a list for any of its
    values.

    Attributes
    ----------
    input_size : int or (int, int)
        Side of the square that images were resized to, or height and width, in pixels.
    resize, interpolation, scaling : str
        As in `Preprocessing`.
    weights : str
        ``imagenet``, ``random``, or a weights file: its path or the end of it. For a model file
        with its own weights, the model file.
    precision : str
        Of the forward pass: ``float32``, ``bfloat16`` or ``float16``.

    Examples
    --------
    >>> small = Variant(input_size=96, weights="/home/me/nets/birds.weights.h5")
    >>> small.fits(Variant(weights="birds.weights.h5")), small.fits(Variant(input_size=160))
    (True, False)
    """

    input_size: Any = None
    resize: Any = None
    interpolation: Any = None
    scaling: Any = None
    weights: Any = None
    precision: Any = None

    @classmethod
    def asking(cls, options: Mapping[str, Any]) -> Variant:
        """Return what options of a function ask for; InputError for an unknown one."""
        for name in options:
            if name not in FIELDS:
                raise InputError(f"no option {name!r}; {nearest(name, FIELDS)}")
        return cls(**options)

    @classmethod
    def of(cls, origin: Mapping[str, Any]) -> Variant:
        """Return the variant that the provenance of features, or the lineage of a head, records."""
        backbone, prefix = part_of(origin, "backbone"), part_of(origin, "prefix")
        preprocessing = part_of(prefix, "preprocessing")
        return cls(
            input_size=_size(prefix.get("input_size")),
            **{name: _text(preprocessing.get(name)) for name in _PREPROCESSING},
            weights=_text(backbone.get("weights")) or _text(backbone.get("path")),
            precision=_text(prefix.get("precision")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, for the rows of a listing."""
        return asdict(self)

    def asked(self) -> dict[str, list[Any]]:
        """Return the values that are asked for, of each field that has any."""
        found = {name: value for name, value in self.to_dict().items() if value is not None}
        return {name: each if isinstance(each, list) else [each] for name, each in found.items()}

    def fits(self, asked: Variant) -> bool:
        """Whether this is what is asked for."""
        return all(
            any(_is(name, getattr(self, name), value) for value in values)
            for name, values in asked.asked().items()
        )

    def options(self, names: Iterable[str] | None = None) -> str:
        """Return the command-line options that ask for this; no option asks for a non-square size.

        Examples
        --------
        >>> Variant(input_size=96, resize="crop").options()
        '--input-size 96 --resize crop'
        """
        return " ".join(
            f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
            for name, value in self.to_dict().items()
            if not isinstance(value, tuple | None) and (names is None or name in names)
        )


FIELDS = tuple(field.name for field in fields(Variant))
_PREPROCESSING = ("resize", "interpolation", "scaling")


def choices(variants: Sequence[Variant]) -> tuple[str, str]:
    """Return in what variants of one layer differ, and the options that select one of them.

    The options are empty if none can.

    Examples
    --------
    >>> choices([Variant(input_size=96), Variant(input_size=160)])
    ('input size', '--input-size 96 or --input-size 160')
    """
    known = _with_short_weights([each.to_dict() for each in variants])
    differing = [name for name in FIELDS if len({str(each[name]) for each in known}) > 1]
    options = list(dict.fromkeys(Variant(**each).options(differing) for each in known))
    what = " and ".join(name.replace("_", " ") for name in differing)
    return what, " or ".join(options) if "" not in options and len(options) == len(known) else ""


def tell_apart(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return what a table shows of variants: its rows, and the heading of each column that differs.

    Rows have ``model``, ``layer``, ``prefix`` and the fields of `Variant`. Weights files are shown
    by the part of their path in which they differ. The columns are the fields that differ between
    rows of one model, and ``prefix`` if rows of one layer differ in nothing else.
    """
    models = {row["model"] for row in rows}
    columns = {
        name: name.replace("_", " ")
        for name in FIELDS
        if len({(row["model"], row[name]) for row in rows}) > len(models)
    }
    known = {(row["model"], row["layer"], *(row[name] for name in columns)) for row in rows}
    if len({(row["model"], row["layer"], row["prefix"]) for row in rows}) > len(known):
        columns["prefix"] = "prefix"
    return _with_short_weights(rows), columns


def part_of(origin: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a provenance, which may hold anything; empty if it is not a mapping."""
    found = origin.get(name)
    return found if isinstance(found, Mapping) else {}


def _with_short_weights(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Show weights files relative to the folder that holds all of them."""
    paths = {row["weights"] for row in rows if _is_file(row["weights"])}
    names = {}
    with suppress(ValueError):  # URLs and paths have no folder in common.
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = {path: os.path.relpath(path, folder) for path in paths}
    return [{**row, "weights": names.get(row["weights"], row["weights"])} for row in rows]


def _is_file(weights: str | None) -> bool:
    return weights not in (None, "imagenet", "random")


def _is(name: str, value: Any, asked: Any) -> bool:
    """Whether a recorded value is the one that is asked for."""
    if name == "input_size":
        return value is not None and value == _size(asked if isinstance(asked, tuple) else [asked])
    if name != "weights" or not (_is_file(value) and _is_file(str(asked))):
        return value == asked
    wanted = Path(asked)
    return Path(value).parts[-len(wanted.parts) :] == wanted.parts or value == str(
        wanted.absolute()
    )


def _size(value: Any) -> int | tuple[int, int] | None:
    """Return one number for a square, else height and width; None for what is neither."""
    if not isinstance(value, list | tuple) or not all(type(side) is int for side in value):
        return None
    sides = tuple(value)
    return sides[0] if len(set(sides)) == 1 else sides if len(sides) == 2 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
