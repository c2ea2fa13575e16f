"""Annotations of a head: label, tags, note. Never part of its identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field

from featurestore.errors import HeadError, InputError, nearest
from featurestore.heads.head import Head
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
    """Annotations to write on a head. Those that are not given stay as they are."""

    label: Line | None = None
    tags: Tags = Field(default=[])
    note: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Validate keyword arguments; HeadError for the first that is unknown or out of range."""
        try:
            return super().of(options)
        except InputError as error:
            raise HeadError(str(error)) from None

    def changes(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a head's document that change, with their new values."""
        tags = list(dict.fromkeys([*document["tags"], *self.tags]))
        values: dict[str, Any] = {"label": self.label, "tags": tags, "note": self.note}
        return {
            field: value
            for field, value in values.items()
            if value is not None and value != document[field]
        }


def annotate(
    head: str,
    store: StoreLike = None,
    *,
    label: str | None = None,
    tags: Iterable[str] = (),
    remove: Iterable[str] = (),
    note: str | None = None,
) -> dict[str, Any]:
    """Label a stored head, add or remove tags, and write a note.

    Parameters
    ----------
    head : str
        Its id, the beginning of it, or its label.
    store : FeatureStore, path or URL, optional
        By default FEATURESTORE_STORE, else ``./store``.
    label : str, optional
    tags : iterable of str
        Tags to add.
    remove : iterable of str
        Tags to take away.
    note : str, optional
        Replaces the note; ``""`` removes it.

    Returns
    -------
    dict
        ``head`` (id), ``label``, ``tags``, ``note``.

    Raises
    ------
    NotFoundError
        If there is no such head, or several.
    HeadError
        For a label or tag that is not one line of text, or a tag to remove that the head does not
        have.
    """
    opened = FeatureStore.of(store)
    key = opened.heads.find(head)
    notes = Notes.of({"label": label, "tags": tags, "note": note})

    def changes(document: Mapping[str, Any]) -> dict[str, Any]:
        stored = Head.of_document(document, opened).document()
        changed = notes.changes(stored)
        kept = changed.get("tags", stored["tags"])
        for tag in _several(remove):
            if tag not in kept:
                raise HeadError(f"head {key!r} has no tag {tag!r}; {nearest(tag, kept)}")
            kept = changed["tags"] = [other for other in kept if other != tag]
        return changed

    document = opened.heads.update(key, changes)
    return {"head": key, **{name: document[name] for name in ("label", "tags", "note")}}
