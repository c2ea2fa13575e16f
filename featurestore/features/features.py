"""`Features`: the rows of one layer with their labels and splits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InputError
from featurestore.features.batches import Batches
from featurestore.features.joined import Joined, Order
from featurestore.quiet import load_tensorflow
from featurestore.store import FeatureStore, StoreLike
from featurestore.table import Grid, show_html

if TYPE_CHECKING:
    import dask.array
    import keras
    import pandas
    import tensorflow as tf
    import xarray

    from featurestore.backbone import LayerRef
    from featurestore.dataset import Dataset


class Features(Joined):
    """One feature array joined with its data set, and what reads it.

    ``len`` and `shape` count every row; `rows` says which are read by default. Labels and splits
    are those of the data set: any one of the same samples.

    Attributes
    ----------
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
            If there are none, or several: the message says what is stored, or what selects each.

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
        missing = set(self.group.missing())
        if not missing and self.blocks is None:
            return self
        found = Features(self.group, self.dataset, self.store)
        if missing:
            found.blocks = tuple(each for each in range(self.group.blocks) if each not in missing)
        return found

    def __repr__(self) -> str:
        what = f"{str(self.key)!r}, {self.dataset.name!r}, {self.dtype} {self.shape}"
        return f"Features({what})"

    def _repr_html_(self) -> str:
        counts = {split: len(self.rows(split)) for split in ("train", "val", "test")}
        state = "complete" if self.complete else "some rows are not stored"
        facts = {"rows": len(self), **counts, "classes": len(self.classes) or None, "state": state}
        return show_html(repr(self), Grid([facts], list(facts)))

    def arrays(
        self,
        split: str | None = None,
        *,
        labelled: bool | None = None,
        order: Order = "content",
        dtype: Any = "float32",
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read features and labels into memory, aligned.

        Parameters
        ----------
        split, labelled, order
            As in `rows`. With ``order="given"`` and nothing else, row i is the i-th row of your
            table or of the ``X`` that you gave; an image that could not be read has NaN.
        dtype : numpy.dtype
            Of the features.

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
        >>> X, y = features.arrays(order="given")  # doctest: +SKIP
        """
        if np.dtype(dtype).kind != "f":
            raise InputError(
                f"dtype is {np.dtype(dtype)}, which would cut off decimals; expected float16, "
                "float32 or float64"
            )
        rows = self.rows(split, labelled=labelled, order=order)
        have = rows >= 0
        self.group.require(rows[have])
        X = self.read(rows[have], dtype)
        if not have.all():
            every = np.full((len(rows), *X.shape[1:]), np.nan, X.dtype)
            every[have] = X
            X = every
        return X, self.labels_of(rows)

    def dask(self, split: str | None = None, *, labelled: bool | None = None) -> dask.array.Array:
        """Return the features as a lazy dask array (row, …) of the stored type.

        Each block is a chunk; those that are missing or damaged raise when computed. Rows and
        labels are as in `rows`: ``labels[rows(split)]``.
        """
        from featurestore.features.lazy import as_dask

        return as_dask(self.group, self.rows(split, labelled=labelled))

    def to_frame(
        self,
        split: str | None = None,
        *,
        labelled: bool | None = None,
        order: Order = "content",
    ) -> pandas.DataFrame:
        """Return pooled features as a pandas DataFrame, with what is known of each sample.

        Rows are as in `arrays`; with ``order="given"`` and nothing else, a line for each of your
        rows.

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
        from featurestore.features.frame import as_frame

        return as_frame(self, split, labelled, order)

    def xarray(self, *, order: Order = "content") -> xarray.Dataset:
        """Return ``features`` (row, …), lazy, with the coordinates of every row, labelled or not.

        In the order ``"given"``, an image that could not be read has NaN.

        Returns
        -------
        xarray.Dataset
            Coordinates along ``row``: ``sample`` (whole digest), ``split``, ``label`` and
            ``group`` if the data set has them, and the other columns of your table (or ``id``).
            In content order, a row has the values of the first of identical images. A column of
            yours called ``features``, or as a dimension, has ``_given`` after its name.
        """
        from featurestore.features.lazy import as_xarray

        return as_xarray(self, order)

    def tf_dataset(
        self,
        split: str | None = None,
        *,
        batch_size: int = 256,
        shuffle: bool = False,
        seed: int = 0,
    ) -> tf.data.Dataset:
        """Stream batches block by block as a `tf.data.Dataset`.

        Rows are as `rows` gives them. ``shuffle`` shuffles blocks, and rows within a window of
        them, differently in each epoch but the same for the same seed; see `Batches`.

        Returns
        -------
        tf.data.Dataset
            Of (x, y): x float32 (batch, …); y int32 codes into `classes` or float32. Of x alone for
            an unlabelled data set.
        """
        load_tensorflow()
        from featurestore.features.streams import as_tf_dataset

        batches = self.batches(split, batch_size=batch_size, shuffle=shuffle, seed=seed)
        return as_tf_dataset(batches, self.dtype.newbyteorder("="))

    def py_dataset(
        self,
        split: str | None = None,
        *,
        batch_size: int = 256,
        shuffle: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> keras.utils.PyDataset:
        """Return the batches of `tf_dataset` as a `keras.utils.PyDataset`, for every Keras backend.

        ``options`` are those of `keras.utils.PyDataset`, such as ``workers``.
        """
        load_tensorflow()
        from featurestore.features.streams import BatchDataset

        source = self.batches(split, batch_size=batch_size, shuffle=shuffle, seed=seed)
        return BatchDataset(source, **options)

    def batches(
        self,
        split: str | None = None,
        *,
        batch_size: int = 256,
        shuffle: bool = False,
        seed: int = 0,
        memory: np.ndarray | None = None,
    ) -> Batches:
        """Return the batches of a split as numpy arrays; `tf_dataset` and `py_dataset` wrap them.

        ``memory`` holds the features of these rows, (row, …), if they were read before.

        Raises
        ------
        IncompleteFeaturesError
            If some of the rows were never extracted; raised before the first epoch.
        InputError
            If the batch size is less than 1.
        """
        if batch_size < 1:
            raise InputError(f"batch size is {batch_size!r}; expected 1 or more, such as 256")
        rows = self.rows(split)
        self.group.require(rows)
        targets = None
        if self.task is not None:
            kind = np.int32 if self.task == "classification" else np.float32
            targets = self.dataset.targets[rows].astype(kind)
        return Batches(self.group, rows, targets, batch_size, shuffle, seed, memory)
