import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.backbone import LayerRef, unfrozen
from featurestore.errors import BackboneError, UnknownLayerError

NAMES = ["block1_conv1", "block1_pool", "block4_pool", "block5_conv1", "block5_pool"]


@given(st.text("abcXYZ0189_-./@", min_size=1, max_size=12), st.sampled_from([None, "avg", "max"]))
def test_a_ref_survives_being_written_and_read(layer, reduction):
    ref = LayerRef(layer, reduction)
    assert LayerRef.parse(str(ref)) == ref
    assert LayerRef.parse(ref) is ref


@pytest.mark.parametrize("text", ["", ":avg", "block5_pool:", "block5_pool:mean", "a:avg:max"])
def test_an_invalid_ref_is_refused_with_an_example(text):
    with pytest.raises(BackboneError, match="LAYER:avg or LAYER:max"):
        LayerRef.parse(text)


def test_unfreezing_by_prefix_takes_everything_from_the_first_match_on():
    assert unfrozen(NAMES, "block5") == ["block5_conv1", "block5_pool"]
    assert unfrozen(NAMES, "block4_pool") == NAMES[2:]


def test_unfreezing_prefers_a_whole_name_to_a_beginning():
    names = ["conv2d_1", "conv2d_10", "conv2d"]
    assert unfrozen(names, "conv2d") == ["conv2d"]
    assert unfrozen(names, "conv2d_1") == names


@pytest.mark.parametrize("what", [3, "3"])
def test_unfreezing_by_number_counts_layers_of_any_kind_from_the_end(what):
    assert unfrozen(NAMES, what) == NAMES[-3:]


def test_unfreezing_everything():
    assert unfrozen(NAMES, len(NAMES)) == NAMES


@pytest.mark.parametrize("what", [0, -1, 6, "0", "-2"])
def test_an_impossible_number_of_layers(what):
    with pytest.raises(BackboneError, match="from 1 to 5"):
        unfrozen(NAMES, what)


@pytest.mark.parametrize("what", ["blok5_pool", ""])
def test_an_unknown_prefix_offers_the_nearest(what):
    with pytest.raises(UnknownLayerError, match="block"):
        unfrozen(NAMES, what)
