from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import featurestore as fs
from featurestore.errors import HeadError
from featurestore.heads import HeadsHalved, HeadWarned
from featurestore.heads.candidate import candidate
from featurestore.heads.halving import survivors
from tests.heads.conftest import MakeFeatures
from tests.toys import featurestore


def test_good_heads_of_good_layers_go_on(make_features: MakeFeatures) -> None:
    labels = ["a", "b", "c"] * 120
    good = make_features(labels, noise=1.0, ref="good:avg", val=0.1, test=0.1)
    poor = make_features(labels, noise=60.0, ref="poor:avg", val=0.1, test=0.1)
    wanted = [("ridge", {"alpha": 10.0**power}) for power in range(5)]
    layers = [
        (features, [candidate(*each, features, 0) for each in wanted]) for features in (good, poor)
    ]
    events: list[Any] = []

    kept = survivors(layers, 3, on_event=events.append)

    rows = len(good.rows("train"))
    assert events == [HeadsHalved(10, 4, rows // 9, rows), HeadsHalved(4, 2, rows // 3, rows)]
    assert len(kept) == 2
    assert kept < {each.id for each in layers[0][1]}
    assert good.store.heads.keys() == []


def test_few_heads_or_few_rows_have_no_rounds(make_features: MakeFeatures) -> None:
    features = make_features(["a", "b"] * 10, val=0.0)
    few = [candidate("ridge", {"alpha": float(alpha)}, features, 0) for alpha in range(1, 8)]
    events: list[Any] = []
    kept = survivors([(features, few)], 2, on_event=events.append)
    assert kept == {each.id for each in few}
    assert events == [HeadsHalved(7, 7, 20, 20)]
    assert survivors([(features, few[:1])], 2) == {few[0].id}
    for factor in (1, 2.5, "a"):
        with pytest.raises(HeadError, match="expected an integer of 2 or more"):
            survivors([(features, few)], factor)  # type: ignore[arg-type]


def test_a_head_that_needs_more_rows_than_a_round_has_comes_last(
    make_features: MakeFeatures,
) -> None:
    features = make_features(["a", "b"] * 60, val=0.0)
    heads = [candidate("knn", {"n_neighbors": count}, features, 0) for count in (1, 3, 5, 60)]
    events: list[Any] = []
    kept = survivors([(features, heads)], 2, on_event=events.append)
    (warned,) = [each for each in events if isinstance(each, HeadWarned)]
    assert warned.head == heads[-1].id
    assert "n_neighbors = 60" in warned.text
    assert warned.text.endswith("on 30 rows")
    assert heads[-1].id not in kept
    assert len(kept) == 1


def test_a_sweep_fits_what_goes_on(make_features: MakeFeatures, tmp_path: Path) -> None:
    features = make_features(["a", "b", "c"] * 60, noise=4.0, val=0.1)
    file = tmp_path / "sweep.yaml"
    heads = [{"head": "ridge", "grid": {"alpha": [1, 10, 100, 1000]}}, "knn"]
    file.write_text(yaml.safe_dump({"dataset": "toys", "heads": heads, "halving": 3}))
    found = fs.sweep(file, features.store)
    assert {each.id for each in found} == set(features.store.heads.keys())
    assert len(found) == 2

    result = featurestore("sweep", file, "--store", tmp_path / "store", "--halving", "5")
    assert "halving: 1 of 5 heads go on, after " in result.err
