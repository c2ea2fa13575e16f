"""The data set: a table of samples in content order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np

from featurestore import images
from featurestore.dataset import labels as labelling
from featurestore.dataset import manifest
from featurestore.dataset.arrays import list_arrays, replicate
from featurestore.dataset.labels import Task
from featurestore.dataset.listing import list_folder, split_folders
from featurestore.dataset.merge import Entry, Problem, merge
from featurestore.dataset.notes import notes, own_splits
from featurestore.dataset.options import (
    checked,
    checked_name,
    command_line,
    default_name,
    drawing,
    for_folder,
    for_table,
    is_folder,
)
from featurestore.dataset.sample import array_sample, read_sample
from featurestore.dataset.scan import Scanned, Verdict, scan
from featurestore.dataset.source import absolute
from featurestore.dataset.split import SPLITS, Splits
from featurestore.dataset.summary import summarise
from featurestore.dataset.table import list_table
from featurestore.digests import (
    ROW_BYTES,
    digest_array,
    digest_fields,
    digest_set,
    row_id,
)
from featurestore.errors import DatasetError, nearest

OnEvent = Callable[[Scanned], None]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A table of samples, one row for each digest, in content order.

    Made by :meth:`from_folder`, :meth:`from_table` or :meth:`from_arrays`.

    Attributes
    ----------
    name : str
    source : str or None
        Absolute path or URI of the folder or table; None for arrays.
    options : dict
        How it was scanned: ``open(source, name=name, **options)`` does it again.
    sample_digests : list of str, (row,)
        Ascending.
    paths : list of str or None, (row,)
        Absolute path or URI of the first of identical files; None for arrays.
    labels : numpy.ndarray or None, (row,)
        Objects of type str or int, None where missing; float64, NaN where missing; None where no
        sample has a label.
    splits : numpy.ndarray of str, (row,)
        ``train``, ``val`` or ``test``.
    groups : numpy.ndarray or None, (row,)
        Objects of type str; a sample without group is one of its own, named by its digest. None
        where no sample has a group.
    problems : tuple of Problem
        Sorted.
    arrays : list of numpy.ndarray, (row,), or None
        uint8, (height, width, channel=1 or 3) each, where the samples are in memory.
    """

    name: str
    source: str | None
    options: dict[str, Any]
    sample_digests: list[str]
    paths: list[str | None]
    labels: np.ndarray | None
    splits: np.ndarray
    groups: np.ndarray | None
    problems: tuple[Problem, ...] = ()
    arrays: list[np.ndarray] | None = None

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        val: float = Splits.val,
        test: float = Splits.test,
        seed: int = Splits.seed,
        stratify: bool | None = Splits.stratify,
        group_by: str | None = None,
        on_event: OnEvent | None = None,
    ) -> Dataset:
        """Scan a folder whose sub-folders are the classes; one without any is unlabelled.

        If every sub-folder that holds images is named as a split (``train``, ``valid``, ``test``
        …, in any case), these are the splits, and the classes are the folders below them. What
        there is no folder of is drawn from ``train``.

        Parameters
        ----------
        path : path
            The folder. Nested folders belong to the class above them; names that begin with a dot
            are passed over.
        name : str, optional
            By default the folder's name.
        val, test : float
            Fractions drawn for these splits, by digest or group. Validation is drawn from one end
            of the digests' range and test from the other.
        seed : int
            Of the draw.
        stratify : bool, optional
            Whether each class gives its own fraction. By default classes of fewer than 100
            samples (or groups) do.
        group_by : str, optional
            ``"folder"``: the images of one (sub-)folder stay in one split. Else a regular
            expression on the path relative to the folder, whose match, or whose group, names the
            group: ``"patient_([0-9]+)"``.
        on_event : callable, optional
            Is given :class:`Scanned` events.

        Raises
        ------
        DatasetError
            Where there is no such folder, or no image in it.
        """
        source = absolute(path)
        known_as = _name(name, source)
        options = checked(val, test, seed, stratify, group_by=group_by)
        entries, problems = list_folder(source, group_by)
        verdicts = scan([each.source for each in entries], on_event)
        entries, folders = split_folders(source, entries, verdicts)
        return cls._of(known_as, source, options, entries, verdicts, problems, folders)

    @classmethod
    def from_table(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        path_column: str = "path",
        label_column: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        val: float = Splits.val,
        test: float = Splits.test,
        seed: int = Splits.seed,
        stratify: bool | None = Splits.stratify,
        on_event: OnEvent | None = None,
    ) -> Dataset:
        """Scan the images that a CSV, TSV or Parquet table lists.

        Parameters
        ----------
        path : path or URI
            The table.
        name : str, optional
            By default the table's file name without its ending.
        path_column : str
            Paths, relative ones from the table's folder, or URIs.
        label_column : str, optional
            By default ``label``, where the table has it; without it the samples are unlabelled.
            In a CSV, a column of integers makes integer classes, one of other numbers a
            regression, and all else words.
        split_column : str, optional
            By default ``split``, where the table has it. Its values win; empty cells are drawn.
        group_column : str, optional
            Rows of one group stay in one split, where it is drawn.
        val, test, seed, stratify
            As in :meth:`from_folder`.
        on_event : callable, optional
            Is given :class:`Scanned` events.

        Raises
        ------
        DatasetError
            Where the table cannot be read or lacks a column, or none of the files is an image.
        """
        source = absolute(path)
        columns: dict[str, Any] = {
            "path_column": None if path_column == "path" else path_column,
            "label_column": label_column,
            "split_column": split_column,
            "group_column": group_column,
        }
        known_as = _name(name, source)
        options = checked(val, test, seed, stratify, **columns)
        entries, problems = list_table(
            source, path_column, label_column, split_column, group_column
        )
        verdicts = scan([each.source for each in entries], on_event)
        return cls._of(known_as, source, options, entries, verdicts, problems)

    @classmethod
    def from_arrays(
        cls,
        X: Any,
        y: Any = None,
        *,
        name: str,
        splits: Sequence[str | None] | None = None,
        groups: Iterable[Any] | None = None,
        val: float = Splits.val,
        test: float = Splits.test,
        seed: int = Splits.seed,
        stratify: bool | None = Splits.stratify,
    ) -> Dataset:
        """Take samples from arrays in memory. They are not copied, and no store keeps them.

        Parameters
        ----------
        X : array of uint8, (row, height, width), (row, height, width, 1) or (…, 3); or a list
            Grey or RGB images. In a list of arrays (height, width[, channel]) sizes may differ.
        y : sequence, optional
            Text or integers (classification) or floats (regression), one for each image; None and
            NaN where missing.
        name : str
            Of the data set.
        splits : sequence of str, optional
            ``train``, ``val`` or ``test``; None is drawn.
        groups : sequence, optional
            Images of one group stay in one split.
        val, test, seed, stratify
            As in :meth:`from_folder`.

        Raises
        ------
        DatasetError
            Where X is not uint8, or shapes or lengths do not fit.

        Examples
        --------
        >>> import numpy as np
        >>> X = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
        >>> Dataset.from_arrays(X, ["a", "b", "a", "b"], name="tiny")
        Dataset(name='tiny', rows=4, task='classification', classes=2, problems=1)
        """
        options = checked(val, test, seed, stratify)
        samples, entries = list_arrays(X, y, splits, groups)
        verdicts = {
            entry.source: Verdict(digest_array(each), None)
            for entry, each in zip(entries, samples, strict=True)
        }
        return cls._of(checked_name(name), None, options, entries, verdicts, samples=samples)

    @classmethod
    def open(cls, data: str | os.PathLike[str], **options: Any) -> Dataset:
        """Scan a folder or a table, whichever it is.

        Parameters
        ----------
        data : path or URI
            A folder of images, or a CSV, TSV or Parquet file.
        **options
            Those of :meth:`from_folder` or :meth:`from_table`. ``group_by`` names a table's
            group column, too. None means the default.

        Raises
        ------
        DatasetError
            Where it is neither, or an option belongs to the other.
        """
        source = absolute(data)
        if is_folder(source):
            return cls.from_folder(source, **for_folder(source, options))
        return cls.from_table(source, **for_table(options))

    @classmethod
    def _of(
        cls,
        name: str,
        source: str | None,
        options: dict[str, Any],
        entries: list[Entry],
        verdicts: dict[str, Verdict],
        problems: Sequence[Problem] = (),
        folders: dict[str, str] | None = None,
        samples: list[np.ndarray] | None = None,
    ) -> Dataset:
        """Make the rows of what was listed and scanned; ``folders`` are splits of the folder."""
        splits, where = drawing(options), source or name
        found = list(problems)
        if folders:
            found.append(own_splits(folders, splits, where))
            own = set(folders.values())
            splits = replace(
                splits,
                val=0.0 if "val" in own else splits.val,
                test=0.0 if "test" in own else splits.test,
            )
        rows = merge(entries, verdicts, splits, from_train=bool(folders))
        found += [*rows.problems, *notes(entries, rows, splits, where)]
        return cls(
            name=name,
            source=source,
            options=options,
            sample_digests=rows.digests,
            paths=[None if samples else entries[number].source for number in rows.first],
            labels=labelling.column(rows.labels),
            splits=np.array(rows.splits, "<U5"),
            groups=_group_column(rows.groups, rows.digests),
            problems=tuple(sorted(found)),
            arrays=[samples[number] for number in rows.first] if samples else None,
        )

    @classmethod
    def from_parquet(cls, data: bytes) -> Dataset:
        """Read what :meth:`to_parquet` wrote.

        The images stay where they are; arrays are not in it, so such a data set has no pixels.

        Raises
        ------
        DamagedError
            Where the bytes are damaged.
        StoreFormatError
            Where they are of a newer format.
        """
        columns, fields = manifest.read(data)
        try:
            found = cls(
                name=fields["name"],
                source=fields["source"],
                options=fields["options"],
                sample_digests=columns["digest"],
                paths=columns["path"],
                labels=labelling.column(columns["label"]),
                splits=np.array(columns["split"], "<U5"),
                groups=_group_column(columns["group"], columns["digest"]),
                problems=tuple(Problem(**each) for each in fields["problems"]),
            )
            manifest.compare(found, fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise manifest.damaged(str(error)) from error
        return found

    def to_parquet(self, added: str | None = None) -> bytes:
        """Write the data set as a manifest: a Parquet table with a row for each sample.

        Parameters
        ----------
        added : str, optional
            When a store made it its current state, ISO 8601.
        """
        return manifest.write(self, added)

    @cached_property
    def digest(self) -> str:
        """Digest of the set of samples: labels, paths and splits do not matter."""
        return digest_set(self.sample_digests)

    @cached_property
    def manifest_digest(self) -> str:
        """Digest of samples, labels, splits and groups; paths do not matter."""
        return digest_fields(
            {
                "samples": self.sample_digests,
                "labels": self.plain_labels(),
                "splits": self.splits.tolist(),
                "groups": self.plain_groups(),
            }
        )

    @cached_property
    def sample_ids(self) -> np.ndarray:
        """The first 16 bytes of each digest, uint8 (row, byte=16)."""
        joined = b"".join(map(row_id, self.sample_digests))
        return np.frombuffer(joined, np.uint8).reshape(-1, ROW_BYTES)

    @cached_property
    def task(self) -> Task | None:
        """``classification``, ``regression``, or None where no sample has a label."""
        return labelling.task(self.labels)

    @cached_property
    def classes(self) -> tuple[Any, ...]:
        """The sorted classes, str or int; empty unless it is a classification."""
        return labelling.classes(self.labels)

    @cached_property
    def targets(self) -> np.ndarray:
        """What heads fit, (row,): int32 codes into the classes or float64; -1 or NaN if missing."""
        return labelling.targets(self.labels, len(self))

    @property
    def scan_command(self) -> str | None:
        """The command line that scans the same again; None for arrays."""
        if self.source is None:
            return None
        return command_line(self.source, self.name, self.options)

    def __len__(self) -> int:
        return len(self.sample_digests)

    def __repr__(self) -> str:
        return (
            f"Dataset(name={self.name!r}, rows={len(self)}, task={self.task!r}, "
            f"classes={len(self.classes)}, problems={len(self.problems)})"
        )

    def rows(self, split: str | None = None, labelled: bool | None = None) -> np.ndarray:
        """Return row numbers, int64 (row,), ascending.

        Parameters
        ----------
        split : str, optional
            ``train``, ``val`` or ``test``; by default all.
        labelled : bool, optional
            True leaves out the rows without a label, False keeps them. By default they are left
            out where the data set has labels; `Features` follows the same rule.
        """
        if split is not None and split not in SPLITS:
            raise DatasetError(f"no split {split!r}: {nearest(split, SPLITS)}")
        kept = np.ones(len(self), bool) if split is None else self.splits == split
        if labelled or (labelled is None and self.task is not None):
            kept = kept & self._labelled()
        return np.flatnonzero(kept)

    def read(self, row: int) -> bytes:
        """Return the bytes of a sample, checked against its digest.

        The bytes of the file; for arrays those of the values, in C order.

        Raises
        ------
        DatasetError
            Where the file cannot be read, or the data set came from arrays and then from a store.
        SourceChangedError
            Where the bytes are not those that were scanned.
        """
        return read_sample(self, row)

    @overload
    def image(self, row: int) -> np.ndarray: ...

    @overload
    def image(self, row: int, then: Callable[[np.ndarray], images.Made]) -> images.Made: ...

    def image(self, row: int, then: Callable[[np.ndarray], Any] | None = None) -> Any:
        """Return a sample decoded, uint8 (height, width, channel=3), checked as by :meth:`read`.

        Parameters
        ----------
        row : int
        then : callable, optional
            What to make of the image and return instead, such as a smaller one: see
            :func:`featurestore.images.decode`.
        """
        if self.paths[row] is not None:
            return images.decode(read_sample(self, row), then)
        pixels = replicate(array_sample(self, row))
        return pixels if then is None else then(pixels)

    def summary(self) -> dict[str, Any]:
        """Return what ``featurestore scan`` reports, as JSON values.

        Returns
        -------
        dict
            ``dataset``, ``source``, ``digest``, ``manifest_digest``, ``rows``, ``task``;
            ``splits``: rows of each; ``classes``: for each class its rows in each split;
            ``targets``: for a regression, for each split its rows, minimum, mean and maximum;
            ``unlabelled``: rows without label; ``problem_counts`` by kind, and ``problems``.
        """
        return summarise(self)

    def _labelled(self) -> np.ndarray:
        # a NaN is not >= 0, nor < 0
        if self.task == "regression":
            return ~np.isnan(self.targets)
        return self.targets >= 0

    def plain_labels(self) -> list[Any]:
        """Return the labels as Python values, None where missing."""
        if self.labels is None:
            return [None] * len(self)
        return [None if each != each else each for each in self.labels.tolist()]

    def plain_groups(self) -> list[str | None]:
        """Return the groups as text; all None where there are none."""
        return [None] * len(self) if self.groups is None else self.groups.tolist()


def _name(name: str | None, source: str) -> str:
    """Return the name of what is scanned; checked before the scan, which may take an hour."""
    return checked_name(default_name(source) if name is None else name)


def _group_column(groups: list[str | None], digests: list[str]) -> np.ndarray | None:
    if all(each is None for each in groups):
        return None
    column = np.empty(len(groups), object)
    column[:] = [
        digest if each is None else each for each, digest in zip(groups, digests, strict=True)
    ]
    return column
