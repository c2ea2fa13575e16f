"""`Features`: one feature array joined with its data set."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from featurestore.dataset.labels import Labels
from featurestore.errors import DamagedError, InputError, NotFoundError, StoreError, nearest
from featurestore.features.batches import Batches
from featurestore.quiet import load_tensorflow
from featurestore.store import FeatureGroup, FeatureKey, FeatureStore, StoredRows, StoreLike
from featurestore.table import Grid, show_html

if TYPE_CHECKING:
    import dask.array
    import keras
    import pandas
    import xarray

    from featurestore.backbone import LayerRef
    from featurestore.dataset import Dataset

Order = Literal["content", "input"]


class Features:
    """One feature array joined with its data set: row i of both is the same sample.

    ``len`` and `shape` count every row; `rows` says which are read by default. Labels and splits
    are those of the data set: any one of the same samples.

    Attributes
    ----------
    source : FeatureGroup or StoredRows
        What is read: the stored array, or, if it was removed, other arrays that have its rows.
    blocks : tuple of int or None
        The blocks that `completed` features are limited to; None for all rows.

    Raises
    ------
    StoreError
        If the features belong to other samples.

    Examples
    --------
    >>> X, y = features.arrays("train")  # doctest: +SKIP
    """

    def __init__(
        self, source: FeatureGroup | StoredRows, dataset: Dataset, store: FeatureStore
    ) -> None:
        if source.key.dataset_digest != dataset.digest:
            raise StoreError(
                f"{source.key} belongs to the samples {source.key.dataset_digest}, data set "
                f"{dataset.name!r} has {dataset.digest}",
                remedy="run `featurestore extract` on it",
            )
        self.source = source
        self.dataset = dataset
        self.store = store
        self.blocks: tuple[int, ...] | None = None

    @classmethod
    def open(
        cls,
        dataset: Dataset | str | os.PathLike[str],
        layer: str | LayerRef | None = None,
        store: StoreLike = None,
        *,
        model: str | os.PathLike[str] | None = None,
        **variant: Any,
    ) -> Features:
        """Open stored features by the names of data set, layer and model; nothing is computed.

        Parameters
        ----------
        dataset : Dataset, str or path
            A data set, its name, or the folder or table that was scanned.
        layer : str or LayerRef, optional
            A layer ref; with ``-`` and the first digits of its prefix digest for one variant. By
            default the only one that is stored.
        store : FeatureStore, path or URL, optional
            By default FEATURESTORE_STORE, else ``./store``.
        model : str or path, optional
            A backbone's name in any case, or its model file; by default the only one.
        **variant
            Fields of `Variant`, such as ``input_size``, if several variants of the layer are
            stored.

        Raises
        ------
        NotFoundError
            If none or several are stored; the message says how to extract or select one.

        Examples
        --------
        >>> features = Features.open("photos", "out_relu:avg")  # doctest: +SKIP
        """
        from featurestore.backbone import LayerRef
        from featurestore.features.stored import one_stored

        if layer is not None and not isinstance(layer, str):
            layer = str(LayerRef.parse(layer))
        return one_stored(FeatureStore.of(store), dataset, layer, model, **variant)

    def completed(self) -> Features:
        """Return the features of the rows that are stored now, leaving out missing blocks.

        Row numbers stay those of the whole array. Content order is a fair shuffle, so the stored
        rows are a fair sample of the data set. Blocks that are extracted later do not join it. A
        head fitted on them has its own id, and is never reused for a head on all rows.

        Returns
        -------
        Features
            Itself if every block exists.
        """
        missing = set(self.source.missing())
        if not missing and self.blocks is None:
            return self
        partial = Features(self.source, self.dataset, self.store)
        if missing:
            partial.blocks = tuple(sorted(set(range(self.group.blocks)) - missing))
        return partial

    @property
    def group(self) -> FeatureGroup:
        """The stored array.

        Raises
        ------
        NotFoundError
            If the array was removed, and other arrays have its rows.
        """
        if isinstance(self.source, StoredRows):
            raise NotFoundError(f"{self.key} was removed; other arrays have its rows")
        return self.source

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        what = f"{str(self.key)!r}, {self.dataset.name!r}, {self.dtype} {self.shape}"
        return f"Features({what})"

    def _repr_html_(self) -> str:
        counts = {split: len(self.rows(split)) for split in ("train", "val", "test")}
        state = "complete" if self.complete else "some rows are not stored"
        facts = {"rows": len(self), **counts, "classes": len(self.classes) or None, "state": state}
        return show_html(repr(self), Grid([facts], list(facts)))

    @property
    def key(self) -> FeatureKey:
        """Identity of the feature array."""
        return self.source.key

    @property
    def ref(self) -> str:
        """Text of the layer ref."""
        return self.key.ref

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features, (row, …)."""
        if self.blocks is None:
            return self.source.shape
        return len(self.rows(labelled=False)), *self.source.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """The stored type."""
        return self.source.dtype

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
        """True if these are all rows, and every block was extracted."""
        return self.blocks is None and not self.source.missing()

    def rows(
        self,
        split: str | None = None,
        *,
        labelled: bool | None = None,
        order: Order = "content",
    ) -> np.ndarray:
        """Row numbers of a split, int64 (row,), ascending or in the order of your table.

        The other methods take the same parameters and return the same rows.

        Parameters
        ----------
        split, labelled
            As in `Dataset.rows`.
        order : {"content", "input"}
            ``"input"``: as in `Dataset.given`, the rows of identical images repeated. Without a
            split and ``labelled``, one row for each image of the input, labelled or not: -1 for one
            that could not be read, or that these features do not have.

        Raises
        ------
        DamagedError
            If the stored row ids are not those of the data set, or one of both is damaged.
        """
        self._check_row_ids()
        if order not in get_args(Order):
            raise InputError(f"no order {order!r}; {nearest(order, get_args(Order))}")
        every = order == "input" and split is None and labelled is None
        rows = self.dataset.rows(split, labelled=False if every else labelled)
        if self.blocks is not None:
            rows = rows[np.isin(rows // self.source.block_rows, self.blocks)]
        if order == "content":
            return rows
        input_order = self.dataset.given
        stored = np.isin(input_order, rows)
        return np.where(stored, input_order, -1) if every else input_order[stored]

    def read(self, rows: np.ndarray, dtype: Any) -> np.ndarray:
        """Read rows by number, as `FeatureGroup.read`; raises as `rows` does."""
        self._check_row_ids()
        return self.source.read(rows, dtype)

    def _check_row_ids(self) -> None:
        if not self._has_rows_of_dataset:
            raise DamagedError(
                f"{self.key}: the stored row ids are not those of data set {self.dataset.name!r}",
                remedy=f"run `{self.group.repair_command}`",
            )

    @cached_property
    def _has_rows_of_dataset(self) -> bool:
        return np.array_equal(self.source.samples, self.dataset.sample_ids)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Labels of all rows, in content order: (row,), or None for an unlabelled data set.

        Classes as in the data set (str or int64), float64 for regression. Rows without a label
        have None among classes (dtype object), NaN among numbers. Those of a split are
        ``labels[rows(split)]``, also of `completed` features.
        """
        return self.labels_of(np.arange(self.source.shape[0]))

    def labels_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Labels of rows, (row,), as in `labels`; row -1 has none."""
        targets = self.dataset.targets[rows]
        targets[rows < 0] = np.nan if self.task == "regression" else -1
        labels = Labels(self.classes, targets)
        if self.task == "classification" and labels.known.all():
            return np.asarray(self.classes)[targets]
        return labels.array()

    @property
    def groups(self) -> np.ndarray | None:
        """Groups of all rows, in content order: (row,), or None for a data set without groups.

        Those of a split, as ``GroupKFold`` takes them, are ``groups[rows(split)]``.
        """
        return self.dataset.groups

    def arrays(
        self,
        split: str | None = None,
        *,
        labelled: bool | None = None,
        order: Order = "content",
        dtype: Any = "float32",
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read features and labels into memory, aligned.

        With ``order="input"`` and nothing else, row i is the i-th row of your table or of your
        ``X``; an image that could not be read has NaN.

        Returns
        -------
        X : numpy.ndarray of shape (row, …)
        y : numpy.ndarray of shape (row,) or None
            Labels of these rows, as in `labels`.

        Raises
        ------
        IncompleteFeaturesError, DamagedError
            If some of the rows were never extracted, or fail their checksum.
        InputError
            If ``dtype`` is not a floating-point type.

        Examples
        --------
        >>> X, y = features.arrays(order="input")  # doctest: +SKIP
        """
        if np.dtype(dtype).kind != "f":
            raise InputError(
                f"dtype is {np.dtype(dtype)}, which would cut off decimals",
                "float16, float32 or float64",
            )
        rows = self.rows(split, labelled=labelled, order=order)
        stored = rows >= 0
        self.source.require(rows[stored])
        values = self.read(rows[stored], dtype)
        if not stored.all():
            X = np.full((len(rows), *values.shape[1:]), np.nan, values.dtype)
            X[stored] = values
            values = X
        return values, self.labels_of(rows)

    def to_frame(
        self,
        split: str | None = None,
        *,
        labelled: bool | None = None,
        order: Order = "content",
    ) -> pandas.DataFrame:
        """Return pooled features as a pandas DataFrame, with the columns of your table.

        Returns
        -------
        pandas.DataFrame
            ``sample`` (digest), ``path``, ``label``, ``split`` and ``group`` where the data set
            has them, the other columns of your table, and ``feature_0``, ``feature_1``, … as
            float32. A column of yours with one of these names has ``_given`` after it.

        Raises
        ------
        InputError
            If a row is not one vector, or the rows are too many for memory.
        """
        from featurestore.features.forms import as_frame

        return as_frame(self, split, labelled, order)

    def dask(self, split: str | None = None, *, labelled: bool | None = None) -> dask.array.Array:
        """Return the features as a lazy dask array (row, …) of the stored type.

        Each block is a chunk; those that are missing or damaged raise when computed.
        """
        from featurestore.features.forms import as_dask

        return as_dask(self.group, self.rows(split, labelled=labelled))

    def xarray(self) -> xarray.Dataset:
        """Return ``features`` (row, …), lazy, with the coordinates of every row, labelled or not.

        Returns
        -------
        xarray.Dataset
            Coordinates along ``row``: ``sample`` (whole digest), ``split``, ``label`` and
            ``group`` if the data set has them, and the other columns of your table (or ``id``),
            of the first of identical images. A column of yours called ``features``, or as a
            dimension, has ``_given`` after its name.
        """
        from featurestore.features.forms import as_xarray

        return as_xarray(self)

    def py_dataset(
        self,
        split: str | None = None,
        *,
        batch_size: int = 256,
        shuffle: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> keras.utils.PyDataset:
        """Stream batches block by block, for ``model.fit`` and ``model.predict``.

        ``shuffle`` shuffles blocks, and rows within a window of them, differently in each epoch but
        the same for the same seed; see `Batches`. ``options`` are those of
        `keras.utils.PyDataset`, such as ``workers``.

        Returns
        -------
        keras.utils.PyDataset
            Of (x, y): x float32 (batch, …); y int32 codes into `classes` or float32. Of x alone for
            an unlabelled data set.

        Raises
        ------
        IncompleteFeaturesError
            If some of the rows were never extracted; raised before the first epoch.
        InputError
            If the batch size is less than 1.
        """
        load_tensorflow()
        from featurestore.features.streams import BatchDataset

        batches = Batches.of(self, split, batch_size=batch_size, shuffle=shuffle, seed=seed)
        return BatchDataset(batches, **options)
