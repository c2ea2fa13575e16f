"""The options of fine-tuning."""

from __future__ import annotations

from typing import Any

import pytest

from featurestore.errors import BackboneError, InputError, UnknownLayerError
from featurestore.promotion import FineTuning


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"patience": 0}, "patience is 0: input should be greater"),
        ({"epoch": 3}, "no option 'epoch'; did you mean 'epochs'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        FineTuning.of(options)
    assert "\n" not in str(caught.value)


def test_epochs_by_default() -> None:
    assert FineTuning().passes == 0
    assert FineTuning(unfreeze="block5").passes == 3
    assert FineTuning(unfreeze="block5", epochs=0).passes == 0


NAMES = ["block1_conv1", "block1_pool", "block4_pool", "block5_conv1", "block5_pool"]


def unfrozen(names: list[str], what: Any) -> list[str]:
    return FineTuning(unfreeze=what).unfrozen(names)


def test_unfreezing_by_prefix_takes_everything_from_the_first_match_on() -> None:
    assert unfrozen(NAMES, "block5") == ["block5_conv1", "block5_pool"]
    assert unfrozen(NAMES, "block4_pool") == NAMES[2:]
    assert unfrozen(NAMES, None) == []


def test_unfreezing_prefers_a_whole_name_to_a_beginning() -> None:
    names = ["conv2d_1", "conv2d_10", "conv2d"]
    assert unfrozen(names, "conv2d") == ["conv2d"]
    assert unfrozen(names, "conv2d_1") == names


@pytest.mark.parametrize("what", [3, "3"])
def test_unfreezing_by_number_counts_layers_of_any_kind_from_the_end(what: Any) -> None:
    assert unfrozen(NAMES, what) == NAMES[-3:]


def test_unfreezing_everything() -> None:
    assert unfrozen(NAMES, len(NAMES)) == NAMES


@pytest.mark.parametrize("what", [0, -1, 6, "0", "-2"])
def test_an_impossible_number_of_layers(what: Any) -> None:
    with pytest.raises(BackboneError, match="from 1 to 5"):
        unfrozen(NAMES, what)


@pytest.mark.parametrize("what", ["blok5_pool", ""])
def test_an_unknown_prefix_offers_the_nearest(what: Any) -> None:
    with pytest.raises(UnknownLayerError, match="block"):
        unfrozen(NAMES, what)
