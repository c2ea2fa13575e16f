"""What catalog.toml says, checked: the assets that fetch.py knows, and where each comes from."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CATALOG = Path(__file__).resolve().parent / "catalog.toml"
KINDS = ("images", "model", "names", "weights")


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
        """Build an asset from its table in the catalog, refusing what the catalog must not say.

        Raises
        ------
        FetchError
            If a field is missing, unknown or out of its range.
        """
        fields = {
            **entry,
            "needs": tuple(entry.get("needs", ())),
            "outputs": tuple(entry.get("outputs", ())),
        }
        try:
            if "select" in fields:
                fields["select"] = Selection(**fields["select"])
            asset = cls(name=name, **fields)
        except TypeError as error:
            raise FetchError(f"catalog.toml, [{name}]: {error}") from None
        if (problem := _problem(asset)) is not None:
            raise FetchError(f"catalog.toml, [{name}]: {problem}")
        return asset

    def fingerprint(self) -> str:
        """Digest what decides the bytes of the outputs: the pins and the recipe, not the prose."""
        decisive = [self.convert, self.recipe, sorted(self.files.items()), self.outputs]
        if self.select is not None:
            decisive += [self.select.pattern, self.select.sha256]
        return sha256(json.dumps(decisive).encode())


def _problem(asset: Asset) -> str | None:
    digests = [*asset.files.values()]
    digests += [asset.select.sha256] if asset.select else []
    digests += [asset.archive_sha256] if asset.archive_sha256 else []
    if asset.kind not in KINDS:
        return f"kind is {asset.kind!r}; expected one of {', '.join(KINDS)}"
    if asset.source not in ("debian", "pypi"):
        return f"source is {asset.source!r}; expected 'debian' or 'pypi'"
    if bool(asset.files) == bool(asset.select):
        return "expected either files or select, with digests"
    if not asset.archive_sha256 and not asset.module:
        return "expected archive_sha256 (only a package with `module` may do without)"
    if bad := [digest for digest in digests if not re.fullmatch("[0-9a-f]{64}", digest)]:
        return f"{bad[0]!r} is not a SHA-256 digest"
    if bad := [path for path in asset.outputs if not path.startswith(f"{asset.name}/")]:
        return f"output {bad[0]!r} lies outside {asset.name}/"
    return None if asset.outputs else "no outputs"


def read_catalog(path: Path = CATALOG) -> dict[str, Asset]:
    """Read the catalog: name -> asset, in the order of the file.

    Raises
    ------
    FetchError
        If the file is no TOML or an entry is not well-formed.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise FetchError(f"{path} is not TOML: {error}") from None
    return {name: Asset.from_dict(name, entry) for name, entry in tables.items()}


def find(catalog: Mapping[str, Asset], name: str) -> Asset:
    """Return the asset of that name, or raise an error that gives the nearest names."""
    if name in catalog:
        return catalog[name]
    near = difflib.get_close_matches(name.lower(), catalog, n=3, cutoff=0.5) or list(catalog)
    raise FetchError(
        f"no asset is named {name!r}; nearest: {', '.join(near)} "
        "(python data/fetch.py --list shows all)"
    )


def sha256(content: bytes) -> str:
    """Return the digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    """Return a file's digest in hexadecimal, without holding the file in memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
