"""The options of fine-tuning."""

from __future__ import annotations

from typing import Any

import pytest

from featurestore.errors import InputError
from featurestore.promotion import FineTuning


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"patience": 0}, "patience is 0: input should be greater"),
        ({"lr_decay": 1.5}, "lr_decay is 1.5"),
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
