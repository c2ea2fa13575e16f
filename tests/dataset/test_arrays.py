from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from featurestore.dataset import Dataset
from featurestore.errors import DatasetError, InputError, SourceChangedError
from tests.dataset.conftest import X4, one_line, put


def test_arrays() -> None:
    X = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
    found = Dataset.from_arrays(X, [f"c{n % 3}" for n in range(10)], name="toy", test=0.3)
    assert (found.source, found.paths, found.classes) == (None, [None] * 10, ("c0", "c1", "c2"))
    order = [next(n for n in range(10) if np.array_equal(X[n], found.image(r))) for r in range(10)]
    assert sorted(order) == list(range(10))
    assert [found.labels[row] for row in range(10)] == [f"c{n % 3}" for n in order]
    grey = Dataset.from_arrays(X[..., 0], name="grey")
    assert grey.image(0).shape == (6, 5, 3)
    assert grey.digest == Dataset.from_arrays(X[..., :1], name="grey").digest
    assert grey.digest == Dataset.from_arrays(list(X[::-1, ..., 0]), name="other").digest
    sizes = Dataset.from_arrays([X[0], X[1, :3], X[2, :, :, 0]], name="sizes")
    assert sorted(sizes.image(row).shape for row in range(3)) == [(3, 5, 3), (6, 5, 3), (6, 5, 3)]


def test_the_same_bytes_in_another_shape_are_another_sample() -> None:
    flat = np.arange(12, dtype=np.uint8)
    assert len(Dataset.from_arrays([flat.reshape(3, 4), flat.reshape(4, 3)], name="x")) == 2


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (X4 / 255, None, "X[0] is float64; expected uint8 with values 0..255; (X * 255).round()"),
        (
            X4.astype(int),
            None,
            "X[0] is int64; expected uint8 with values 0..255; X.astype('uint8')",
        ),
        (X4.reshape(4, 4), None, "X has the shape (4, 4); expected (row, height, width)"),
        (np.zeros((2, 3, 16, 16), np.uint8), None, "channels last"),
        (X4[:0], None, "X is empty"),
        (X4, [1, 2, 3], "y has 3 values; expected 4"),
        (X4, np.eye(4), "y has the shape (4, 4); expected (4,); y.argmax(axis=1)"),
        (X4, ["a", 1, "b", 2], "labels of mixed types, int (2) and str ('b')"),
        (X4, [1.0, float("inf"), 2, 3], "label inf"),
        (X4, [1, 2**63, 2, 3], "expected text, an integer of 64 bits"),
        (X4, [b"a", b"b", b"c", b"d"], "of type bytes"),
    ],
)
def test_bad_arrays(X: Any, y: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        Dataset.from_arrays(X, y, name="x")
    one_line(caught.value)


def test_bad_splits_and_groups() -> None:
    with pytest.raises(DatasetError, match="splits, row 2: split 'later'"):
        Dataset.from_arrays(X4, name="x", splits=["train", "later", "val", None])
    with pytest.raises(DatasetError, match="groups has 1 values; expected 4"):
        Dataset.from_arrays(X4, name="x", groups=["a"])
    for what in ("y", "splits", "groups", "ids"):
        for values in ({"a", "b", "c", "d"}, dict.fromkeys("abcd"), "abcd", 5):
            with pytest.raises(DatasetError, match=f"{what} is of type .*in the order of X") as no:
                Dataset.from_arrays(X4, name="x", **{what: values})
            one_line(no.value)
    with pytest.raises(DatasetError, match="all integers of 64 bits"):
        Dataset.from_arrays(X4, name="x", ids=[2**64] * 4)
    with pytest.raises(InputError, match="no split 'vla'; did you mean 'val'"):
        Dataset.from_arrays(X4, name="x").rows("vla")


def test_arrays_written_to_after_the_scan() -> None:
    X = X4.copy()
    found = Dataset.from_arrays(X, name="x")
    X += 1
    with pytest.raises(SourceChangedError, match=r"array behind row 0 .* has changed"):
        found.image(0)


def test_arrays_from_a_store_must_be_passed_again() -> None:
    again = Dataset.from_parquet(Dataset.from_arrays(X4, name="x").to_parquet())
    with pytest.raises(DatasetError, match=r"Dataset\.from_arrays\(X, y, name='x'\)"):
        again.image(0)


def test_the_order_in_which_arrays_were_given() -> None:
    X = X4[[2, 0, 1, 0, 3]]
    found = Dataset.from_arrays(X, name="x", ids=["two", "zero", "one", "again", "three"])
    for each in (found, Dataset.from_parquet(found.to_parquet())):
        assert each.input_order.dtype == np.int64
        assert [found.image(row)[:, :, 0].tolist() for row in each.input_order] == X.tolist()
        frame = each.to_frame()
        assert frame["id"].tolist() == ["two", "zero", "one", "again", "three"]
        assert frame["row"].tolist() == each.input_order.tolist()
    other = Dataset.from_arrays(X4, name="x")
    assert other.manifest_digest == found.manifest_digest
    assert other.input_order.tolist() != found.input_order.tolist()
    with pytest.raises(DatasetError, match="ids has 2 values; expected 5"):
        Dataset.from_arrays(X, name="x", ids=["a", "b"])
    with pytest.raises(DatasetError, match="expected all text or all integers"):
        Dataset.from_arrays(X4, name="x", ids=["a", 1, "b", 2])


def test_integers_with_gaps_keep_their_digits(tmp_path: Path) -> None:
    ids = [2**60 + 1, None, 2**60 + 2, -1]
    images = [str(put(tmp_path / f"{number}.png", number)) for number in range(4)]
    table = pd.DataFrame({"path": images, "id": pd.array(ids, "Int64")})
    table.to_csv(tmp_path / "t.csv", index=False)
    for found in (
        Dataset.from_arrays(X4, name="x", ids=ids),
        Dataset.from_arrays(X4, name="x", ids=table["id"]),
        Dataset.open(table, name="x"),
        Dataset.open(tmp_path / "t.csv"),
    ):
        column = Dataset.from_parquet(found.to_parquet()).to_frame()["id"]
        assert (column.dtype, column.tolist()) == ("Int64", [ids[0], pd.NA, *ids[2:]])
    table["id"] = pd.array([2**64 - 1, None, 2, 3], "UInt64")
    assert Dataset.open(table, name="x").to_frame()["id"].tolist()[0] == 2**64 - 1
