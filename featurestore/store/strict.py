"""A Zarr store that raises where zarr would read a missing or damaged chunk as it pleases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr.storage import WrapperStore

from featurestore.store.blocks import unwrap

if TYPE_CHECKING:
    from featurestore.store.group import FeatureGroup


class StrictStore(WrapperStore[Any]):
    """Read-only view of a store for one feature group, in which a missing chunk is an error.

    Parameters
    ----------
    group : FeatureGroup
        Names the errors.
    """

    def __init__(self, group: FeatureGroup, store: Any = None) -> None:
        super().__init__(store if store is not None else group.features.files.zarr())
        self._group = group

    def _with_store(self, store: Any) -> StrictStore:
        return StrictStore(self._group, store)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return a file's bytes, checked if it is a chunk of the feature array."""
        value = await super().get(key, prototype, byte_range)
        folder, _, name = key.rpartition("/")
        if folder == self._group.features.path and name.startswith("c."):
            block = int(name.split(".")[1])
            if value is None:
                raise self._group.incomplete([block])
            try:
                unwrap(value.to_bytes(), self._group.features.address(block))
            except ValueError as error:
                raise self._group.damaged(block, str(error)) from error
        return value
