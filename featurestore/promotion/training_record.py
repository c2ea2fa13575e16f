"""Which samples trained a model: only metrics on others apply to new images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from featurestore.dataset.splits import SPLITS, named

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

# Of each digest. Among a million samples, two are alike with a chance of one in 40 million.
ID_BYTES = 8
UNSEEN, UNKNOWN = "unseen", "unknown"


@dataclass(frozen=True, eq=False)
class TrainingRecord:
    """The samples of the data set that a model was made with, and the split of each.

    Attributes
    ----------
    samples : dict of str to numpy.ndarray of uint64, (sample,)
        By split, the first 8 bytes of each sample's digest as a number.
    selected_on : tuple of str
        Splits whose rows chose the head or the epoch.
    complete : bool
        False if the model, or its backbone, was trained on other samples that nothing records.
    """

    samples: Mapping[str, np.ndarray]
    selected_on: tuple[str, ...] = ("val",)
    complete: bool = True

    @classmethod
    def of(cls, data: Dataset, selected_on: Collection[str], complete: bool = True) -> Self:
        """Return the record of a model whose head was fitted on a data set."""
        samples: dict[str, np.ndarray] = {}
        for split in SPLITS:
            rows = data.rows(split, labelled=split != "test", views=False)
            samples[split] = _ids(data)[rows]
        selected = tuple(sorted(set(map(named, selected_on)), key=SPLITS.index))
        return cls(samples, selected, complete)

    def splits_of(self, data: Dataset) -> np.ndarray:
        """Return the split that each sample of a data set had for the model, str (row,).

        ``train``, ``val`` or ``test``; ``unseen`` for a sample that was in none. The splits of
        ``data`` do not matter.
        """
        ids = _ids(data)
        splits = np.full(len(ids), UNSEEN, "<U6")
        for split, own in self.samples.items():
            splits[np.isin(ids, own)] = split
        return splits

    def images_were(self, split: str) -> str:
        """Return what a model did with the images of a split: see `featurestore.evaluate`."""
        if split == "train":
            return "trained on"
        if split in self.selected_on:
            return "selected on"
        return "held out" if self.complete else UNKNOWN

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        samples = {split: ids.astype(">u8").tobytes().hex() for split, ids in self.samples.items()}
        return {
            "samples": samples,
            "selected_on": list(self.selected_on),
            "complete": self.complete,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` returned.

        Raises
        ------
        ValueError, TypeError, LookupError, AttributeError
            If it is malformed.
        """
        samples, selected = record["samples"], tuple(record["selected_on"])
        if not {*samples, *selected} <= set(SPLITS):
            raise ValueError(f"a split other than {', '.join(SPLITS)}")
        ids = {split: np.frombuffer(bytes.fromhex(text), ">u8") for split, text in samples.items()}
        return cls(ids, selected, record["complete"] is True)


def _ids(data: Dataset) -> np.ndarray:
    return np.ascontiguousarray(data.sample_ids[:, :ID_BYTES]).view(">u8").reshape(-1)
