import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.backbone import LayerRef
from featurestore.errors import BackboneError


@given(st.text("abcXYZ0189_-./@", min_size=1, max_size=12), st.sampled_from([None, "avg", "max"]))
def test_a_ref_survives_being_written_and_read(layer, reduction):
    ref = LayerRef(layer, reduction)
    assert LayerRef.parse(str(ref)) == ref
    assert LayerRef.parse(ref) is ref


@pytest.mark.parametrize("text", ["", ":avg", "block5_pool:", "block5_pool:mean", "a:avg:max"])
def test_an_invalid_ref_is_refused_with_an_example(text):
    with pytest.raises(BackboneError, match="LAYER, or LAYER with :avg"):
        LayerRef.parse(text)
