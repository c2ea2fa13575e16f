"""The images to predict: files, folders and tables, listed before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurestore.dataset.folder import list_files
from featurestore.dataset.source import absolute, is_uri
from featurestore.dataset.table import list_rows
from featurestore.dataset.table_file import is_frame, is_table
from featurestore.errors import InputError, nearest, path_text, received


@dataclass(frozen=True)
class Listed:
    """An image to predict.

    Attributes
    ----------
    path : str
        As it was given; of a folder's files, the folder as it was given and the path in it.
    columns : dict
        The cells of its row, if a table listed it.
    problem : str or None
        Why a file or folder cannot be read; known from listing the folder that holds it.
    """

    path: str
    columns: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def list_images(
    images: Any,
    image_column: str | None = None,
    root: str | Path | None = None,
) -> list[Listed]:
    """List image files, those of folders, and those that tables name: see :func:`predict`.

    Raises
    ------
    InputError
        If a file, folder or table does not exist, a folder holds no file, or a table does not have
        the column.
    """
    above = None if root is None else absolute(root)
    if is_frame(images):
        rows = list_rows(images, image_column, above)
        return [Listed(path, row) for path, row in rows]
    places = [images] if isinstance(images, str | os.PathLike) else images
    what, expected = "the images", "image files, folders or tables, or one DataFrame"
    if not isinstance(places, Iterable):
        raise InputError(f"{what} are {received(images)}", expected)
    texts = [path_text(place, f"one of {what}", expected) for place in places]
    return [image for place in texts for image in _images_of(place, image_column, above)]


def _images_of(place: str, image_column: str | None, root: str | None) -> Iterator[Listed]:
    if os.path.isdir(place):
        top = absolute(place)
        paths, problems = list_files(top)
        for path in paths:
            yield Listed(os.path.join(place, os.path.relpath(path, top)))
        for problem in problems:
            if problem.kind == "quarantined":
                path = os.path.join(place, os.path.relpath(problem.path, top))
                yield Listed(path, problem=f"cannot read {path!r}: {problem.reason}")
    elif is_table(place):
        for path, row in list_rows(absolute(place), image_column, root):
            yield Listed(path, row)
    elif is_uri(place) or os.path.lexists(place):
        yield Listed(place)
    else:
        parent = Path(place).parent
        siblings = sorted(map(str, parent.iterdir())) if parent.is_dir() else []
        raise InputError(f"no image {place!r}", remedy=nearest(place, siblings))
