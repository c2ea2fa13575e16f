"""The assets that catalog.toml lists, and where each comes from."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CATALOG = Path(__file__).resolve().parent / "catalog.toml"


class FetchError(Exception):
    """A foreseen failure: one line that says what was found, expected, and what to do."""


@dataclass(frozen=True)
class Selection:
    """Members of an archive that are too many to pin one by one."""

    pattern: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Asset:
    """One entry of catalog.toml; the fields are explained at its top."""

    name: str
    kind: str
    description: str
    licence: str
    source: str
    package: str
    version: str
    archive: str
    convert: str
    needs: tuple[str, ...]
    recipe: int
    outputs: tuple[str, ...]
    archive_sha256: str | None = None
    module: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    select: Selection | None = None

    @classmethod
    def from_dict(cls, name: str, entry: Mapping[str, Any]) -> Asset:
        """Build an asset from its table in the catalog."""
        select = Selection(**entry["select"]) if "select" in entry else None
        tuples = {"needs": tuple(entry["needs"]), "outputs": tuple(entry["outputs"])}
        return cls(name=name, **{**entry, **tuples, "select": select})

    def fingerprint(self) -> str:
        """Digest what decides the bytes of the outputs: the pins and the recipe, not the prose."""
        decisive = [self.convert, self.recipe, sorted(self.files.items()), self.outputs]
        if self.select is not None:
            decisive += [self.select.pattern, self.select.sha256]
        return sha256(json.dumps(decisive).encode())


def read_catalog(path: Path = CATALOG) -> dict[str, Asset]:
    """Read the catalog: name -> asset, in the order of the file."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: Asset.from_dict(name, entry) for name, entry in tables.items()}


def find(catalog: Mapping[str, Asset], name: str) -> Asset:
    """Return the asset of that name, or raise an error that gives the nearest names."""
    if name in catalog:
        return catalog[name]
    near = difflib.get_close_matches(name.lower(), catalog, n=3, cutoff=0.5) or list(catalog)
    raise FetchError(
        f"no asset is named {name!r}; nearest: {', '.join(near)} (python data/fetch.py lists all)"
    )


def sha256(content: bytes) -> str:
    """Return the digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    """Return a file's digest in hexadecimal, without holding the file in memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
