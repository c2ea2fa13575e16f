"""How variants of a stored layer differ: input size, resize, weights, precision."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
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
        """Return the variant that the provenance of features or of a head records."""
        backbone, prefix = part_of(origin, "backbone"), part_of(origin, "prefix")
        recorded = {
            **part_of(prefix, "preprocessing"),
            "weights": backbone.get("weights") or backbone.get("path"),
            "precision": prefix.get("precision"),
        }
        texts = {name: recorded.get(name) for name in FIELDS if name != "input_size"}
        texts = {name: text for name, text in texts.items() if isinstance(text, str)}
        sides = prefix.get("input_size")
        size = tuple(sides) if isinstance(sides, list) and all(map(_is_side, sides)) else None
        return cls(input_size=size[0] if size and len(set(size)) == 1 else size, **texts)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, for the rows of a listing."""
        return asdict(self)

    def wanted(self) -> dict[str, list[Any]]:
        """Return the values that a request lists, of each field that has any."""
        values = {name: value for name, value in self.to_dict().items() if value is not None}
        return {name: v if isinstance(v, list) else [v] for name, v in values.items()}

    def fits(self, request: Variant) -> bool:
        """Whether this is what is requested."""
        return all(
            any(_is(getattr(self, name), value) for value in values)
            for name, values in request.wanted().items()
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


def choices(variants: Sequence[Variant]) -> tuple[str, str]:
    """Return in what variants of one layer differ, and the options that select one of them.

    The options are empty if none can.

    Examples
    --------
    >>> choices([Variant(input_size=96), Variant(input_size=160)])
    ('input size', '--input-size 96 or --input-size 160')
    """
    rows = _with_short_weights([variant.to_dict() for variant in variants])
    differing = [name for name in FIELDS if len({str(row[name]) for row in rows}) > 1]
    options = list(dict.fromkeys(Variant(**row).options(differing) for row in rows))
    what = " and ".join(name.replace("_", " ") for name in differing)
    return what, " or ".join(options) if "" not in options and len(options) == len(rows) else ""


def tell_apart(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return what a table shows of variants: its rows, and the heading of each column that differs.

    Rows have ``model``, ``layer``, ``prefix`` and the fields of `Variant`. The columns are the
    fields that differ between rows of one model, and ``prefix`` if rows of one layer differ in
    nothing else.
    """
    models = {row["model"] for row in rows}
    columns = {
        name: name.replace("_", " ")
        for name in FIELDS
        if len({(row["model"], row[name]) for row in rows}) > len(models)
    }
    shown = {(row["model"], row["layer"], *(row[name] for name in columns)) for row in rows}
    if len({(row["model"], row["layer"], row["prefix"]) for row in rows}) > len(shown):
        columns["prefix"] = "prefix"
    return _with_short_weights(rows), columns


def part_of(origin: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a provenance, which may hold anything; empty if it is not a mapping."""
    part = origin.get(name)
    return part if isinstance(part, Mapping) else {}


def _with_short_weights(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Show weights files relative to the folder that holds all of them."""
    paths = {row["weights"] for row in rows if os.path.isabs(row["weights"] or "")}
    folder = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    names = {path: os.path.relpath(path, folder) for path in paths}
    return [{**row, "weights": names.get(row["weights"], row["weights"])} for row in rows]


def _is_side(value: Any) -> bool:
    return type(value) is int


def _is(value: Any, wanted: Any) -> bool:
    """Whether a recorded value is the wanted one; a path also if it ends with the wanted one."""
    if isinstance(value, str) and isinstance(wanted, str | os.PathLike):
        path = os.path.normpath(wanted)
        return value in (wanted, os.path.abspath(path)) or value.endswith(os.sep + path)
    return bool(value == wanted)
