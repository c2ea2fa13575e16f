from __future__ import annotations

import pytest
from sklearn.neighbors import RadiusNeighborsRegressor

from featurestore.errors import HeadError
from featurestore.features import Features
from featurestore.heads import (
    fit_head,
)


def test_a_regressor_that_predicts_nan(numbers: Features) -> None:
    with pytest.raises(HeadError, match="predicts NaN or infinity on the val split"):
        fit_head(numbers, RadiusNeighborsRegressor(0.01))
