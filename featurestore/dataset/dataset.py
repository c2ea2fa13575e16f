"""The data set: a table of samples in content order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.dataset import arrays as in_memory
from featurestore.dataset import augmentation as augmenting
from featurestore.dataset import manifest
from featurestore.dataset.labels import Task
from featurestore.dataset.manifest import DatasetEntry
from featurestore.dataset.naming import checked_name, remedy, scan_again
from featurestore.dataset.opening import scan_source
from featurestore.dataset.options import ScanOptions
from featurestore.dataset.problems import Problem, problem_lines
from featurestore.dataset.samples import Samples
from featurestore.dataset.scan import decode_scanned
from featurestore.dataset.source import absolute
from featurestore.dataset.splits import SPLITS, Splits, named
from featurestore.dataset.summary import summarize, summary_grid
from featurestore.digests import ROW_BYTES, digest_set, unpacked
from featurestore.errors import DatasetError, InputError, received
from featurestore.listening import OnEvent
from featurestore.table import show_html

if TYPE_CHECKING:
    import pandas


class Dataset:
    """A table of samples, one row for each digest, in content order.

    Create one with :meth:`open` or :meth:`from_arrays`.

    Attributes
    ----------
    name : str
    source : str or None
        Absolute path or URI of the folder or table; None for a DataFrame and for arrays.
    options : dict
        How it was scanned: ``open(source, name=name, **options)`` does it again. Of an augmented
        data set: ``plain`` (name of the data set of its images), ``plain_manifest`` (its manifest
        digest), ``views`` and ``augmentation``.
    samples : Samples
        The rows as columns.
    images_in_memory : sequence of numpy.ndarray, (listed,), or None
        uint8, (height, width, channel=1 or 3) each, in your order; None if the samples are files.
    """

    def __init__(
        self,
        name: str,
        source: str | None,
        options: dict[str, Any],
        samples: Samples,
        images_in_memory: Sequence[np.ndarray] | np.ndarray | None = None,
    ) -> None:
        self.name, self.source, self.options, self.samples = name, source, options, samples
        self.images_in_memory = images_in_memory
        samples.freeze()

    @classmethod
    def open(
        cls,
        data: Any,
        *,
        name: str | None = None,
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> Dataset:
        """Scan a folder of images, or the images that a table lists.

        The sub-folders of a folder are the classes; without sub-folders it is unlabelled. If every
        sub-folder that holds images is named as a split (``train``, ``valid``, ``test`` …, in any
        case), these are the splits, and the classes are the folders below them. A split without a
        folder is drawn from ``train``.

        Parameters
        ----------
        data : path, URI or DataFrame
            A folder: deeper folders belong to the class above them; names that begin with a dot
            are skipped. Or a table with a row for each image: a CSV, TSV or Parquet file, or a
            DataFrame of pandas, polars or Arrow.
        name : str, optional
            By default the folder's name, or the table's file name without its ending. A DataFrame
            needs one.
        on_event : callable, optional
            Receives :class:`Scanned` events.
        **options
            How samples are split: ``val``, ``test``, ``seed`` and ``group_by``; and of a table,
            ``image_column``, ``label_column``, ``split_column`` and ``root``: see
            :class:`ScanOptions`.

        Raises
        ------
        DatasetError
            If the folder or table does not exist, holds no image, or cannot be read, or the table
            does not have a column.
        InputError
            If an option is unknown or out of range.
        """
        if options.get("root") is not None:
            options["root"] = absolute(options["root"])
        how = ScanOptions.of(options)
        name, source, samples = scan_source(data, name, how, on_event)
        return cls(name, source, how.model_dump(exclude_none=True), samples)

    @classmethod
    def from_arrays(
        cls,
        X: Any,
        y: Any = None,
        *,
        name: str,
        splits: Sequence[str | None] | None = None,
        groups: Iterable[Any] | None = None,
        ids: Iterable[Any] | None = None,
        **options: Any,
    ) -> Dataset:
        """Take samples from arrays in memory, which are not copied. A store does not keep them.

        Parameters
        ----------
        X : array of uint8, (row, height, width), (row, height, width, 1) or (…, 3); or a list
            Grey or RGB images. In a list of arrays (height, width[, channel]) sizes may differ.
        y : sequence, optional
            Text or integers (classification) or floats (regression), one for each image; None and
            NaN where missing.
        name : str
            Name of the data set.
        splits : sequence of str, optional
            ``train``, ``val`` or ``test``; None is drawn.
        groups : sequence, optional
            Images of one group stay in one split.
        ids : sequence of str or int, optional
            Your own name for each image: a column ``id`` of `to_frame` and `Features.xarray`.
        **options
            How samples are split: ``val``, ``test`` and ``seed``.

        Raises
        ------
        DatasetError
            If X is not uint8, or shapes or lengths do not fit.
        InputError
            If an option is unknown or out of range.

        Examples
        --------
        >>> import numpy as np
        >>> X = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
        >>> Dataset.from_arrays(X, ["a", "b", "a", "b"], name="tiny")
        Dataset(name='tiny', rows=4, task='classification', classes=2, problems=1)
        """
        name, how = checked_name(name), Splits.of(options)
        if how.group_by is not None:
            raise DatasetError("group_by is for folders and tables", remedy="use groups=")
        samples, images = in_memory.list_arrays(X, y, splits, groups, ids, how, name)
        return cls(name, None, how.model_dump(exclude_none=True), samples, images)

    @classmethod
    def from_parquet(cls, data: bytes) -> Dataset:
        """Read what :meth:`to_parquet` wrote; such a data set of arrays has no pixels.

        Raises
        ------
        DamagedError, StoreFormatError
            If the bytes are damaged, or of a newer format.
        """
        samples, entry = manifest.read(data)
        dataset = cls(entry.name, entry.source, dict(entry.options), samples)
        dataset.digest, dataset.manifest_digest = entry.digest, entry.manifest_digest
        return dataset

    def to_parquet(self, added: str = "") -> bytes:
        """Write the data set as a manifest: a Parquet table with a row for each listed image.

        ``added`` is when it became the current state in a store, ISO 8601.
        """
        return manifest.write(self.samples, self.entry(added))

    def entry(self, added: str = "") -> DatasetEntry:
        """Return the description of the data set without its rows; `added` as in `to_parquet`."""
        names = DatasetEntry.model_fields.keys() - {"rows", "added"}
        fields = {name: getattr(self, name) for name in names}
        return DatasetEntry(rows=len(self), added=added, **fields)

    @cached_property
    def sample_digests(self) -> list[str]:
        """Digests of the samples, (row,), ascending."""
        return list(unpacked(self.samples.digests))

    @cached_property
    def paths(self) -> list[str | None]:
        """Absolute path or URI of the first of identical files, (row,); None for arrays."""
        return self.samples.paths()

    @property
    def input_order(self) -> np.ndarray:
        """The row of each listed image, in the order of the input, int64 (listed,).

        This is the order of ``X``, of the rows of a table, or of the sorted paths of a folder.
        Identical images have the same row; an image that could not be read has -1. A store keeps
        the order of the last scan; no digest covers it.
        """
        return self.samples.listing.rows

    @property
    def problems(self) -> list[Problem]:
        """Problems of single samples and of the whole data set, sorted."""
        return self.samples.problems

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Labels, (row,): objects of type str or int, None if missing; or float64, NaN if missing.

        None if no sample has a label.
        """
        return self.samples.labels.array()

    @cached_property
    def splits(self) -> np.ndarray:
        """``train``, ``val`` or ``test``, (row,)."""
        return np.array(SPLITS)[self.samples.splits]

    @property
    def groups(self) -> np.ndarray | None:
        """Groups, objects of type str (row,); None if no sample has a group.

        A sample without a group is a group of its own, named by its digest.
        """
        return self.samples.groups

    @cached_property
    def digest(self) -> str:
        """Digest of the set of samples: labels, paths and splits do not matter."""
        return digest_set(self.samples.digests)

    def augmented(self, augmentation: Any, *, views: int, name: str | None = None) -> Dataset:
        """Return this data set with random views of each training image as further samples.

        A view has the label, split and group of its image; without a group, the image is its group.
        The layers are applied when features are computed, after the resize of the backbone, to
        values from 0 to 255. View 3 is the same whatever the number of views.

        Parameters
        ----------
        augmentation : list, keras.layers.Layer, str or path
            Random image layers of Keras that keep the size: layers, their names,
            ``{name: settings}``, a Sequential model of them, or a YAML or JSON file.
        views : int
            Views of each training image, numbered from 1.
        name : str, optional
            By default the name of this data set and the number of views: ``photos-x8``.

        Raises
        ------
        InputError
            If a layer does not exist, changes the size, or has no effect.
        DatasetError
            If there are no training samples, or the data set is augmented already.

        Examples
        --------
        >>> import numpy as np
        >>> X = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
        >>> pets = Dataset.from_arrays(X, ["a", "b", "a", "b"], name="pets", val=0)
        >>> pets.augmented("[RandomFlip]", views=2)
        Dataset(name='pets-x2', rows=12, task='classification', classes=2, problems=0)
        """
        if not isinstance(views, int) or views < 1:
            raise InputError(f"views is {received(views)}", "a number of views, such as 8")
        name = checked_name(f"{self.name}-x{views}" if name is None else name)
        if name == self.name:
            raise DatasetError(
                f"the augmented data set has the name of {name!r}", remedy="give another name"
            )
        layers = augmenting.canonical(augmentation)
        plain = {"plain": self.name, "plain_manifest": self.manifest_digest}
        options = {**plain, "views": views, "augmentation": layers}
        samples = augmenting.with_views(self.samples, layers, views, self.name)
        return Dataset(name, None, options, samples, self.images_in_memory)

    @cached_property
    def image_rows(self) -> np.ndarray:
        """The row of the image that a sample is a view of, its own for an image: int64 (row,)."""
        return augmenting.image_rows(self.samples)

    @cached_property
    def manifest_digest(self) -> str:
        """Digest of samples, labels, splits and groups; paths do not matter."""
        return manifest.digest(self.samples)

    @property
    def sample_ids(self) -> np.ndarray:
        """The first 16 bytes of each digest, uint8 (row, byte=16)."""
        return self.samples.digests[:, :ROW_BYTES]

    @property
    def task(self) -> Task | None:
        """``classification``, ``regression``, or None if no sample has a label."""
        return self.samples.labels.task

    @property
    def classes(self) -> tuple[Any, ...]:
        """The sorted classes, str or int; empty unless it is a classification."""
        return self.samples.labels.classes

    @property
    def targets(self) -> np.ndarray:
        """Targets of heads, (row,): int32 codes of classes or float64; -1 or NaN if missing."""
        return self.samples.labels.targets

    def to_frame(self) -> pandas.DataFrame:
        """Return the listed images in the order of the input, with row, digest and split.

        Returns
        -------
        pandas.DataFrame
            A line for each row of the table or of ``X``, or for each file of the folder, as in
            `input_order`: ``row`` (-1 if it could not be read), ``sample`` (digest), ``path``,
            ``label``, ``split`` and ``group`` where the data set has them, then the other columns
            of your table. A column of yours with one of these names has ``_input`` after it.
            Integers with gaps are of the type ``Int64``, which keeps all their digits.
        """
        from featurestore.dataset.frame import as_frame

        return as_frame(self.samples)

    def __len__(self) -> int:
        return len(self.samples.digests)

    def __repr__(self) -> str:
        return (
            f"Dataset(name={self.name!r}, rows={len(self)}, task={self.task!r}, "
            f"classes={len(self.classes)}, problems={len(self.problems)})"
        )

    def _repr_html_(self) -> str:
        grid = summary_grid(self.summary())
        return show_html(repr(self), grid, *problem_lines(self.problems, self.name))

    def rows(
        self, split: str | None = None, labelled: bool | None = None, *, views: bool = True
    ) -> np.ndarray:
        """Return row numbers, int64 (row,), ascending.

        Parameters
        ----------
        split : str, optional
            ``train``, ``val`` or ``test``, or a word for one such as ``validation``; else all.
        labelled : bool, optional
            True leaves out the rows without a label, False keeps them. By default they are left out
            if the data set has labels.
        views : bool
            False leaves out the views of an augmented data set.
        """
        kept = np.ones(len(self), bool)
        if split is not None:
            kept = self.samples.splits == SPLITS.index(named(split))
        if labelled or (labelled is None and self.task is not None):
            kept &= self.samples.labels.labelled
        if not views:
            kept &= self.image_rows == np.arange(len(self))
        return np.flatnonzero(kept)

    def image(self, row: int, then: Callable[[np.ndarray], Any] | None = None) -> Any:
        """Return a decoded sample, uint8 (height, width, channel=3), checked against its digest.

        ``then`` is applied to the image, such as a resize, and its result is returned instead: see
        :func:`featurestore.images.decode`. The layers of a view are applied after ``then``.

        Raises
        ------
        DatasetError
            If the file cannot be read, or the data set was made from arrays and read from a store.
        SourceChangedError
            If the bytes are not those that were scanned.
        ImageError
            If the file does not decode on this machine.
        """
        if (image := int(self.image_rows[row])) != row:
            return self.image(image, partial(self._view, row, then))
        if (path := self.samples.path(row)) is not None:
            scanned = self.source, self.name, self.options
            advice = partial(remedy, *scanned), partial(scan_again, *scanned)
            return decode_scanned(path, self.samples.digest(row), *advice, then)
        array = in_memory.checked(self, row)
        pixels = array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)
        return pixels if then is None else then(pixels)

    def _view(self, row: int, then: Callable[[np.ndarray], Any] | None, image: np.ndarray) -> Any:
        image = image if then is None else then(image)
        view = augmenting.compiled(self.options["augmentation"], image.shape[:2])
        return view(image, self.samples.digest(row))

    def summary(self) -> dict[str, Any]:
        """Return the report of ``featurestore scan``, as JSON values.

        Returns
        -------
        dict
            ``dataset``, ``source``, ``digest``, ``manifest_digest``, ``rows``, ``views`` (those of
            the rows that are views of images), ``task``;
            ``splits``: rows of each; ``classes``: for each class its rows in each split;
            ``targets``: for a regression, for each split its rows, minimum, mean and maximum;
            ``unlabelled``: rows without label; ``problem_counts`` by kind, and ``problems``.
        """
        return {
            "dataset": self.name,
            "source": self.source,
            "digest": self.digest,
            "manifest_digest": self.manifest_digest,
            "views": len(self) - len(self.rows(labelled=False, views=False)),
            **summarize(self.samples),
        }
