"""Which of the stored heads is promoted by `--best`."""

from __future__ import annotations

from featurestore.heads import fit_head
from featurestore.promotion.choice import best_promotable
from tests.promotion.conftest import MakeFeatures


def test_only_heads_that_can_be_promoted_are_judged(make_features: MakeFeatures) -> None:
    """A forest without folds must not make the validation split decide among the others."""
    features = make_features(["ant", "bee", "cat"] * 12, val=0.3)
    heads = [fit_head(features, "logistic", {"C": C}, folds=3) for C in (1e-6, 1.0)]
    expected = max(heads, key=lambda head: sum(head.folds["metrics"]["accuracy"]))
    fit_head(features, "forest", {"n_estimators": 2})
    chosen, by = best_promotable(features.store)
    assert chosen.id == expected.id
    assert by.startswith("the mean over the folds, accuracy ")
    assert by.endswith(", best of 2 of 3 heads")

    fit_head(features, "ridge")
    assert best_promotable(features.store)[1].startswith("the val split, accuracy ")
