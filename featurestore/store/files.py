"""Whole files, in a local folder or in an object store."""

from __future__ import annotations

from typing import TypeAlias

from featurestore.store.local import LocalFiles
from featurestore.store.remote import RemoteFiles

Files: TypeAlias = LocalFiles | RemoteFiles


def open_files(location: str) -> Files:
    """Return the files of a local folder or of a URL (``s3://…``, ``gs://…``, ``az://…``)."""
    if location.startswith(("file://", "local://")):
        return LocalFiles(location.partition("://")[2])
    return RemoteFiles(location) if "://" in location else LocalFiles(location)
