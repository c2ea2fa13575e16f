"""The versions of the libraries that results depend on: recorded as provenance, never keyed."""

from __future__ import annotations

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
    found = {}
    for package in dict.fromkeys([*PACKAGES, *(path.partition(".")[0] for path in paths)]):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
