"""How variants of a stored layer differ: input size, resize, weights, precision."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Variant:
    """How the backbone of some features was fed and filled; None where that was not recorded.

    It is also how features are asked for: then None stands for any value, and a list for any of
    its values.

    Attributes
    ----------
    input_size : int or (int, int)
        Side of the square that images were resized to, or height and width, in pixels.
    resize, interpolation, scaling : str
        As in `Preprocessing`.
    weights : str
        ``imagenet``, ``random``, or a weights file: its path or the end of it, with or without its
        ending. For a model file with its own weights, the model file.
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

    @property
    def order(self) -> tuple[tuple[int, str], ...]:
        """Sort key: numbers by size, then text."""
        values = self.to_dict().values()
        return tuple((each if isinstance(each, int) else 0, str(each)) for each in values)

    def options(self, names: Iterable[str] | None = None) -> str:
        """Return the command-line options that ask for this.

        Examples
        --------
        >>> Variant(input_size=96, resize="crop").options()
        '--input-size 96 --resize crop'
        """
        return " ".join(
            f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
            for name, value in self.to_dict().items()
            if value is not None and (names is None or name in names)
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
    values = {name: list(dict.fromkeys(str(each[name]) for each in known)) for name in FIELDS}
    differing = [name for name in FIELDS if len(values[name]) > 1]
    *most, last = [name.replace("_", " ") for name in differing] or [""]
    what = f"{', '.join(most)} and {last}" if most else last
    # One field that differs between all of them is enough.
    enough = [name for name in differing if len(values[name]) == len(known)][:1] or differing
    options = [Variant(**each).options(enough) for each in known]
    oblong = "input_size" in enough and any(isinstance(each.input_size, tuple) for each in variants)
    if oblong or "" in options or len(set(options)) < len(options):
        return what, ""
    if len(enough) > 1:
        options = [
            f"--{name.replace('_', '-')} {' or '.join(map(shlex.quote, values[name]))}"
            for name in enough
        ]
        return what, ", ".join(options)
    return what, " or ".join(options)


def tell_apart(rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return what a table shows of variants.

    Parameters
    ----------
    rows : sequence of mapping
        With ``model``, ``layer``, ``prefix`` and the fields of `Variant`.

    Returns
    -------
    rows : list of dict
        The same, with weights files by as much of their path as is unique.
    columns : dict of str to str
        Heading of each field that differs. Scaling, which follows from the model, and weights
        files count if they differ within a model; ``prefix`` if nothing else differs.
    """
    columns = {name: name.replace("_", " ") for name in FIELDS if _differ(name, rows)}
    prefixes: dict[Any, set[str]] = {}
    for row in rows:
        known = (row["model"], row["layer"], *(str(row[name]) for name in columns))
        prefixes.setdefault(known, set()).add(row["prefix"])
    if any(len(each) > 1 for each in prefixes.values()):
        columns["prefix"] = "prefix"
    return _with_short_weights(rows), columns


def part_of(origin: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a provenance, which may hold anything; empty if it is not a mapping."""
    found = origin.get(name)
    return found if isinstance(found, Mapping) else {}


def _differ(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    within: dict[str, set[Any]] = {}
    across = set()
    for row in rows:
        value = row[name]
        if value is not None:
            within.setdefault(row["model"], set()).add(value)
            across.add("file" if name == "weights" and _is_file(value) else value)
    return any(len(each) > 1 for each in within.values()) or (name != "scaling" and len(across) > 1)


def _with_short_weights(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Shorten paths of weights files: the fewest last parts that keep them apart, no ending."""
    paths = {row["weights"]: Path(row["weights"]).parts for row in rows if _is_file(row["weights"])}
    deepest = max(map(len, paths.values()), default=0)
    ways = [(count, trim) for trim in (_without_ending, tuple) for count in range(1, deepest + 1)]
    names = dict(zip(paths, paths, strict=True))
    for count, trim in reversed(ways):
        short = {path: str(Path(*trim(parts)[-count:])) for path, parts in paths.items()}
        names = short if len(set(short.values())) == len(short) else names
    return [{**row, "weights": names.get(row["weights"], row["weights"])} for row in rows]


def _without_ending(parts: tuple[str, ...]) -> tuple[str, ...]:
    *folders, name = parts
    for ending in (".weights.h5", ".h5", ".hdf5", ".keras"):
        name = name.removesuffix(ending) or name
    return (*folders, name)


def _is_file(weights: str | None) -> bool:
    return weights not in (None, "imagenet", "random")


def _is(name: str, value: Any, asked: Any) -> bool:
    """Whether a recorded value is the one that is asked for."""
    if name == "input_size":
        return value is not None and value == _size(asked if isinstance(asked, tuple) else [asked])
    if name != "weights" or not (_is_file(value) and _is_file(str(asked))):
        return value == asked
    path, wanted = Path(value), Path(asked)
    tails = [each[-len(wanted.parts) :] for each in (path.parts, _without_ending(path.parts))]
    return wanted.parts in tails or path == wanted.absolute()


def _size(value: Any) -> int | tuple[int, int] | None:
    """Return one number for a square, else height and width; None for what is neither."""
    if not isinstance(value, list | tuple) or not all(type(side) is int for side in value):
        return None
    sides = tuple(value)
    return sides[0] if len(set(sides)) == 1 else sides if len(sides) == 2 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
