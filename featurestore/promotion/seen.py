"""Which samples a model has seen: only metrics on others apply to new images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.dataset.splits import SPLITS, named

if TYPE_CHECKING:
    from featurestore.dataset import Dataset

# Of each digest. Among a million samples, two are alike with a chance of one in 40 million.
ID_BYTES = 8
SAMPLE = np.dtype([("id", ">u8"), ("split", "u1")])
UNSEEN, UNKNOWN = "unseen", "unknown"


@dataclass(frozen=True, eq=False)
class Seen:
    """The samples of the data set that a model was made with, and the split of each.

    Attributes
    ----------
    samples : numpy.ndarray of SAMPLE, (sample,)
        ``id``: the first 8 bytes of the sample's digest as a number. ``split``: position in
        ``SPLITS``.
    selected_on : tuple of str
        Splits whose rows chose the head or the epoch.
    complete : bool
        False if the model was trained further, on unknown samples.
    """

    samples: np.ndarray
    selected_on: tuple[str, ...] = ("val",)
    complete: bool = True

    @classmethod
    def by(
        cls,
        data: Dataset,
        selected_on: Collection[str] = ("val",),
        backbone: Seen | None = None,
    ) -> Seen:
        """Return what a model was trained and selected on.

        ``data`` is the data set that the head was fitted on. What a backbone has seen that is a
        promoted model itself counts as trained on. Rows of the splits ``selected_on`` chose the
        head or the epoch.
        """
        selected = tuple(sorted(set(map(named, selected_on)), key=SPLITS.index))
        parts: list[tuple[str, np.ndarray]] = []
        # A sample in several splits counts as in the first of these.
        for split in sorted(SPLITS, key=lambda each: (each != "train", each not in selected)):
            if split == "train" and backbone is not None:
                used = [SPLITS.index(each) for each in {"train", *backbone.selected_on}]
                samples = backbone.samples
                parts.append((split, samples["id"][np.isin(samples["split"], used)]))
            rows = data.rows(split, labelled=split != "test", views=False)
            parts.append((split, _ids(data)[rows]))
        ids = np.concatenate([each for _, each in parts])
        splits = np.concatenate([np.full(len(each), SPLITS.index(split)) for split, each in parts])
        ids, first = np.unique(ids, return_index=True)
        found = np.empty(len(ids), SAMPLE)
        found["id"], found["split"] = ids, splits[first]
        return cls(found, selected, backbone is None or backbone.complete)

    @classmethod
    def unknown(cls) -> Seen:
        """Return the record of a model that records nothing."""
        return cls(np.empty(0, SAMPLE), (), complete=False)

    def splits_of(self, data: Dataset) -> np.ndarray:
        """Return the split that each sample of a data set had for the model, str (row,).

        ``train``, ``val`` or ``test``; ``unseen`` for a sample that was in none. The splits of
        ``data`` do not matter.
        """
        known = dict(zip(*(self.samples[name].tolist() for name in ("id", "split")), strict=True))
        names = [*SPLITS, UNSEEN]
        return np.array([names[known.get(each, -1)] for each in _ids(data).tolist()], dtype="<U6")

    def images_were(self, split: str) -> str:
        """Return what a model did with the images of a split: see `featurestore.evaluate`."""
        if split == "train":
            return "trained on"
        if split in self.selected_on:
            return "selected on"
        return "held out" if self.complete else UNKNOWN

    def fields(self) -> dict[str, Any]:
        """Return the other attributes as JSON values, for the model's metadata."""
        return {"selected_on": list(self.selected_on), "complete": self.complete}

    @classmethod
    def from_bytes(cls, data: bytes, fields: Mapping[str, Any]) -> Seen:
        """Read ``samples.tobytes()`` and :meth:`fields`.

        Raises
        ------
        ValueError, TypeError, LookupError
            If they are malformed.
        """
        samples = np.frombuffer(data, SAMPLE)
        if not set(fields["selected_on"]) <= set(SPLITS) or (samples["split"] > 2).any():
            raise ValueError(f"a split other than {', '.join(SPLITS)}")
        return cls(samples, tuple(fields["selected_on"]), fields["complete"] is True)


def _ids(data: Dataset) -> np.ndarray:
    return np.ascontiguousarray(data.sample_ids[:, :ID_BYTES]).view(">u8").reshape(-1)
