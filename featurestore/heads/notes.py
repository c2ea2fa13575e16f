"""Annotations of a head: name, tags, note. Never part of its identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from featurestore.errors import HeadError, InputError, nearest
from featurestore.heads.head import find
from featurestore.heads.schema import validate
from featurestore.settings import Settings
from featurestore.store import FeatureStore, StoreLike


def _line(value: Any) -> Any:
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value.strip()
    raise ValueError("expected one line of text")


Line = Annotated[str, BeforeValidator(_line), Field(max_length=100)]


def _several(value: Any) -> Any:
    return list(dict.fromkeys([value] if isinstance(value, str) else value))


Tags = Annotated[list[Line], BeforeValidator(_several)]


class Notes(Settings):
    """What to write on a head; None and no tags leave what is written there."""

    name: Line | None = None
    tags: Tags = Field(default=[])
    note: str | None = None

    @classmethod
    def parse(cls, name: str | None, tags: Iterable[str], note: str | None) -> Notes:
        """Check a name, tags and a note; raises HeadError."""
        try:
            return cls.of({"name": name, "tags": tags, "note": note})
        except InputError as error:
            raise HeadError(str(error)) from None

    def changes(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a head's document that change, with their new values."""
        tags = list(dict.fromkeys([*document["tags"], *self.tags]))
        found: dict[str, Any] = {"name": self.name, "tags": tags, "note": self.note}
        return {
            field: value
            for field, value in found.items()
            if value is not None and value != document[field]
        }


def annotate(
    head: str,
    store: StoreLike = None,
    *,
    name: str | None = None,
    tags: Iterable[str] = (),
    remove: Iterable[str] = (),
    note: str | None = None,
) -> dict[str, Any]:
    """Name a stored head, add or remove tags, and write a note.

    Parameters
    ----------
    head : str
        Its id, the beginning of it, or its name.
    store : FeatureStore, path or URL, optional
        By default FEATURESTORE_STORE, else ``./store``.
    name : str, optional
    tags : iterable of str
        Tags to add.
    remove : iterable of str
        Tags to take away.
    note : str, optional
        In place of the former note; ``""`` removes it.

    Returns
    -------
    dict
        ``head`` (id), ``name``, ``tags``, ``note``.

    Raises
    ------
    NotFoundError
        If there is no such head, or several.
    HeadError
        For a name or tag that is not one line of text, or a tag to remove that is not there.
    """
    opened = FeatureStore.of(store)
    key = find(opened, head)
    notes = Notes.parse(name, tags, note)

    def changes(document: Mapping[str, Any]) -> dict[str, Any]:
        changed = notes.changes(validate(document))
        kept = changed.get("tags", document.get("tags", []))
        for tag in _several(remove):
            if tag not in kept:
                raise HeadError(f"head {key!r} has no tag {tag!r}; {nearest(tag, kept)}")
            kept = changed["tags"] = [each for each in kept if each != tag]
        return changed

    document = validate(opened.heads.update(key, changes))
    return {"head": key, **{field: document[field] for field in ("name", "tags", "note")}}
