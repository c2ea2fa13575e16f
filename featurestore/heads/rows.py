"""The rows that heads are fitted and measured on, read once for any number of heads."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.dataset.splits import SPLITS
from featurestore.errors import HeadError
from featurestore.features.batches import Batches

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.features import Features

# Bytes of the features of all splits as float32; above it, Keras heads stream from the store.
IN_MEMORY = 2 * 2**30
STREAMED_ROWS = 1024
# The split of the rows that a fold holds out.
HELD_OUT = "held_out"


class Rows:
    """Features and labels by split. Features stay in memory once they are read.

    Parameters
    ----------
    features : Features
        Labelled.

    Attributes
    ----------
    splits : tuple of str
        Those that heads are measured on.
    """

    splits: tuple[str, ...] = SPLITS

    def __init__(self, features: Features) -> None:
        self.features = features
        self.task: Any = features.task
        self._numbers: dict[str, np.ndarray] = {split: features.rows(split) for split in SPLITS}
        self._read: dict[str, np.ndarray] = {}
        # Of a fold: the rows that its own are taken from.
        self._whole: Rows | None = None

    def fold(self, train: np.ndarray, held_out: np.ndarray) -> Rows:
        """Return some of the training rows, measured on others: the split `HELD_OUT`.

        Parameters
        ----------
        train, held_out : numpy.ndarray (row,)
            Positions among the training rows.
        """
        fold, numbers = copy(self), self._numbers["train"]
        fold._numbers = {**self._numbers, "train": numbers[train], HELD_OUT: numbers[held_out]}
        fold._read, fold.splits = {}, (HELD_OUT,)
        if self.in_memory:
            fold._whole = self
        return fold

    def numbers(self, split: str) -> np.ndarray:
        """Return the labelled rows of a split, int64 (row,), ascending."""
        return self._numbers[split]

    def count(self, split: str) -> int:
        """Return the number of labelled rows of a split."""
        return len(self._numbers[split])

    @property
    def in_memory(self) -> bool:
        """Whether the features of all splits fit in memory."""
        rows = sum(map(self.count, SPLITS))
        return 4 * rows * int(np.prod(self.features.shape[1:])) < IN_MEMORY

    def values(self, split: str) -> np.ndarray:
        """Return features, float32 (row, …)."""
        if split not in self._read:
            numbers, whole = self._numbers[split], self._whole
            if whole is None:
                self._read[split] = self.features.read(numbers, np.float32)
            elif split in whole.splits and split != "train":
                return whole.values(split)
            else:
                positions = whole.numbers("train").searchsorted(numbers)
                self._read[split] = whole.values("train")[positions]
        return self._read[split]

    def targets(self, split: str) -> np.ndarray:
        """Return class codes, int32 (row,), or values, float64 (row,)."""
        return self.features.dataset.targets[self._numbers[split]]

    def labels(self, split: str) -> np.ndarray:
        """Return labels (row,) as the user gave them."""
        assert self.features.labels is not None
        labels = self.features.labels[self._numbers[split]]
        # scikit-learn takes classes of type object, which missing labels make of all, for unknown.
        return np.asarray(labels.tolist()) if labels.dtype == object else labels

    def fitted_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the training rows as (row, feature), and their labels (row,) as the user's."""
        labels = self.labels("train")
        return self.values("train").reshape(len(labels), -1), labels

    def batches(
        self, split: str, batch_size: int | None = None, *, shuffle: bool = False, seed: int = 0
    ) -> Batches:
        """Return batches of a split with its targets, from memory or from the store."""
        numbers, source = self._numbers[split], self.features.source
        memory = self.values(split) if self.in_memory else None
        source.require(numbers)
        targets = self.targets(split)
        targets = targets.astype(np.int32 if self.task == "classification" else np.float32)
        size = batch_size or STREAMED_ROWS
        return Batches(source, numbers, targets, size, shuffle, seed, memory)

    def chunks(self, split: str) -> Iterator[np.ndarray]:
        """Yield the features of a split in order, float32 (row, …), at once or streamed."""
        if self.in_memory or split in self._read:
            yield self.values(split)
            return
        batches = self.batches(split)
        epoch = batches.epoch(0)
        for index in range(len(batches)):
            yield epoch.batch(index)[0]

    def check_completed(self) -> None:
        """Raise HeadError if the rows that exist are too few to learn from."""
        features = self.features
        labels = len(np.unique(self.targets("train")))
        if features.blocks is not None and labels < (2 if self.task == "classification" else 1):
            raise HeadError(
                f"{features.key}: of {features.group.shape[0]} rows {len(features)} exist, and "
                "their training labels are too few to learn from; "
                f"run `{features.group.extract_command}`"
            )

    def problems(self) -> list[str]:
        """Return warnings about a head on these rows: missing rows, missing and single samples."""
        features, texts = self.features, []
        if features.blocks is not None:
            texts.append(
                f"fitted and measured on the {len(features)} of {features.group.shape[0]} rows "
                "that existed"
            )
        if self.task == "regression":
            return texts
        dataset, classes = features.dataset, np.array(list(map(str, features.classes)))
        images = np.unique(dataset.image_rows[self.numbers("train")])
        held_out = np.concatenate([self.numbers("val"), self.numbers("test")])
        trained, measured = (
            np.bincount(dataset.targets[rows], minlength=len(classes))
            for rows in (images, held_out)
        )
        if missing := ", ".join(classes[trained == 0]):
            texts.append(
                f"the train split has no sample of class {missing}, which will never be predicted"
            )
        if single := ", ".join(classes[(trained == 1) & (measured == 0)]):
            texts.append(
                f"class {single} has a single sample, in the train split: it can be "
                "predicted, but not evaluated; add samples"
            )
        return texts


def check_labels(dataset: Dataset) -> None:
    """Raise HeadError if no head can learn from the labels of a data set."""
    scan = "`featurestore scan`"
    if dataset.task is None:
        raise HeadError(
            f"data set {dataset.name!r} has no labels, which heads learn from; scan a folder with "
            f"a sub-folder for each class, or a table with a column of labels, with {scan}"
        )
    train = dataset.rows("train", labelled=True)
    if not len(train):
        raise HeadError(
            f"data set {dataset.name!r} has no labelled rows in its train split; "
            f"split it again with {scan} --val F --test F"
        )
    codes = np.unique(dataset.targets[train])
    if dataset.task == "classification" and len(codes) < 2:
        raise HeadError(
            f"the train split of data set {dataset.name!r} has one class, "
            f"{str(dataset.classes[int(codes[0])])!r}; a head needs at least two: add samples, or "
            f"split again with {scan} --val F --seed N"
        )
