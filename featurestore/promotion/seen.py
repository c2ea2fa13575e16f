"""Which samples a model has seen: what decides whether a figure says anything about new images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.dataset.split import SPLITS

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

# Of each digest. Among a million samples two are alike once in 40 million cases.
ID_BYTES = 8
STORED = ">u8"
UNSEEN = "unseen"
# What the rows of a split were used for.
TRAINING, SELECTION, NOTHING, UNKNOWN = "training", "selection", "nothing", "unknown"


@dataclass(frozen=True, eq=False)
class Seen:
    """The samples of the data set that a model was made with, by their split.

    Attributes
    ----------
    ids : dict of str to numpy.ndarray, uint64 (sample,)
        The first 8 bytes of each digest as a number, ascending; by split. No sample is in two.
    selected_on : tuple of str
        Splits whose rows chose the head or the epoch.
    complete : bool
        False if the model was trained further, on samples that are not known.
    """

    ids: dict[str, np.ndarray]
    selected_on: tuple[str, ...] = ("val",)
    complete: bool = True

    @classmethod
    def by(
        cls,
        datasets: Collection[Dataset],
        selected_on: Collection[str] = ("val",),
        backbone: Seen | None = None,
    ) -> Seen:
        """Take what a model was trained and selected on.

        Parameters
        ----------
        datasets : collection of Dataset
            The data set as the head was fitted on it, and as the model was fine-tuned on it. A
            sample of the training rows of any of them counts as trained on.
        selected_on : collection of str
            Splits whose rows chose the head or the epoch.
        backbone : Seen, optional
            What the backbone was trained and selected on, if it is a promoted model: counts as
            trained on.
        """
        ids: dict[str, np.ndarray] = {}
        taken = np.zeros(0, np.uint64)
        selected = tuple(each for each in SPLITS if each in selected_on)
        # What was seen most counts.
        for split in sorted(SPLITS, key=lambda each: (each != "train", each not in selected)):
            rows = [_ids(data, data.rows(split, labelled=split != "test")) for data in datasets]
            if backbone is not None and split == "train":
                used = ("train", *backbone.selected_on)
                rows += [ids for each, ids in backbone.ids.items() if each in used]
            ids[split] = np.setdiff1d(np.concatenate(rows), taken)
            taken = np.concatenate([taken, ids[split]])
        return cls(ids, selected, backbone is None or backbone.complete)

    def splits_of(self, data: Dataset) -> np.ndarray:
        """Return the split that each sample of a data set had for the model, str (row,).

        ``train``, ``val`` or ``test``; ``unseen`` if the sample was in none. The splits of
        ``data`` do not matter.
        """
        asked = _ids(data, np.arange(len(data)))
        found = np.full(len(data), UNSEEN, "<U6")
        for split, ids in self.ids.items():
            found[np.isin(asked, ids)] = split
        return found

    def used_for(self, split: str) -> str:
        """Return what the rows of a split were used for.

        Returns
        -------
        {"training", "selection", "nothing", "unknown"}
        """
        if split == "train":
            return TRAINING
        if split in self.selected_on:
            return SELECTION
        return NOTHING if self.complete else UNKNOWN

    def fields(self) -> dict[str, Any]:
        """Return what a model's metadata say of the samples, as JSON values."""
        return {
            "rows": {split: len(ids) for split, ids in self.ids.items()},
            "selected_on": list(self.selected_on),
        }

    def to_bytes(self) -> bytes:
        """Return the digests' first bytes, split by split as in :meth:`fields`."""
        return b"".join(ids.astype(STORED).tobytes() for ids in self.ids.values())

    @classmethod
    def from_bytes(cls, data: bytes, fields: Mapping[str, Any], complete: bool) -> Seen:
        """Read what :meth:`to_bytes` and :meth:`fields` gave.

        Raises
        ------
        ValueError, TypeError, LookupError, AttributeError
            If they do not fit each other.
        """
        rows, selected = fields["rows"], fields["selected_on"]
        counts = [rows[split] for split in rows]
        every = np.frombuffer(data, STORED).astype(np.uint64)
        if sorted(rows) != sorted(SPLITS) or not set(selected) <= set(SPLITS):
            raise ValueError("other splits than train, val and test")
        if min(counts) < 0 or sum(counts) != len(every):
            raise ValueError(f"{len(every)} samples where {sum(counts)} were expected")
        parts = np.split(every, np.cumsum(counts)[:-1])
        return cls(dict(zip(rows, parts, strict=True)), tuple(selected), complete)


def _ids(data: Dataset, rows: np.ndarray) -> np.ndarray:
    first = np.ascontiguousarray(data.sample_ids[rows, :ID_BYTES])
    return first.reshape(-1).view(STORED).astype(np.uint64)
