"""Cross-validation of heads, against scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import FoldFitted, Head, HeadReused, fit_head, fit_heads
from featurestore.heads.folds import common, mean_and_spread, p_value, split
from tests.heads.conftest import MakeFeatures


def test_metrics_over_folds_equal_those_of_scikit_learn(three: Features) -> None:
    head = fit_head(three, "ridge", {"alpha": 3.0}, folds=4, seeds=2)
    assert head.folds is not None
    X, y = three.arrays("train")
    expected: dict[str, list[float]] = {"accuracy": [], "f1_macro": []}
    for seed in (0, 1):
        found = cross_validate(
            make_pipeline(StandardScaler(), RidgeClassifier(alpha=3.0)),
            X,
            y,
            cv=StratifiedKFold(4, shuffle=True, random_state=seed),
            scoring=list(expected),
        )
        for name, values in expected.items():
            values += found[f"test_{name}"].tolist()
    assert (head.folds["folds"], head.folds["seeds"]) == (4, 2)
    assert head.folds["metrics"]["accuracy"] == pytest.approx(expected["accuracy"])
    assert head.folds["metrics"]["macro_f1"] == pytest.approx(expected["f1_macro"])
    mean, spread = mean_and_spread(head.folds, "accuracy") or (0, 0)
    assert mean == pytest.approx(np.mean(expected["accuracy"]))
    assert spread == pytest.approx(np.std(expected["accuracy"], ddof=1))
    assert mean_and_spread(head.folds, "log_loss") is None  # Ridge has no probabilities.


def test_the_head_is_that_without_folds(three: Features) -> None:
    head = fit_head(three, "logistic", folds=3)
    plain = fit_head(three, "logistic", save=False)
    assert head.id == plain.id
    X, _ = three.arrays("test")
    np.testing.assert_array_equal(head.decision_function(X), plain.decision_function(X))


def test_a_stored_head_is_not_fitted_again_for_its_folds(three: Features) -> None:
    events: list[Any] = []
    head = fit_head(three, "ridge")
    validated = fit_head(three, "ridge", folds=3, on_event=events.append)
    assert [type(each) for each in events] == [HeadReused] + [FoldFitted] * 3
    assert events[-1] == FoldFitted(1, 3, 3)
    assert Head.load(head.id, three.store).folds == validated.folds is not None
    events.clear()
    assert fit_head(three, "ridge", folds=3, on_event=events.append).folds == validated.folds
    assert fit_head(three, "ridge", on_event=events.append).folds == validated.folds
    assert events == [HeadReused(head.id)] * 2
    fit_head(three, "ridge", folds=4, seeds=2, on_event=events.append)
    assert events[-1] == FoldFitted(1, 8, 8)
    events.clear()
    fewer = fit_head(three, "ridge", folds=4, on_event=events.append)
    assert events == [HeadReused(head.id)]
    assert fewer.folds is not None
    assert fewer.folds["seeds"] == 2


def test_what_was_fitted_stays_if_the_folds_are_interrupted(three: Features) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, FoldFitted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_heads(three, ["ridge", ("ridge", {"alpha": 2})], folds=3, on_event=stop)
    events: list[Any] = []
    heads = fit_heads(three, ["ridge", ("ridge", {"alpha": 2})], folds=3, on_event=events.append)
    assert events[0] == HeadReused(heads[0].id)
    assert all(each.folds for each in heads)


def test_random_heads_have_another_seed_in_each_repetition(three: Features) -> None:
    params = {"n_estimators": 2, "max_depth": 2}
    head = fit_head(three, "forest", params, folds=3, seeds=2)
    other = fit_head(three, "forest", params, seed=1, folds=3)
    assert head.folds is not None
    assert other.folds is not None
    assert head.folds["metrics"]["accuracy"][3:] == other.folds["metrics"]["accuracy"]


def test_groups_stay_together(make_features: MakeFeatures) -> None:
    groups = [f"g{row % 7}" for row in range(60)]
    features = make_features(np.linspace(0.0, 1.0, 60).tolist(), val=0.0, groups=groups)
    head = fit_head(features, "ridge", folds=3)
    assert head.folds is not None
    train = features.dataset.rows("train")
    y, of = features.dataset.targets[train], features.dataset.groups[train]
    folds = split(y, of, 3, 0)
    expected = list(GroupKFold(3, shuffle=True, random_state=0).split(y, y, of))
    assert len(head.folds["metrics"]["r2"]) == 3
    for (found, held_out), (wanted, _) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert not {*of[found]} & {*of[held_out]}
    with pytest.raises(HeadError, match=r"has 7 groups in its train split, too few for 8 folds"):
        fit_head(features, "ridge", folds=8)


def test_keras_heads_and_views_are_validated_too(maps: Features) -> None:
    head = fit_head(maps, "dense", {"epochs": 2, "units": 4}, folds=2)
    assert head.folds is not None
    assert len(head.folds["metrics"]["log_loss"]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folds": 1}, "folds"),
        (
            {"folds": 100},
            "has 34 training rows in its train split, too few for 100 folds; take folds=34 at most",
        ),
        ({"seeds": 3}, "set folds too"),
        ({"folds": 3, "seeds": 0}, "seeds"),
    ],
)
def test_bad_input(three: Features, options: dict[str, Any], said: str) -> None:
    with pytest.raises(HeadError, match=said):
        fit_head(three, "ridge", **options)


@pytest.mark.parametrize(
    ("labels", "groups", "said"),
    [
        (["a", "b"], None, "two classes to learn from in each; .* or fit without"),
        ([0.5] * 20, None, "two different labels in each"),
        (["a", "b"] * 10, ["g"] * 20, "has 1 group in its train split, .*; fit without folds"),
    ],
)
def test_rows_that_cannot_be_divided(
    make_features: MakeFeatures, labels: list[Any], groups: list[str] | None, said: str
) -> None:
    features = make_features(labels, val=0.0, groups=groups)
    with pytest.raises(HeadError, match=said):
        fit_head(features, "ridge", folds=2, seeds="1")  # type: ignore[arg-type]


def test_folds_that_could_not_be_fitted_do_not_shift_the_others() -> None:
    one = {"folds": 3, "seeds": 1, "metrics": {"accuracy": [0.1, 0.2]}}
    two = {"folds": 3, "seeds": 2, "metrics": {"accuracy": [0.1, 0.2, 0.3, 0.4, 0.5]}}
    for documents in ([one, two], [two, one]):
        shared = common(documents) or []
        assert [each["metrics"] for each in shared] == [{"accuracy": [0.1, 0.2]}] * 2
        assert p_value(*shared, "accuracy") == 1


def test_a_rare_class_is_missing_from_some_folds() -> None:
    y = np.array([0] * 10 + [1] * 10 + [2])
    folds = split(y, None, 5, 0)
    assert len(folds) == 5
    assert sum(2 in y[held_out] for _, held_out in folds) == 1


def test_the_paired_test_is_the_t_test_with_a_larger_variance() -> None:
    rng = np.random.default_rng(0)
    ours, best = rng.normal(0.8, 0.02, 10), rng.normal(0.82, 0.02, 10)

    def document(values: np.ndarray) -> dict[str, Any]:
        return {"folds": 5, "seeds": 2, "metrics": {"accuracy": values.tolist()}}

    plain = stats.ttest_rel(ours, best)
    t = plain.statistic * np.sqrt((1 / 10) / (1 / 10 + 1 / 4))
    expected = 2 * stats.t.sf(abs(t), 9)
    assert p_value(document(ours), document(best), "accuracy") == pytest.approx(expected)
    assert p_value(document(ours), document(ours), "accuracy") == 1.0
    assert p_value(document(ours), document(ours - 0.1), "accuracy") < 1e-6
