from __future__ import annotations

from typing import Any

import pytest

from featurestore.errors import DamagedError, FeatureStoreWarning
from featurestore.features import Features
from featurestore.heads import Head, fit_head, leaderboard
from featurestore.store.heads import HeadShelf


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "pickle"}, "'kind': Input should be 'sklearn' or 'keras'"),
        ({"metrics": {"val": {"accuracy": "best"}}}, "'metrics.val.accuracy"),
        ({"provenance": None}, "'provenance'"),
    ],
)
def test_an_invalid_document_is_damaged_and_left_out_of_listings(
    three: Features, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    head = fit_head(three, "ridge")
    document = three.store.heads.get(head.id)
    Head.of_document(document, three.store)
    with pytest.raises(DamagedError, match=says):
        Head.of_document({**document, **change}, three.store)
    monkeypatch.setattr(HeadShelf, "survey", lambda shelf: ([{**document, **change}], []))
    with pytest.warns(FeatureStoreWarning, match=rf"{head.id}.*not valid.*featurestore train"):
        assert leaderboard(store=three.store) == []
