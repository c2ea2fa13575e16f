"""The versions of the libraries that results depend on: recorded as provenance, never keyed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("featurestore", "keras", "numpy", "pillow", "scikit-learn", "tensorflow", "zarr")


def versions() -> dict[str, str]:
    """Return the version of each library that is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
