"""A feature array joined with its data set: which rows it has, and their labels and groups."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from featurestore.dataset.labels import Labels
from featurestore.errors import DamagedError, InputError, StoreError, nearest
from featurestore.store import FeatureGroup, FeatureKey, FeatureStore, StoredRows

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

Order = Literal["content", "given"]


class Joined:
    """Row i of the feature array and row i of the data set are the same sample.

    The attributes are those of `Features`.

    Raises
    ------
    StoreError
        If the features belong to other samples.
    """

    def __init__(
        self,
        group: FeatureGroup | StoredRows,
        dataset: Dataset,
        store: FeatureStore,
    ) -> None:
        if group.key.dataset_digest != dataset.digest:
            raise StoreError(
                f"{group.key} belongs to the samples {group.key.dataset_digest}, data set "
                f"{dataset.name!r} has {dataset.digest}; run `featurestore extract` on it"
            )
        self.group = group
        self.dataset = dataset
        self.store = store
        self.blocks: tuple[int, ...] | None = None
        self._same_rows = False

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: np.ndarray, dtype: Any) -> np.ndarray:
        """Read rows by number, as `FeatureGroup.read`; raises as `rows` does."""
        self._require_same_rows()
        return self.group.read(rows, dtype)

    def _require_same_rows(self) -> None:
        """Compare the stored row ids with the data set, once: before any row is used."""
        if not self._same_rows:
            if not np.array_equal(self.group.samples, self.dataset.sample_ids):
                raise DamagedError(
                    f"{self.key}: the stored row ids are not those of data set "
                    f"{self.dataset.name!r}; run `{self.group.repair_command}`"
                )
            self._same_rows = True

    @property
    def key(self) -> FeatureKey:
        """Identity of the feature array."""
        return self.group.key

    @property
    def ref(self) -> str:
        """Text of the layer ref."""
        return self.key.ref

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features, (row, …)."""
        if self.blocks is None:
            return self.group.shape
        return len(self.rows(labelled=False)), *self.group.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """The stored type."""
        return self.group.dtype

    @property
    def classes(self) -> tuple[Any, ...]:
        """Class names, sorted; empty unless the labels are classes."""
        return self.dataset.classes

    @property
    def task(self) -> str | None:
        """``"classification"``, ``"regression"``, or None for an unlabelled data set."""
        return self.dataset.task

    @property
    def complete(self) -> bool:
        """Whether these are all rows, and every block was extracted."""
        return self.blocks is None and not self.group.missing()

    def rows(
        self,
        split: str | None = None,
        *,
        labelled: bool | None = None,
        order: Order = "content",
    ) -> np.ndarray:
        """Row numbers of a split, int64 (row,), ascending or in the order that you gave.

        Parameters
        ----------
        split, labelled
            As in `Dataset.rows`. `arrays` and `dask` follow the same rule: the same arguments give
            the same rows.
        order : {"content", "given"}
            ``"given"``: as `Dataset.given` has them, the rows of identical images repeated. Without
            a split and ``labelled``, one for each image that you gave, labelled or not: -1 for one
            that could not be read, or that these features do not have.

        Raises
        ------
        DamagedError
            If the stored row ids are not those of the data set, or one of both is damaged.
        """
        self._require_same_rows()
        if order not in get_args(Order):
            raise InputError(f"no order {order!r}: {nearest(order, get_args(Order))}")
        every = order == "given" and split is None and labelled is None
        rows = self.dataset.rows(split, labelled=False if every else labelled)
        if self.blocks is not None:
            rows = rows[np.isin(rows // self.group.block_rows, self.blocks)]
        if order == "content":
            return rows
        given = self.dataset.given
        have = np.isin(given, rows)
        return np.where(have, given, -1) if every else given[have]

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Labels of all rows, in content order: (row,), or None for an unlabelled data set.

        Classes as they were given (str or int64), float64 for regression. Rows without a label
        have None among classes (dtype object), NaN among numbers. Those of a split are
        ``labels[rows(split)]``, also of `completed` features; `arrays` returns them too.
        """
        return self.labels_of(np.arange(self.group.shape[0]))

    def labels_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Labels of rows, (row,), as in `labels`; row -1 has none."""
        targets = self.dataset.targets[rows]
        targets[rows < 0] = np.nan if self.task == "regression" else -1
        labels = Labels(self.classes, targets)
        if self.task == "classification" and labels.known.all():
            return np.asarray(self.classes)[targets]
        return labels.array()

    def groups(
        self,
        split: str | None = None,
        *,
        labelled: bool | None = None,
        order: Order = "content",
    ) -> np.ndarray | None:
        """Return the group of each row of `arrays`, (row,), as ``GroupKFold`` takes them.

        None for a data set without groups. The parameters are those of `arrays`.
        """
        if self.dataset.groups is None:
            return None
        rows = self.rows(split, labelled=labelled, order=order)
        groups = self.dataset.groups[rows]
        groups[rows < 0] = None
        return groups
