"""The features of a store as one plan sees them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from featurestore.digests import short
from featurestore.errors import NotFoundError, StoreError
from featurestore.store.group import FeatureGroup, find_rows
from featurestore.store.key import FeatureKey, KeyPath
from featurestore.store.state import GroupState

if TYPE_CHECKING:
    from featurestore.store.features import FeatureShelf


class Snapshot:
    """The features of a store at one moment: each document and folder is read once, when needed.

    In an object store that is two requests an array, in threads. It is made for one plan and then
    forgotten, so that it never hides what another process writes.

    Parameters
    ----------
    features : FeatureShelf

    Attributes
    ----------
    paths : dict of KeyPath to str
        Of all features, complete or not.
    """

    def __init__(self, features: FeatureShelf) -> None:
        self._features = features
        self.paths = {key: path for path, key in features.paths().items()}
        self._states: dict[str, GroupState | StoreError | None] = {}
        self._samples: dict[tuple[str, int], np.ndarray] = {}

    def read(self, keys: Iterable[KeyPath]) -> list[GroupState | StoreError]:
        """Return the states of those that are stored, or the error that reading them raised."""
        paths = [self.paths[key] for key in keys if key in self.paths]
        new = [path for path in dict.fromkeys(paths) if path not in self._states]
        states = self._features.read_each(new, self._features.state)
        self._states |= {path: states.get(path) for path in new}
        return [state for path in paths if (state := self._states[path]) is not None]

    def get(self, key: FeatureKey) -> GroupState | None:
        """Return the state of features; None if there are none. Raises as `FeatureShelf.get`."""
        for state in self.read([key.short]):
            if isinstance(state, StoreError):
                raise state
            self._features.require_key(state.group, key)
            return state
        return None

    def replacement(self, key: FeatureKey) -> list[GroupState]:
        """Return the state of the float32 features that are to replace float16 ones, if begun."""
        with suppress(NotFoundError):
            return [GroupState.of(self._features.get(key, "float32"))]
        return []

    def alike(self, key: KeyPath) -> list[KeyPath]:
        """Return the keys of the same prefix digest and reduction, to `read`."""
        wanted = key.prefix, key.reduction
        return [each for each in self.paths if (each.prefix, each.reduction) == wanted]

    def of_prefix(self, prefix_digest: str, ref: str) -> list[GroupState]:
        """Return the states of all features of a prefix digest and reduction.

        They are of any model and data set. The prefix digest ends at the layer, so a layer that has
        another name in another model is found too. Damaged features are left out.
        """
        return [
            state
            for state in self.read(self.alike(KeyPath("", ref, short(prefix_digest), "")))
            if isinstance(state, GroupState) and state.group.key.prefix_digest == prefix_digest
        ]

    def rows_of(self, group: FeatureGroup, sample_ids: np.ndarray) -> np.ndarray:
        """Return the row of each sample, as `FeatureGroup.rows_of`.

        Features over one data set have the same row ids, which are read once.
        """
        key = group.key.dataset_digest, group.shape[0]
        if key not in self._samples:
            self._samples[key] = group.samples
        return find_rows(self._samples[key], sample_ids)
