import pytest

from featurestore.errors import FeatureStoreWarning
from featurestore.heads import Head, annotate, fit_head, fit_stale
from tests.toys import drop_block

LABELS = ["ant", "bee", "cat"] * 20


def test_a_head_that_cannot_be_fitted_again_stops_no_other(make_features, store):
    """Because of its folds, or of features that are not complete."""
    features = make_features(LABELS, val=0.2)
    fit_head(features, "knn", folds=30)
    fit_head(features, "ridge")
    fit_head(make_features(LABELS, ref="lost:avg", val=0.2), "ridge", {"alpha": 2.0})
    make_features(LABELS, val=0.7)
    drop_block(make_features(LABELS, ref="lost:avg", val=0.7).group, 0)

    with pytest.warns(FeatureStoreWarning, match="the other heads go on"):
        heads, failed = fit_stale("toys", store)

    assert [(each.estimator, each.params) for each in heads] == [("ridge", {})]
    errors = {(each["layer"], *each["params"]): each["error"] for each in failed}
    assert "too few for 30 folds" in errors.pop(("pool:avg",))
    assert "never extracted" in errors.pop(("lost:avg", "alpha"))
    assert errors == {}


def test_a_name_moves_to_the_head_that_is_fitted_again(make_features, store):
    former = fit_head(make_features(LABELS, val=0.2), "ridge", label="winner")
    make_features(LABELS, val=0.4)
    ((new,), failed) = fit_stale("toys", store)
    assert (new.label, Head.load("winner", store).id, failed) == ("winner", new.id, [])
    assert Head.load(former.id, store).label is None


def test_what_was_written_on_a_head_that_is_there_stays(make_features, store):
    fit_head(make_features(LABELS, val=0.2), "ridge", label="winner", tags=["old"], note="old")
    fit_head(make_features(LABELS, val=0.3), "ridge", tags=["newer"], note="newer")
    make_features(LABELS, val=0.4)
    ((new,), _) = fit_stale("toys", store)
    assert (new.tags, new.note) == (("newer",), "newer")
    annotate(new.id, store, tags=["mine"], remove=["newer"], note="mine")
    ((again,), failed) = fit_stale("toys", store)
    assert (again.id, again.tags, again.note, failed) == (new.id, ("mine",), "mine", [])
