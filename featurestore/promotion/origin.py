"""The backbone and the data set behind a stored head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.backbone import Backbone
from featurestore.errors import PromotionError
from featurestore.heads import Head

if TYPE_CHECKING:
    from featurestore.dataset import Dataset
    from featurestore.store import FeatureStore


def load_origin(store: FeatureStore, head: str) -> tuple[Head, Backbone, Dataset]:
    """Load a head, and the backbone and data set that its lineage records: what to promote.

    Parameters
    ----------
    store : FeatureStore
    head : str
        An id, or the beginning of one.

    Raises
    ------
    NotFoundError
        If there is no such head, or its data set was removed.
    PromotionError
        If the head does not record its backbone.
    """
    fitted = Head.load(store, head)
    recorded = fitted.lineage["dataset"]
    data = store.datasets.load(recorded["name"], recorded["manifest_digest"])
    if fitted.lineage["backbone"] is None:
        raise PromotionError(f"{fitted.id} does not record its backbone; use promote() in Python")
    return fitted, Backbone.from_spec(fitted.lineage["backbone"]), data
