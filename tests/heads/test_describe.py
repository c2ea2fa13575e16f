from __future__ import annotations

import json

import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from featurestore.errors import DamagedError
from featurestore.features import Features
from featurestore.heads import describe_head, fit_head
from featurestore.heads.describe import MOST_CLASSES, head_layout
from featurestore.heads.metrics import by_class
from featurestore.table import Grid
from tests.heads.conftest import MakeFeatures


def test_everything_of_a_head(three: Features) -> None:
    head = fit_head(three, GridSearchCV(SVC(), {"C": [0.1, 1.0]}), note="why")
    found = describe_head("GridSearchCV", three.store)
    json.dumps(found, allow_nan=False)
    assert found["id"] == head.id
    assert found["best_params"] == head.best_params == head.fitted.best_params_
    assert found["note"] == "why"
    assert found["stale"] is None
    assert found["metrics"]["val"]["accuracy"] == head.metrics["val"]["accuracy"]
    assert found["provenance"] == head.provenance
    rows = found["by_class"]["val"]
    assert [row["class"] for row in rows] == ["ant", "bee", "cat"]
    assert sum(row["rows"] for row in rows) == head.metrics["val"]["rows"]
    f1 = sum(row["f1"] for row in rows) / len(rows)
    assert f1 == pytest.approx(head.metrics["val"]["macro_f1"])


def test_numbers_have_no_classes(numbers: Features) -> None:
    fit_head(numbers, "ridge")
    assert "by_class" not in describe_head("ridge", numbers.store)


def test_what_each_class_is_mistaken_for() -> None:
    never, rare = by_class({"classes": ["never", "rare"], "matrix": [[0, 0], [0, 0]]})
    assert never["precision"] is never["recall"] is never["f1"] is rare["mistaken_for"] is None
    matrix = [[3, 1, 0], [0, 2, 0], [2, 0, 0]]
    a, b, c = by_class({"classes": ["a", "b", "c"], "matrix": matrix})
    assert (a["precision"], a["recall"], a["mistaken_for"]) == (0.6, 0.75, "b")
    assert (b["mistaken_for"], c["mistaken_for"], c["precision"]) == (None, "a", None)


def test_a_damaged_confusion_matrix(three: Features) -> None:
    head = fit_head(three, "knn")
    document = three.store.heads.get(head.id)
    provenance = {**document, "id": "forged"}
    three.store.heads.save("forged", provenance, {"confusion.json": b'{"val": 3}'})
    with pytest.raises(DamagedError, match=r"confusion\.json is invalid"):
        describe_head("forged", three.store)


def test_of_many_classes_the_worst_are_shown(make_features: MakeFeatures) -> None:
    head = fit_head(make_features([f"c{n:02}" for n in range(30)] * 4, noise=3.0, val=0.3), "knn")
    described = describe_head(head.id, head.store)
    grid = next(
        part
        for part in head_layout(described)
        if isinstance(part, Grid) and "mistaken_for" in part.fields
    )
    rows = described["by_class"]["val"]
    assert len(grid.rows) == MOST_CLASSES
    assert (
        max(row["f1"] for row in grid.rows if row["f1"] is not None)
        <= sorted(row["f1"] for row in rows if row["f1"] is not None)[MOST_CLASSES]
    )
