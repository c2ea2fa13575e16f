"""The versions of the libraries that results depend on: recorded as provenance, never keyed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "featurestore",
    "keras",
    "numpy",
    "openvino",
    "pillow",
    "scikit-learn",
    "tensorflow",
    "zarr",
)


def versions(*paths: str) -> dict[str, str]:
    """Return the version of each library that is installed.

    Parameters
    ----------
    *paths : str
        Import paths whose packages to add.
    """
    names = dict.fromkeys([*PACKAGES, *(path.partition(".")[0] for path in paths)])
    return {name: text for name in names if (text := _version(name)) is not None}


# Python parses a package's metadata each time: half of the work on a small head.
@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
